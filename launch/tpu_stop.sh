#!/usr/bin/env bash
# End the run in order: every worker's run gets SIGTERM, saves a checkpoint and exits with 75. The slice stays (and costs).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/tpu_common.sh"

parse_options "$@"
need name zone project
need_active
ask_workers stop || die 1 "Not every worker of $name has stopped; launch/tpu_status.sh tells which. This may be given again."
