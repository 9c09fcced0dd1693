"""Start a command again until it has finished: python launch/babysit.py [--tries 20] [--wait 10] -- python -m mim_jax.train ...

Again after 75 (interrupted, or another host is gone), 1 (a crash) and death by a signal; never after 0 (finished), 2
(something to mend), 3 (a value that is not finite) or any other status. It gives up after --tries failures in a row without
a new step in the workdir's journal, or after --crashes crashes at one step; where the journal is not to be seen from here
(in a bucket), a try that lasted --long counts as progress. SIGTERM and SIGINT are passed on, and then
nothing starts again. Runs on every host of a pod, or around launch/local_pod.py. Exit status: the command's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

AGAIN, CRASH = 75, 1
PAUSE = 0.1
LONGEST = 300  # seconds between two tries
TAIL = 1 << 16  # bytes of the journal to look for its last step in
MEANINGS = {
    0: 'finished',
    1: 'a crash',
    2: 'something to mend',
    3: 'a value is not finite',
    75: 'interrupted, or a host lost',
}


def main(arguments: Sequence[str]) -> int:
    """Supervise. Returns the exit status of the last try."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tries', type=int, default=20, help='failures in a row without a new step (20)')
    parser.add_argument('--crashes', type=int, default=3, help='crashes at the same step (3)')
    parser.add_argument(
        '--wait', type=float, default=10, help=f'seconds before the next try, doubled up to {LONGEST} (10)'
    )
    parser.add_argument('--long', type=float, default=900, help='seconds of a try that made progress, unseen (900)')
    parser.add_argument('--workdir', type=Path, help="the run's folder, to see its steps (the command's own --workdir)")
    parser.add_argument('command', nargs=argparse.REMAINDER, help='after --')
    options = parser.parse_args(arguments)
    command = options.command[1:] if options.command[:1] == ['--'] else options.command
    if not command:
        parser.error('what shall run? Give the command after --, such as: -- python -m mim_jax.train --config ...')
    if shutil.which(command[0]) is None:
        parser.error(f'there is no program {command[0]}.')
    sitter = Babysitter(command, options.workdir or find_workdir(command))
    return sitter.sit(options.tries, options.crashes, options.wait, options.long)


class Babysitter:
    """One command, and the signals that end it for good."""

    def __init__(self, command: Sequence[str], workdir: Path | None):
        self.command, self.workdir = command, workdir
        self._process: subprocess.Popen | None = None
        self._told = False  # to stop
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._pass_on)

    def sit(self, tries: int, crashes: int, wait: float, long: float) -> int:
        """Try until there is nothing to try any more. Returns the exit status."""
        failures = crashed = 0
        before = self.read_step()
        while True:
            start = time.monotonic()
            status = self.run()
            step, lasted = self.read_step(), time.monotonic() - start
            if step != before or (step is None and lasted >= long):
                failures = crashed = 0
            failures, before = failures + 1, step
            crashed += status == CRASH
            at = '' if step is None else f' at step {step}'
            said = f'ended with {status} ({describe(status)}){at} after {lasted:.0f} s'
            if self._told:
                say(f'{said}; told to stop, so not again.')
            elif not is_passing(status):
                say(f'{said}.')
            elif crashed >= crashes and self.workdir is not None:
                say(f'{said}; that is crash {crashed} there: given up.')
            elif failures >= tries:
                say(f'{said}; failure {failures} in a row without a new step: given up.')
            else:
                pause = min(LONGEST, wait * 2 ** (failures - 1))
                say(f'{said}; again in {pause:.0f} s (failure {failures} of {tries} without a new step).')
                self.rest(pause)
                if not self._told:
                    continue
                say('told to stop, so not again.')
            return status if status >= 0 else 128 - status

    def run(self) -> int:
        """One try. Its own process group, so that Ctrl-C reaches it once."""
        if self._told:
            return AGAIN
        self._process = subprocess.Popen(self.command, process_group=0)
        if self._told:  # the signal came before there was a process to pass it on to
            self._process.terminate()
        return self._process.wait()

    def rest(self, seconds: float) -> None:
        """Sleep, but not through a signal."""
        end = time.monotonic() + seconds
        while not self._told and time.monotonic() < end:
            time.sleep(min(PAUSE, seconds))

    def read_step(self) -> int | None:
        """The last step in the journal; None without one."""
        journal = self.workdir and self.workdir / 'metrics.jsonl'
        if not journal or not journal.is_file():
            return None
        with journal.open('rb') as file:
            file.seek(max(0, os.path.getsize(journal) - TAIL))
            lines = file.read().split(b'\n')
        for line in reversed(lines):
            try:
                return json.loads(line)['step']
            except (ValueError, TypeError, KeyError):  # cut off, or of another kind
                continue
        return None

    def _pass_on(self, number: int, frame: object) -> None:
        self._told = True
        if self._process is not None:
            self._process.send_signal(number)


def is_passing(status: int) -> bool:
    """Whether another try may go better. Statuses above 128 are signals, as shells tell them."""
    return status in (CRASH, AGAIN) or status < 0 or status > 128


def describe(status: int) -> str:
    """What an exit status means."""
    number = -status if status < 0 else status - 128
    if number > 0:
        return signal.strsignal(number) or 'a signal'
    return MEANINGS.get(status, 'not a status of mim_jax')


def find_workdir(command: Sequence[str]) -> Path | None:
    """The --workdir of the command; None where it has none on this machine's disks."""
    for argument, following in zip(command, [*command[1:], ''], strict=True):
        name, _, value = argument.partition('=')
        found = (value or following) if name == '--workdir' else ''
        if found and '://' not in found:
            return Path(found)
    return None


def say(sentence: str) -> None:
    """One line, at once."""
    print(f'babysit: {sentence}', flush=True)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
