#!/usr/bin/env bash
# Start a command on every worker: tpu_run.sh --name N --zone Z --project P -- python -m mim_jax.train --config ...
# It runs detached under launch/babysit.py: a lost ssh connection does not matter. Again: says that it runs already.
# --keep-alive (with --type and what tpu_create.sh and tpu_setup.sh were given) stays and watches: a slice that was preempted
# is asked for again, set up, and given the same command, which goes on where the work directory left off. Ends when it ends.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/tpu_common.sh"

WATCH_SECONDS=${WATCH_SECONDS:-120} # every look is an ssh connection to each worker

start() {
  local words
  printf -v words ' %q' "${command[@]}"
  on_workers "bash $WORKER start $tries$words"
}

set_up() { DRY_RUN=$DRY_RUN "$LAUNCH/tpu_setup.sh" "${options[@]}" </dev/null; }

bring_back() { # 1: not yet; exits where only a person can help
  local status=0
  DRY_RUN=$DRY_RUN "$LAUNCH/tpu_create.sh" "${options[@]}" </dev/null || status=$?
  ((status != 2)) || exit 2
  ((status == 0)) && set_up && start
}

look_after_workers() { # what to do about what the workers answer; exits when the run has ended
  local answers fatal
  answers=$(ask_workers status) || {
    say "$name: not every worker answers; looking again."
    return 0
  }
  fatal=$(sed -n 's/.* ended \([23]\)$/\1/p' <<<"$answers" | head -n 1)
  if [[ -n $fatal ]]; then # the others would start in vain until they give up
    ask_workers stop || true
    die "$fatal" "The run on $name ended with status $fatal; launch/tpu_status.sh shows the last line of its log."
  elif grep -q ' stopped$' <<<"$answers"; then
    say "The run on $name was stopped by launch/tpu_stop.sh."
    exit 75
  elif grep -q ' not-set-up$' <<<"$answers"; then
    { set_up && start; } || say "$name could not be set up and started; looking again."
  elif grep -Eq ' (idle|gone|ended [1-9][0-9]*)$' <<<"$answers"; then # a machine was rebooted, or a supervisor gave up
    ((++restarts <= tries)) || die 75 "The run on $name was started again $tries times, and still does not hold; see its log."
    say "$name: a worker's run is gone; starting it again."
    start || say "$name: not every worker could be started; looking again."
  elif ! grep -q ' running$' <<<"$answers"; then
    say "The run on $name has finished."
    exit 0
  fi
}

watch_slice() {
  local lost=''
  restarts=0
  while true; do
    until find_resource; do sleep "$WATCH_SECONDS"; done # a lost network is no reason to stop watching
    case $state in
      ACTIVE)
        lost=''
        look_after_workers
        ;;
      SUSPENDING | SUSPENDED | FAILED)
        say "$name was taken away ($state): asking for it again."
        lost=1
        bring_back || say "$name is not back yet; trying again."
        ;;
      '')
        [[ -n $lost ]] || die 75 "There is no $name any more: nothing to keep alive."
        bring_back || say "$name is not back yet; trying again."
        ;;
    esac
    sleep "$WATCH_SECONDS"
  done
}

parse_options "$@"
need name zone project
[[ -z $keep_alive ]] || need type
((${#command[@]})) || die 2 "What shall run? Give the command after --, such as: -- python -m mim_jax.train --config ..."
[[ -z $keep_alive || " ${command[*]} " == *gs://* ]] ||
  say "Note: the command names no gs:// folder. A work directory on the slice's own disks is lost with the slice."
[[ -z $keep_alive || -n $commit ]] || say "Note: without --commit a slice that comes back gets this tree as it is then."
find_resource
if [[ $state == ACTIVE || -n $DRY_RUN ]]; then
  start || die 1 "The run could not be started on every worker of $name; the message is above."
elif [[ -z $keep_alive ]]; then
  die 2 "$name is ${state:-not there}, not ACTIVE; launch/tpu_create.sh makes it so."
fi
if [[ -z $keep_alive ]]; then
  conclude "Started on $name. launch/tpu_status.sh tells how it goes, launch/tpu_stop.sh ends it in order."
elif [[ -n $DRY_RUN ]]; then
  say "When $name is SUSPENDED or FAILED:"
  bring_back
else
  watch_slice
fi
