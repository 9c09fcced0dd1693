"""The loop: steps, logs one step late, checkpoints, watchers, and an orderly end whatever happens."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import jax

from mim_jax.data.loader import Loader
from mim_jax.errors import NonFiniteLoss
from mim_jax.parallel.agreement import exchange, together
from mim_jax.parallel.hosts import is_first, place, to_global
from mim_jax.paths import replace_file
from mim_jax.recipe import Recipe
from mim_jax.teachers import digest_frozen
from mim_jax.training import perf
from mim_jax.training.assemble import Program
from mim_jax.training.bound import check_bound, check_random_start
from mim_jax.training.checkpoint import Checkpoints
from mim_jax.training.interrupt import Interrupt
from mim_jax.training.loggers import (
    Deferred,
    Loggers,
    check_finite,
    format_duration,
    parameter_table,
    progress_line,
)
from mim_jax.training.optim import decay_mask
from mim_jax.training.requests import Requests
from mim_jax.training.state import TrainState, from_tree, to_tree
from mim_jax.training.workdir import Workdir


@dataclass(frozen=True)
class Watcher:
    """Something that looks at the run now and then: look(state, step) -> metrics to journal.

    period: in optimizer steps, may be fractional; also at the last step; 0: never. untrained: also look at the untrained
    network, once, and journal those values under 'untrained/' in place of 'probe/'.
    """

    look: Callable[[TrainState, int], Mapping[str, float]]
    period: float
    untrained: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a session ended: status 'finished' or 'interrupted'; steps done; last value of every metric."""

    status: str
    steps: int
    metrics: dict[str, Any]


def period_of(epochs: float, recipe: Recipe) -> float:
    """Optimizer steps in a number of epochs, a fraction as it comes; 0 for 0."""
    return epochs * recipe.config.steps_per_epoch


def is_due(done: int, period: float) -> bool:
    """Whether the step that made it `done` steps is the first at or after a multiple of `period`; never for period 0."""
    if not period:
        return False
    return math.floor(done / period + 1e-9) > math.floor((done - 1) / period + 1e-9)


