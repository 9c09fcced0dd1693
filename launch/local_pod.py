"""A pod on this machine: python launch/local_pod.py --processes 4 --devices 2 -- python -m mim_jax.train --config ...

Starts the command in several processes, each a host of one run with CPU devices of its own; they meet on loopback. The
output of each goes to a file, that of host 0 to the terminal too. Signals are passed on. When one fails, the others have
--grace seconds to end by themselves. Exit status: 0 if all ended well, else 2 or 3 if one said so, else 75 (run again) if
one said so or was killed, else 1.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

AGAIN, FINAL = 75, (2, 3)
PAUSE = 0.05
PR_SET_PDEATHSIG = 1  # prctl(2)


def main(arguments: Sequence[str]) -> int:
    """Start, watch, pass on. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--processes', type=int, default=2, help='hosts of the run (2)')
    parser.add_argument('--devices', type=int, default=1, help='CPU devices of each (1)')
    parser.add_argument(
        '--logs', type=Path, help='folder of the output, host_<i>.log (a new one in the temporary folder)'
    )
    parser.add_argument('--grace', type=float, default=60, help='seconds for the others when one has failed (60)')
    parser.add_argument('--dry-run', action='store_true', help='print the commands only')
    parser.add_argument('command', nargs=argparse.REMAINDER, help='after --')
    options = parser.parse_args(arguments)
    command = options.command[1:] if options.command[:1] == ['--'] else options.command
    if not command:
        parser.error('what shall run? Give the command after --, such as: -- python -m mim_jax.train --config ...')
    if shutil.which(command[0]) is None:
        parser.error(f'there is no program {command[0]}.')
    if options.processes < 1 or options.devices < 1:
        parser.error('--processes and --devices are numbers from 1.')
    settings = [place_host(host, options.processes, options.devices) for host in range(options.processes)]
    port = find_port()
    for setting in settings if options.processes > 1 else ():
        setting['MIM_JAX_COORDINATOR'] = f'127.0.0.1:{port}'
    if options.dry_run:
        for setting in settings:
            print(shlex.join(['env', *(f'{name}={value}' for name, value in setting.items()), *command]))
        return 0
    logs = options.logs or Path(tempfile.mkdtemp(prefix='local_pod_'))
    logs.mkdir(parents=True, exist_ok=True)
    print(f'local_pod: {options.processes} processes, their output in {logs}.', flush=True)
    return Pod(command, settings, logs).watch(options.grace)


def place_host(host: int, hosts: int, devices: int) -> dict[str, str]:
    """The environment variables of one host; other XLA flags stay."""
    flags = re.sub(r'--xla_force_host_platform_device_count=\S+', '', os.environ.get('XLA_FLAGS', '')).split()
    flags = ' '.join([*flags, f'--xla_force_host_platform_device_count={devices}'])
    places = {'MIM_JAX_HOSTS': str(hosts), 'MIM_JAX_HOST': str(host)}
    return {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags, **places}


def find_port() -> int:
    """A port of loopback that nobody uses."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def end_with_parent() -> None:
    """Let the kernel send SIGTERM to this process when its parent dies, even by SIGKILL: no pod is left behind."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Pod:
    """The processes of one run. None of them shares this one's terminal signals: each gets a signal once."""

    def __init__(self, command: Sequence[str], settings: Sequence[dict[str, str]], logs: Path):
        self.processes: list[subprocess.Popen] = []
        self._sent: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: self.send(number))
        files = [logs / f'host_{host}.log' for host in range(len(settings))]
        self._shown = files[0].open('ab+')
        self._shown.seek(0, os.SEEK_END)
        for setting, path in zip(settings, files, strict=True):
            with path.open('ab') as output:
                process = subprocess.Popen(
                    command,
                    env=os.environ | setting,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                    preexec_fn=end_with_parent,
                )
            self.processes.append(process)
            for number in self._sent:  # it came before this one was there
                process.send_signal(number)

    def send(self, number: int) -> None:
        """A signal for all that still run."""
        self._sent.append(number)
        for process in self.processes:
            process.send_signal(number)  # does nothing to one that has ended

    def watch(self, grace: float) -> int:
        """Show host 0's output until all have ended. Returns the exit status of the pod."""
        end = float('inf')
        while any(status is None for status in self.poll()):
            self.show()
            if end == float('inf') and any(self.poll()):
                end = time.monotonic() + grace
            if time.monotonic() > end:
                late = [host for host, status in enumerate(self.poll()) if status is None]
                print(f'local_pod: hosts {late} did not end {grace:.0f} s after another one; killed.', flush=True)
                self.send(signal.SIGKILL)
                end = float('inf')
            time.sleep(PAUSE)
        self.show()
        statuses = self.poll()
        if any(statuses):
            print(f'local_pod: exit statuses by host: {statuses}.', flush=True)
        return join_statuses(statuses)

    def poll(self) -> list[int | None]:
        """The exit status of each host, None while it runs."""
        return [process.poll() for process in self.processes]

    def show(self) -> None:
        """Copy what host 0 has said since the last call."""
        sys.stdout.buffer.write(self._shown.read())
        sys.stdout.buffer.flush()


def join_statuses(statuses: Sequence[int]) -> int:
    """The exit status of all: what one has to mend (2, 3) before a reason to try again, before a crash."""
    for final in FINAL:
        if final in statuses:
            return final
    if any(status == AGAIN or status < 0 or status > 128 for status in statuses):
        return AGAIN
    return max(statuses)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
