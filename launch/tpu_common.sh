# shellcheck shell=bash
# What the tpu_*.sh scripts share: one set of options, dry runs, the state of the queued resource, commands on the workers.
# Written for bash 3.2 (macOS) too. Flag names: gcloud's own definitions (SDK 528, surface/compute/tpus); states:
# cloud.google.com/tpu/docs/queued-resources; runtime versions: cloud.google.com/tpu/docs/runtimes (read in 2026).
# shellcheck disable=SC2034  # the scripts that read this file use its variables

SCRIPT=$(basename "$0")
LAUNCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
POLL_SECONDS=${POLL_SECONDS:-30}
DRY_RUN=${DRY_RUN:-}
WORKER=mim_jax/launch/tpu_worker.sh # on the workers, seen from their home folder

name='' zone='' project='' type='' slices=1 capacity='' version='' repo='' commit='' tries=20 keep_alive=''
options=() command=()

say() { printf '%s\n' "$*"; }

conclude() { [[ -n $DRY_RUN ]] || say "$@"; } # what a dry run has not done

die() { # STATUS SENTENCE
  local status=$1
  shift
  printf 'error: %s\n' "$*" >&2
  exit "$status"
}

show_options() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  cat <<'HELP'

Options, the same for all tpu_*.sh scripts (each takes what it needs):
  --name NAME        of the queued resource and its slice         --zone ZONE   --project PROJECT
  --type TYPE        v4-32, v5litepod-256, v5p-64, v6e-256, ...   --slices N    several slices as one machine (default 1)
  --spot | --reserved                                             --version V   runtime version (default: by type)
  --commit SHA       clone this commit (default: copy this tree)  --repo URL    to clone from (default: this clone's origin)
  --tries N          starts before giving up (default 20)         --keep-alive  tpu_run.sh: bring a lost slice back
  --dry-run          print every command and run none (also DRY_RUN=1)
Environment: GCLOUD_CREATE_FLAGS and GCLOUD_SSH_FLAGS are added to those commands (--network=..., --tunnel-through-iap).
HELP
}

parse_options() {
  local value
  while (($#)); do
    case $1 in
      --)
        shift
        command=("$@")
        break
        ;;
      --*=*)
        value=${1#*=}
        set -- "${1%%=*}" "$value" "${@:2}"
        ;;
    esac
    case $1 in
      --help)
        show_options
        exit 0
        ;;
      --dry-run) DRY_RUN=1 ;;
      --keep-alive) keep_alive=1 ;;
      --spot | --reserved)
        [[ -z $capacity || $capacity == "$1" ]] || die 2 "--spot and --reserved exclude each other: give one."
        capacity=$1
        options+=("$1")
        ;;
      --name | --zone | --project | --type | --slices | --version | --repo | --commit | --tries)
        [[ $# -ge 2 && -n $2 && $2 != --* ]] || die 2 "$1 needs a value; $SCRIPT --help shows one."
        printf -v "${1#--}" %s "$2"
        options+=("$1" "$2")
        shift
        ;;
      *) die 2 "$1 is not an option of $SCRIPT; $SCRIPT --help lists them (what to run comes after --)." ;;
    esac
    shift
  done
  check_options
}

check_options() {
  [[ $slices =~ ^[1-9][0-9]{0,3}$ ]] || die 2 "--slices $slices is not a number of slices; give 1 or more."
  [[ $tries =~ ^[1-9][0-9]{0,5}$ ]] || die 2 "--tries $tries is not a number of tries; give 1 or more."
  [[ -z $name || $name =~ ^[a-z]([-a-z0-9]{0,60}[a-z0-9])?$ ]] ||
    die 2 "--name $name cannot be a resource's name: small letters, digits and hyphens, a letter first."
  [[ -z $zone || $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z0-9]+$ ]] || die 2 "--zone $zone is not a zone, such as us-central2-b."
  [[ -z $project || $project =~ ^[a-z0-9.:-]+$ ]] || die 2 "--project $project is not a project's ID, such as my-lab-123."
  [[ -z $type ]] || check_type
}

