#!/usr/bin/env bash
# One worker's side of the tpu_*.sh scripts, which call it over ssh: tpu_worker.sh setup|start|status|stop|check-idle
#   setup                   packages into ~/mim_jax_venv
#   start TRIES COMMAND...  COMMAND under launch/babysit.py, detached; its output goes to ~/mim_jax_run/log
#   status                  one line: running, ended STATUS, stopped, gone, idle or not-set-up
#   stop                    SIGTERM, then wait until it has saved and ended
set -euo pipefail

CODE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$HOME/mim_jax_venv
RUN=$HOME/mim_jax_run # command, pid (of babysit.py), status (once it has ended), stopped (by tpu_stop.sh), log
STOP_SECONDS=${STOP_SECONDS:-300}

say() { printf 'mim_jax-worker %s %s\n' "$(hostname)" "$*"; }

die() { # STATUS SENTENCE
  printf 'error: %s: %s\n' "$(hostname)" "$2" >&2
  exit "$1"
}

is_alive() { # the pid may belong to something else after a reboot
  local pid
  [[ ! -e $RUN/status && -s $RUN/pid ]] || return 1
  pid=$(<"$RUN/pid")
  tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q 'launch/babysit\.py'
}

describe() {
  if is_alive; then
    echo running
  elif [[ -e $RUN/stopped ]]; then
    echo stopped
  elif [[ -s $RUN/status ]]; then
    echo "ended $(<"$RUN/status")"
  elif [[ ! -e $VENV/.ready ]]; then
    echo not-set-up
  elif [[ -e $RUN/pid ]]; then
    echo gone
  else
    echo idle
  fi
}

setup() {
  # The images of v4 to v6e have Python 3.10 (Ubuntu 22.04) and jax needs 3.11: uv brings it, and installs the packages.
  local uv=$HOME/mim_jax_uv/bin/uv files=(-r requirements.txt) versions
  cd "$CODE"
  python3 -m pip install --quiet --target "$HOME/mim_jax_uv" --upgrade uv ||
    die 1 'pip could not install uv; is there a way to PyPI from this machine?'
  rm -f "$VENV/.ready"
  [[ ! -e requirements-gcs.txt ]] || files+=(-r requirements-gcs.txt)
  "$uv" venv --quiet --allow-existing --python 3.11 "$VENV"
  "$uv" pip install --quiet --python "$VENV/bin/python" --constraint launch/constraints.txt "${files[@]}" 'jax[tpu]'
  "$uv" pip install --quiet --python "$VENV/bin/python" --no-deps --editable .
  versions=$("$VENV/bin/python" -c 'from importlib.metadata import version as v; print("jax", v("jax"), "libtpu", v("libtpu"))')
  touch "$VENV/.ready"
  say "set up: $versions"
}

start() { # TRIES COMMAND...
  local wanted waited=0
  [[ -e $VENV/.ready ]] || die 2 'not set up; launch/tpu_setup.sh does that.'
  printf -v wanted '%q ' "${@:2}"
  if is_alive; then
    [[ $(<"$RUN/command") == "$wanted" ]] || die 2 "another command runs here: $(<"$RUN/command"); launch/tpu_stop.sh ends it."
    say 'running already: nothing to start.'
    return
  fi
  mkdir -p "$RUN"
  rm -f "$RUN/pid" "$RUN/status" "$RUN/stopped"
  printf '%s' "$wanted" >"$RUN/command"
  printf '== %s: %s\n' "$(date -u +%FT%TZ)" "$wanted" >>"$RUN/log"
  setsid nohup bash "${BASH_SOURCE[0]}" supervise "$@" </dev/null >>"$RUN/log" 2>&1 &
  until [[ -s $RUN/pid ]]; do
    ((waited++ < 100)) || die 1 "it did not start within 10 s; see $RUN/log."
    sleep 0.1
  done
  say 'started.'
}

supervise() { # TRIES COMMAND...: what start leaves behind. The pid is babysit.py's own, so that a signal reaches it.
  local status=0
  cd "$CODE"
  export PATH=$VENV/bin:$PATH
  # shellcheck disable=SC2016  # expanded by the inner shell
  bash -c 'echo $$ >"$0" && exec "$@"' "$RUN/pid" python launch/babysit.py --tries "$1" -- "${@:2}" || status=$?
  echo "$status" >"$RUN/status"
}

stop() {
  local waited=0
  if is_alive; then
    touch "$RUN/stopped"
    kill -TERM "$(<"$RUN/pid")"
    while is_alive; do
      ((waited++ < STOP_SECONDS * 2)) || die 1 "still saving after $STOP_SECONDS s; look again later."
      sleep 0.5
    done
  fi
  say "$(describe)"
}

case ${1:-} in
  setup | stop) "$1" ;;
  start | supervise) "$@" ;;
  status) say "$(describe)" ;;
  check-idle) ! is_alive || die 2 'a run is alive here; end it first with launch/tpu_stop.sh.' ;;
  *) die 2 'tpu_worker.sh setup|start TRIES COMMAND...|status|stop|check-idle' ;;
esac
