"""Running a study: every row is a few of the commands that a user would give, in processes of their own."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mim_jax.command import INTERRUPTED
from mim_jax.errors import UserError
from mim_jax.study.plan import Arm, Study
from mim_jax.study.rows import append_row, define, describe_events, find_done, is_place, read_rows
from mim_jax.training.journal import JOURNAL, read_events

PATIENCE = 0.2  # seconds between two looks at what runs
Key = tuple[str, int]


class Interrupted(Exception):
    """The study is to end, or a command said that it was interrupted."""


class Failed(Exception):
    """A command of a row ended with an error."""


def select_rows(study: Study, done: set[Key], arms: Sequence[str], seeds: Sequence[int]) -> list[Key]:
    """What is to be run, in order: a seed of every arm before the next seed, so that arms can soon be compared."""
    unknown = set(arms) - {arm.name for arm in study.arms}
    if unknown:
        raise UserError(f"{study.name} has no arm '{', '.join(sorted(unknown))}'; see --dry-run for its arms.")
    wanted = [arm.name for arm in study.arms if not arms or arm.name in arms]
    return [(arm, seed) for seed in seeds or study.seeds for arm in wanted if (arm, seed) not in done]


def split_cores(jobs: int) -> list[set[int]]:
    """The cores of this process, shared out evenly among so many jobs. Raises UserError."""
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= jobs <= len(cores):
        raise UserError(f'--jobs {jobs} must be from 1 to {len(cores)}, the cores that there are.')
    return [set(cores[job::jobs]) for job in range(jobs)]


class Runner:
    """Runs rows, several at a time.

    extra: '--config.key=value' of the command line, for every command; deadline: of time.monotonic(), after which no row is
    begun. What a row's commands print is in commands.log of its folder.
    """

    def __init__(self, study: Study, workdir: Path, results: Path, extra: Sequence[str], deadline: float):
        self.study, self.workdir, self.results, self.extra, self.deadline = study, workdir, results, extra, deadline
        self.settings = [override for override in extra if not is_place(override)]
        self.failures: dict[Key, str] = {}
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._crash: Exception | None = None
        self._runs: dict[Key, threading.Lock] = {}
        self._waiting: list[Key] = []
        self._busy: set[Key] = set()

    def remaining(self, arms: Sequence[str], seeds: Sequence[int]) -> list[Key]:
        """What is to be run. Raises UserError."""
        done = find_done(read_rows(self.results, self.study.name), self.study, self.settings, self.results)
        return select_rows(self.study, done, arms, seeds)

    def run(self, rows: Sequence[Key], jobs: int, report: Callable[[str], None]) -> int:
        """All rows. Returns an exit status: 1 where a row failed, 75 where some are left."""
        self._waiting, ended = list(rows), []
        for cores in split_cores(jobs):
            ended.append(threading.Event())
            threading.Thread(target=self._work, args=(cores, report, ended[-1])).start()
        try:
            wait_for(ended)
        except KeyboardInterrupt:
            self._stopping.set()
            wait_for(ended)
            raise
        if self._crash:
            raise self._crash
        if self.failures:
            return 1
        return INTERRUPTED if self._waiting else 0

    def _work(self, cores: set[int], report: Callable[[str], None], ended: threading.Event) -> None:
        try:
            self._work_off(cores, report)
        except Exception as error:  # a fault of ours: raised again in the main thread
            self._crash = error
            self._stopping.set()
        finally:
            ended.set()

    def _work_off(self, cores: set[int], report: Callable[[str], None]) -> None:
        while (key := self._take()) is not None:
            arm, seed = key
            begun = time.monotonic()
            report(f'{arm}, seed {seed}: begun')
            try:
                row = self._run_row(self.study.arm(arm), seed, cores)
            except Interrupted:
                self._finish(key, left=True)
                self._stopping.set()
                return
            except Failed as error:
                self.failures[key] = str(error)
                report(f'{arm}, seed {seed}: failed, {error}')
                self._finish(key)
                continue
            with self._changed:
                append_row(self.results, row)
            shown = ', '.join(f'{name} {row["metrics"][name]:.2f}' for name in self._shown(row))
            report(f'{arm}, seed {seed}: {shown} ({time.monotonic() - begun:.0f} s)')
            self._finish(key)

    def _shown(self, row: dict[str, Any]) -> list[str]:
        return [name for name in self.study.shown if name in row['metrics']]

    def _take(self) -> Key | None:
        """The next row whose teacher is not being made; None when none is left to begin."""
        with self._changed:
            while True:
                if self._stopping.is_set() or not self._waiting or time.monotonic() > self.deadline:
                    return None
                for key in self._waiting:
                    needed = (self.study.arm(key[0]).needs, key[1])
                    if needed not in self._busy and needed not in self._waiting:
                        self._waiting.remove(key)
                        self._busy.add(key)
                        return key
                self._changed.wait(PATIENCE)

    def _finish(self, key: Key, left: bool = False) -> None:
        with self._changed:
            self._busy.discard(key)
            if left:
                self._waiting.insert(0, key)
            self._changed.notify_all()

    def _run_row(self, arm: Arm, seed: int, cores: set[int]) -> dict[str, Any]:
        """Pre-train, test. Returns the line for the results."""
        row: dict[str, Any] = {'study': self.study.name, 'arm': arm.name, 'seed': seed}
        row |= {'defined': define(self.study, arm, self.settings), 'metrics': {}, 'seconds': {}}
        run = self._train(self.study.arm(arm.from_scratch or arm.name), seed, cores)
        summary = json.loads((run / 'summary.json').read_text())
        if not arm.from_scratch:
            row |= describe_events(read_events(run / JOURNAL), self.study.kept)
            row['seconds']['train'] = summary['wall_seconds']
        row |= {name: summary[name] for name in ('versions', 'devices', 'cpus', 'commit', 'total_steps')}
        for test in self.study.tests:
            folder = self._folder(arm, seed) / f'test_{test.name}'
            line = ['mim_jax.evaluate', '--checkpoint', str(run), '--config', test.config, '--workdir', str(folder)]
            own = arm.overrides if arm.from_scratch else ()
            line += [*test.overrides, *own, *self.extra, f'--config.seed={seed}']
            begun = time.monotonic()
            self._call([*line, *(['--from-scratch'] if arm.from_scratch else [])], self._folder(arm, seed), cores)
            found = json.loads((folder / 'results.json').read_text())['metrics']
            if test.metric not in found:
                raise Failed(f'{test.config} has no {test.metric}, but {", ".join(found)}')
            row['metrics'][test.name] = found[test.metric]
            row['seconds'][test.name] = time.monotonic() - begun
        return row

    def _train(self, arm: Arm, seed: int, cores: set[int]) -> Path:
        """The folder of a finished pre-training; one that is there is not run again."""
        run = self._folder(arm, seed) / 'run'
        with self._changed:
            lock = self._runs.setdefault((arm.name, seed), threading.Lock())
        with lock:
            if is_finished(run):
                return run
            line = ['mim_jax.train', '--config', arm.config, '--workdir', str(run), *self.study.shared, *arm.overrides]
            if arm.teacher:
                line.append(f'--config.{arm.teacher[1]}={self._export(self.study.arm(arm.teacher[0]), seed, cores)}')
            self._call([*line, *self.extra, f'--config.seed={seed}'], self._folder(arm, seed), cores)
        return run

    def _export(self, arm: Arm, seed: int, cores: set[int]) -> Path:
        """The encoder of an arm's run in transformers' form: the file that a frozen teacher is read from."""
        run, target = self._train(arm, seed, cores), self._folder(arm, seed) / 'encoder'
        with self._runs[arm.name, seed]:
            if not target.exists():
                line = ['mim_jax.export', '--checkpoint', str(run), '--format', 'hf', '--out', str(target)]
                self._call(line, self._folder(arm, seed), cores)
        return target

    def _folder(self, arm: Arm, seed: int) -> Path:
        return self.workdir / self.study.name / re.sub(r'[^A-Za-z0-9.+-]+', '_', arm.name) / f'seed_{seed}'

    def _call(self, line: Sequence[str], folder: Path, cores: set[int]) -> None:
        """One command on these cores. Raises Failed or Interrupted."""
        if self._stopping.is_set():
            raise Interrupted
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / 'commands.log'
        with log.open('a') as file:
            print(f'$ python -m {shlex.join(line)}', file=file, flush=True)
            child = subprocess.Popen([sys.executable, '-m', *line], stdout=file, stderr=subprocess.STDOUT)
            os.sched_setaffinity(child.pid, cores)  # before it has threads, which inherit them
            asked = False
            while child.poll() is None:
                if self._stopping.is_set() and not asked:
                    child.terminate()  # it saves, and ends
                    asked = True
                time.sleep(PATIENCE)
        if child.returncode == INTERRUPTED or (asked and child.returncode):
            raise Interrupted
        if child.returncode:
            words = log.read_text(errors='replace').strip().splitlines()
            raise Failed(f'status {child.returncode}: {words[-1]} ({log})')


def wait_for(events: Sequence[threading.Event]) -> None:
    """Until all are set. Not Thread.join: Python 3.11 takes a thread for ended whose join a signal interrupts (bpo-45274)."""
    while not all(event.is_set() for event in events):
        time.sleep(PATIENCE)


def is_finished(run: Path) -> bool:
    """Whether a pre-training was done to its end."""
    summary = run / 'summary.json'
    return summary.exists() and json.loads(summary.read_text())['status'] == 'finished'


def write_commands(study: Study, rows: Sequence[Key]) -> str:
    """The rows and how each is trained, for --dry-run."""
    lines = []
    for name, seed in rows:
        arm = study.arm(name)
        words = [arm.config, *study.shared, *arm.overrides] if arm.config else [f'{arm.from_scratch}, from scratch']
        lines.append(f'{name}, seed {seed}: {shlex.join(words)}')
    return '\n'.join(lines)
