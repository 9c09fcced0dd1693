#!/usr/bin/env bash
# Put code and packages on every worker: tpu_setup.sh --name N --zone Z --project P [--commit SHA [--repo URL]]
# Without --commit it copies this working tree (tracked and new files, no ignored ones). Again: brings the workers up to date.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/tpu_common.sh"

# A run that is alive reads its code: it is not pulled away from under it.
IDLE="{ [ ! -e $WORKER ] || bash $WORKER check-idle; }"
SETUP="bash $WORKER setup"

find_origin() {
  [[ $commit =~ ^[0-9a-f]{7,40}$ ]] || die 2 "--commit $commit is not a commit's SHA: a branch would differ between hosts."
  repo=${repo:-$(git -C "$LAUNCH" remote get-url origin 2>/dev/null || true)}
  [[ -n $repo ]] || die 2 "This clone has no origin: say with --repo from where the workers clone $commit."
}

clone_commit() {
  local from at
  printf -v from %q "$repo"
  printf -v at %q "$commit"
  tell_workers "$IDLE && { [ -d mim_jax/.git ] || { rm -rf mim_jax && git clone --quiet $from mim_jax; }; } &&
git -C mim_jax remote set-url origin $from && git -C mim_jax fetch --quiet origin &&
git -C mim_jax checkout --quiet --force --detach $at && $SETUP"
}

copy_tree() {
  local folder archive node flags=()
  read -r -a flags <<<"${GCLOUD_SSH_FLAGS:-}"
  folder=$(mktemp -d)
  # shellcheck disable=SC2064  # the folder as it is now
  trap "rm -rf '$folder'" EXIT
  archive=$folder/mim_jax.tar.gz
  list_files >"$folder/files" || die 1 "git cannot tell the files of this tree; its message is above. --commit does without."
  COPYFILE_DISABLE=1 tar -czf "$archive" -C "$LAUNCH/.." -T "$folder/files" # macOS would add its ._ files
  for node in $(list_nodes); do
    call gcloud compute tpus tpu-vm scp "$archive" "$node:mim_jax.tar.gz" --zone="$zone" --project="$project" --quiet \
      --worker=all ${flags[@]+"${flags[@]}"} </dev/null ||
      die 1 "The code could not be copied to $node; gcloud's message is above."
  done
  tell_workers "$IDLE && rm -rf mim_jax && mkdir mim_jax && tar -xzf mim_jax.tar.gz -C mim_jax && $SETUP"
}

list_files() { # tracked files and new ones, but for those deleted
  local file
  git -C "$LAUNCH/.." -c core.quotePath=off ls-files --cached --others --exclude-standard | while IFS= read -r file; do
    [[ ! -e $LAUNCH/../$file ]] || printf '%s\n' "$file"
  done
}

tell_workers() { on_workers "$1" || die 1 "A worker of $name could not be set up; its message is above."; }

parse_options "$@"
need name zone project
[[ -z $commit ]] || find_origin
need_active
if [[ -n $commit ]]; then clone_commit; else copy_tree; fi
conclude "$name is set up. Next: launch/tpu_run.sh ... -- python -m mim_jax.train ..."