need() { # OPTION...: the options this script cannot do without
  local option missing=''
  for option in "$@"; do [[ -n ${!option} ]] || missing+=" --$option"; done
  [[ -z $missing ]] || die 2 "$SCRIPT needs$missing; $SCRIPT --help shows them."
  [[ -n $DRY_RUN ]] || command -v gcloud >/dev/null ||
    die 2 "gcloud is not on the PATH: install the Google Cloud CLI, or look at what would happen with --dry-run."
}

check_type() { # sets version, unless --version gave one. v4 and v5p count TensorCores (8 to a host), v5e and v6e chips.
  local family=${type%-*} size=${type##*-} runtime
  [[ $type =~ ^[a-z0-9]+-[1-9][0-9]{0,4}$ ]] ||
    die 2 "--type $type is not a family and a size, such as v4-32, v5litepod-256, v5p-64 or v6e-256."
  case $family in
    v4) runtime=tpu-ubuntu2204-base ;;
    v5litepod) runtime=v2-alpha-tpuv5-lite ;;
    v5p) runtime=v2-alpha-tpuv5 ;;
    v6e) runtime=v2-alpha-tpuv6e ;;
    v5e) die 2 "gcloud calls this type v5litepod-$size: give --type v5litepod-$size." ;;
    tpu7x | v7x) die 2 "--type $type: TPU7x and later are had through GKE only; see launch/gke_jobset.yaml." ;;
    *) die 2 "--type $type: $family is not known here; v4, v5litepod (v5e), v5p and v6e are." ;;
  esac
  case $family in
    v4 | v5p) ((size % 8 == 0)) || die 2 "--type $type: $family counts TensorCores, a multiple of 8." ;;
    *) [[ $size =~ ^(1|4|8|16|32|64|128|256)$ ]] || die 2 "--type $type: $family has 1, 4, 8, 16, 32, 64, 128 or 256 chips." ;;
  esac
  version=${version:-$runtime}
}

call() { # run a command; in a dry run, print it instead
  local word
  if [[ -z $DRY_RUN ]]; then
    "$@"
    return
  fi
  printf '+' >&2
  for word in "$@"; do # printf %q would backslash every blank of a command for the workers
    if [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
      printf ' %s' "$word" >&2
    else
      # shellcheck disable=SC2001  # quotes in ${word//...} mean something else in bash 3.2
      printf " '%s'" "$(sed "s/'/'\\\\''/g" <<<"$word")" >&2
    fi
  done
  printf '\n' >&2
}

find_resource() { # sets state ('' where there is no such queued resource; a dry run finds none) and found_type; 1: it failed
  local listing
  listing=$(call gcloud compute tpus queued-resources list --zone="$zone" --project="$project" --quiet \
    --format='value(name.basename(),state.state,tpu.nodeSpec[0].node.acceleratorType.basename())') ||
    {
      say "error: gcloud could not list the queued resources of $project in $zone; its message is above." >&2
      return 1
    }
  state=$(awk -F '\t' -v name="$name" '$1 == name { print $2 }' <<<"$listing")
  found_type=$(awk -F '\t' -v name="$name" '$1 == name { print $3 }' <<<"$listing")
}

need_active() {
  find_resource
  [[ $state == ACTIVE || -n $DRY_RUN ]] || die 2 "$name is ${state:-not there}, not ACTIVE; launch/tpu_create.sh makes it so."
}

list_nodes() { # gcloud names the slices of a request for several NAME-0, NAME-1, ...
  local slice
  if ((slices == 1)); then
    say "$name"
  else
    for ((slice = 0; slice < slices; slice++)); do say "$name-$slice"; done
  fi
}

on_node() { # NODE WORKER COMMAND: run it in the home folder of a worker of one slice ('all': of every worker)
  local flags=()
  read -r -a flags <<<"${GCLOUD_SSH_FLAGS:-}"
  call gcloud compute tpus tpu-vm ssh "$1" --zone="$zone" --project="$project" --quiet --worker="$2" \
    ${flags[@]+"${flags[@]}"} --command="$3" </dev/null
}

on_workers() { # COMMAND: run it on every worker of every slice; fails where one of them fails
  local node failed=0
  for node in $(list_nodes); do on_node "$node" all "$1" || failed=$?; done
  return "$failed"
}

ask_workers() { # VERB: what every worker's tpu_worker.sh answers, one line for each
  on_workers "if [ -e $WORKER ]; then bash $WORKER $1; else echo \"mim_jax-worker \$(hostname) not-set-up\"; fi"
}
