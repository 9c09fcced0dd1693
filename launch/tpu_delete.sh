#!/usr/bin/env bash
# End the run in order, then give the slice back: the queued resource, its machines and their disks are deleted.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/tpu_common.sh"

parse_options "$@"
need name zone project
find_resource
if [[ -z $state && -z $DRY_RUN ]]; then
  say "There is no $name in $zone: nothing to delete."
  exit 0
fi
if [[ $state == ACTIVE || -n $DRY_RUN ]]; then
  ask_workers stop || say "The run on $name could not be stopped in order; its last checkpoint stands."
fi
call gcloud compute tpus queued-resources delete "$name" --zone="$zone" --project="$project" --force --quiet ||
  die 1 "gcloud could not delete $name; its message is above. It may still cost money."
conclude "$name is deleted."
