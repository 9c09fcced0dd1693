#!/usr/bin/env bash
# Ask for a TPU slice (a queued resource) and wait until it is ACTIVE: tpu_create.sh --name N --zone Z --project P --type T
# Again: waits on, or says that it is there. One that was preempted (SUSPENDED) or FAILED is deleted and asked for anew.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/tpu_common.sh"

ask() {
  local nodes=(--node-id="$name") flags=()
  ((slices == 1)) || nodes=(--node-count="$slices" --node-prefix="$name")
  read -r -a flags <<<"$capacity ${GCLOUD_CREATE_FLAGS:-}"
  call gcloud compute tpus queued-resources create "$name" "${nodes[@]}" --zone="$zone" --project="$project" --quiet \
    --accelerator-type="$type" --runtime-version="$version" ${flags[@]+"${flags[@]}"} ||
    die 1 "gcloud refused the request for $name; its message is above."
}

check_found() {
  [[ -z $state || -z $found_type || $found_type == "$type" ]] ||
    die 2 "$name exists as $found_type, not $type: choose another --name, or delete it with launch/tpu_delete.sh."
}

parse_options "$@"
need name zone project type
find_resource
check_found
[[ $state != ACTIVE ]] || say "$name ($found_type) is there already: nothing to create."
asked='' seen=''
while [[ $state != ACTIVE ]]; do
  [[ $state == "$seen" ]] || say "$name is $state."
  seen=$state
  case $state in
    '')
      [[ -z $asked ]] || die 2 "$name is gone again: somebody has deleted it."
      ask
      asked=1
      ;;
    SUSPENDED | FAILED) # final: such a request gets no machines any more
      [[ -z $asked ]] || die 1 "The request for $name ended as $state; tpu_create.sh asks again. Its reason: gcloud" \
        "compute tpus queued-resources describe $name --zone=$zone --project=$project"
      call gcloud compute tpus queued-resources delete "$name" --zone="$zone" --project="$project" --force --quiet ||
        die 1 "gcloud could not delete $name, which is $state; its message is above."
      ;;
    *) sleep "$POLL_SECONDS" ;; # waiting in the queue can take days; Ctrl-C loses nothing
  esac
  [[ -z $DRY_RUN ]] || exit 0
  until find_resource; do sleep "$POLL_SECONDS"; done # a lost network is no reason to stop waiting
done
say "$name is ACTIVE. Next: launch/tpu_setup.sh"