class Session:
    """One process's share of a run: everything between its start and its end. The step function never changes in it.

    Restores the newest readable checkpoint, or starts at step 0. `report` gets every line a person should read.
    With several hosts each has a session. What they do next is a function of what all of them know: the config, the step,
    its logs, and what they exchange. The first one keeps the journal.
    """

    def __init__(self, program: Program, loader: Loader, workdir: Workdir, report: Callable[[str], None] = print):
        self.program, self.loader, self.workdir, self.report = program, loader, workdir, report
        self.recipe, self.config, self.total = program.recipe, program.recipe.config, program.recipe.config.steps
        self.mesh, self.frozen, self.digests = program.mesh, program.frozen, digest_frozen(program.recipe)
        config = self.config
        self.checkpoints = Checkpoints(workdir.checkpoints, config.checkpoint.keep, report=report)
        self.bad_images: Counter[str] = Counter()  # of all hosts, at the last save
        self.state, self.wall_before, self._owed = self._restore()
        step, log = int(self.state.step), config.log
        self.finished = step == self.total  # by earlier sessions: nothing is logged any more
        copies = (False, '') if self.finished else (log.tensorboard, log.wandb)
        said = (workdir.path, step, *copies, config.to_dict(), workdir.check)
        self.loggers = together('the journal', lambda: Loggers(*said))
        self._started = self._saved_at = time.monotonic()
        self._indices: dict[int, list[int]] = {}

    @property
    def wall_seconds(self) -> float:
        """Time spent on this run, earlier sessions up to their last checkpoint included."""
        return self.wall_before + time.monotonic() - self._started

    def describe(self) -> str:
        """The parameter table: path, shape, dtype, sharding, decay, and totals."""
        params = self.program.abstract.params
        placed = jax.tree.map(lambda leaf: leaf.sharding, params)
        return parameter_table(params, placed, decay_mask(params, self.config.optim.decay_exclude, self.recipe.decay))

    def run(self, watchers: Sequence[Watcher] = ()) -> Outcome:
        """Train to the last step, or until a signal asks to stop. Raises NonFiniteLoss, CheckpointError, DataError."""
        if self.finished:
            self.report('Nothing is left to do: this run has finished.')
            return Outcome('finished', self.total, self.loggers.journal.last_values())
        with Interrupt() as interrupt:
            self._requests = Requests(self.mesh, interrupt)
            step = self._compile()
            if not self._requests.agree():
                self._watch_untrained(watchers)
                self._requests.agree()
            return self._train(step, watchers)

    def close(self) -> None:
        """Release files and threads; safe after any failure of `run`."""
        try:
            self.loggers.close()
        finally:
            self.checkpoints.close()

    # -- start ---------------------------------------------------------------------------------------------------------
    def _restore(self) -> tuple[TrainState, float, bool]:
        """The state, wall seconds spent before, and whether the watchers still owe a look at it."""
        restored = self.checkpoints.restore(to_tree(self.program.abstract))
        self._untrained = restored is None  # with imported weights a run is restored at step 0, and is not
        if restored is None:
            together('the workdir', lambda: check_random_start(self.workdir.path))
            self.report(f'Starting {self.recipe.name} at step 0 of {self.total}.')
            return self.program.init(), 0.0, False
        tree, step, extra = restored
        together('the workdir', lambda: check_bound(self.workdir.path, step, extra, self.loader.dataset, self.digests))
        key = place(jax.random.key(self.config.seed), self.program.abstract.root_key.sharding)
        self.report(f'Resuming {self.recipe.name} at step {step} of {self.total}, from {self.workdir.checkpoints}.')
        if is_first():  # the counts of all hosts are added up
            self.loader.bad_images.update(extra['bad_images'])
        return from_tree(tree, self.program.abstract.replace(root_key=key)), extra['wall_seconds'], extra['owed']

    def _compile(self) -> Callable:
        start = time.monotonic()
        traced = self.program.step.trace(self.state, self.frozen, self.program.inputs(), *self._requests.carry(False))
        self.flops = perf.count_flops(traced.jaxpr)
        compiled = traced.lower().compile()
        memory = compiled.memory_analysis()
        need = '' if memory is None else f', {memory.temp_size_in_bytes / 2**20:.0f} MiB of temporaries per device'
        self.report(
            f'Compiled the train step in {format_duration(time.monotonic() - start)}: '
            f'{self.flops / self.config.batch_size / 1e9:.3g} GFLOP per image{need}.'
        )
        return compiled

    def _watch_untrained(self, watchers: Sequence[Watcher]) -> None:
        wanted = [w for w in watchers if w.untrained and w.period]
        seen = any(key.startswith('untrained/') for key in self.loggers.journal.last_values())
        if not wanted or exchange('untrained', seen)[0]:  # the first host's journal knows
            return
        state = self.state if self._untrained else self.program.untrained()
        for watcher in wanted:
            values = {key.replace('probe/', 'untrained/'): v for key, v in watcher.look(state, 0).items()}
            self._journal(0, values)

    # -- steps ---------------------------------------------------------------------------------------------------------
    def _train(self, step: Callable, watchers: Sequence[Watcher]) -> Outcome:
        config, first = self.config, int(self.state.step)
        self._deferred, self._meter = Deferred(), perf.Meter(config.batch_size, self.total)
        done = first
        if self._owed:
            self._look_up(done, watchers)
        with contextlib.closing(self.loader.batches(first, self.total)) as batches:
            while done < self.total and not self._requests.stop:
                local = self._next_batch(batches)
                if local is None:
                    break
                self._indices = {done: self._indices.get(done, []), done + 1: local['index'].tolist()}
                batch = to_global(self.mesh, {name: local[name] for name in self.recipe.inputs})
                self.state, logs = step(self.state, self.frozen, batch, *self._requests.carry(self._time_to_save()))
                done += 1
                self._meter.step()
                self._record(self._deferred.push(done, logs))
                self._look_up(done, watchers)
        self._record(self._deferred.flush())
        self._save(done)
        self.checkpoints.wait()
        status = 'finished' if done == self.total else 'interrupted'
        return Outcome(status, done, self.loggers.journal.last_values())

    def _next_batch(self, batches: Iterator[dict]) -> dict | None:
        """None when a signal went to the whole process group, as a scheduler's may, and the loader's workers died of it."""
        try:
            with self._meter.wait():
                return next(batches)
        except Exception as error:
            if not self._requests.stop:
                raise
            self.report(f'The loader stopped with the signal ({type(error).__name__}: {error}).')
            return None

    def _look_up(self, done: int, watchers: Sequence[Watcher]) -> None:
        """Watch and save where it is time; the logs are checked first, so that no bad state is ever saved.

        After a signal nobody looks any more, as there may be seconds left to save; the next session owes that look.
        """
        save = self._save_due(done)
        due = [w for w in watchers if w.period and (is_due(done, w.period) or done == self.total)]
        if not save and not due:
            return
        self._record(self._deferred.flush())
        with self._meter.pause():
            self._owed = bool(due)
            for watcher in due:
                if self._requests.agree() and done < self.total:  # after the last step no session would make up for it
                    return
                self._journal(done, watcher.look(self.state, done))
            self._owed = False
            if save:  # last: a run that resumes here never looks again, so what was seen must be in the journal by now
                self._save(done)

    def _record(self, fetched: tuple[int, dict[str, float]] | None) -> None:
        """Look at one step's logs, one step late: stop on a value that is not finite, log where it is time."""
        if fetched is None:
            return
        done, values = fetched
        values = self._requests.take(values)
        culprit = check_finite(values)
        if culprit is not None:
            self._stop_on(culprit, done, values)
        if done % self.config.log.every_steps and done != self.total:
            return
        rates = self._meter.read(done)
        if rates:
            devices = self.mesh.devices.flatten().tolist()
            used = perf.mfu(self.flops, rates['images_per_second'], self.config.batch_size, devices)
            name = 'mfu' if self.config.encoder.remat == 'none' else 'hfu'  # what is computed twice was counted twice
            rates |= {} if used is None else {name: used}
        values = {'epoch': done / self.config.steps_per_epoch, **values, **rates}
        self.loggers.write(done, values)
        self.report(progress_line(done, self.total, values))

    def _stop_on(self, culprit: str, done: int, values: Mapping[str, float]) -> None:
        path = self.workdir.path / f'nonfinite_step_{done}.json'
        report = {'step': done, 'term': culprit, 'values': {k: str(v) for k, v in values.items()}}
        report['index'] = list(chain.from_iterable(exchange('indices', self._indices[done])))
        replace_file(path, json.dumps(report, indent=2) + '\n')
        self.checkpoints.wait()  # one may be on its way
        kept = self.checkpoints.latest()
        raise NonFiniteLoss(
            f'{culprit} became {values[culprit]} at step {done}; nothing after that was saved. The ids of the batch are in '
            f'{path}. The newest checkpoint is {"none" if kept is None else f"step {kept}"}: lower optim.base_lr, set '
            'optim.clip_norm, or use dtype float32, in a new --workdir.'
        )

    def _journal(self, done: int, values: Mapping[str, float]) -> None:
        if values:
            self.loggers.write(done, {'epoch': done / self.config.steps_per_epoch, **values})
            listed = '  '.join(f'{key} {value:.2f}' for key, value in values.items())
            self.report(f'step {done:>{len(str(self.total))}}/{self.total}  {listed}')

    # -- checkpoints ---------------------------------------------------------------------------------------------------
    def _save_due(self, done: int) -> bool:
        every = self.config.checkpoint.every_steps
        if (every and done % every == 0) or self._is_milestone(done):
            return True
        return self._requests.save(self._time_to_save())

    def _time_to_save(self) -> bool:
        minutes = self.config.checkpoint.every_minutes
        return bool(minutes) and time.monotonic() - self._saved_at >= 60 * minutes

    def _is_milestone(self, done: int) -> bool:
        return is_due(done, period_of(self.config.checkpoint.milestone_epochs, self.recipe))

    def _save(self, done: int) -> None:
        # The folder is still ours, and what a resumed run does not do again is in the journal.
        together('the journal', lambda: (self.workdir.check(), self.loggers.flush()))
        self.bad_images = sum(map(Counter, exchange('bad images', self.loader.bad_images)), Counter())
        extra = {
            'wall_seconds': self.wall_seconds,
            'owed': self._owed,
            'dataset': self.loader.dataset,
            'frozen': self.digests,
            'bad_images': self.bad_images,
        }
        self.checkpoints.save(done, to_tree(self.state), extra, milestone=self._is_milestone(done))
        self._saved_at = time.monotonic()
        self._requests.saved()
