#!/usr/bin/env bash
# How is it? State of the queued resource, of the run on each worker, and the last line of worker 0's log.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/tpu_common.sh"

parse_options "$@"
need name zone project
find_resource
say "$name: ${state:-not there} $found_type"
[[ $state == ACTIVE || -n $DRY_RUN ]] || exit 0
ask_workers status || die 1 "Not every worker of $name answers; gcloud's message is above."
on_node "$(list_nodes | head -n 1)" 0 "tail -n 1 mim_jax_run/log 2>/dev/null || echo 'Worker 0 has no log yet.'"
