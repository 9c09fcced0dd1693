"""What a run says about itself: TensorBoard and W&B, copies of the journal; a progress line, a parameter table."""

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mim_jax.errors import ConfigError
from mim_jax.parallel.hosts import is_first
from mim_jax.parallel.rules import flatten_with_paths
from mim_jax.paths import is_bucket, open_path, replace_file
from mim_jax.training.journal import Journal, Memory, Uploads


class TensorBoard:
    """TensorBoard event files through tensorboardX, which needs no TensorFlow.

    For a bucket they are written here and copied: tensorboardX's own writer for buckets hangs the run after one failure.
    """

    def __init__(self, workdir: str | Path, resume_step: int | None = None, check: Callable[[], None] = lambda: None):
        from tensorboardX import SummaryWriter  # imported late: a run without TensorBoard need not load protobuf

        self._folder, self._copies, local = open_path(workdir) / 'tensorboard', None, None
        if is_bucket(self._folder):
            self._copies = tempfile.TemporaryDirectory()
            self._uploads, local = Uploads(self._copy, check), self._copies.name
        # TensorBoard hides earlier events from purge_step on; the step we resume from itself is good.
        purge_step = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(local or str(self._folder), purge_step=purge_step, flush_secs=10)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, int | float | np.number):
                self._writer.add_scalar(key, float(value), step)
        if self._copies:
            self._uploads.changed()

    def flush(self) -> None:
        """Copies what tensorboardX's thread has written by now; the last events come with `close`."""
        if self._copies:
            self._uploads.now()

    def close(self) -> None:
        self._writer.close()
        if self._copies:
            with self._copies:  # and gone
                self._uploads.now()

    def _copy(self) -> None:
        self._writer.flush()
        for file in Path(self._copies.name).iterdir():
            replace_file(self._folder / file.name, file.read_bytes())


class WeightsAndBiases:
    """W&B, when `log.wandb` names a project. The workdir keeps the run's id: a resumed run goes on in the same plot.

    Raises ConfigError when wandb is not installed.
    """

    def __init__(self, workdir: str | Path, project: str, config: Mapping[str, Any] | None = None):
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(f"log.wandb='{project}' needs wandb: pip install wandb, or set log.wandb=''.") from error
        id_file = open_path(workdir) / 'wandb_id.txt'
        run_id = id_file.read_text().strip() if id_file.exists() else None
        local = None if is_bucket(workdir) else str(workdir)  # its own files; None: where it likes
        self._run = wandb.init(project=project, id=run_id, resume='allow', dir=local, config=config)
        replace_file(id_file, self._run.id + '\n')
        # W&B refuses steps that go back, as they do after a resume; with our own axis it takes them.
        self._run.define_metric('step')
        self._run.define_metric('*', step_metric='step')

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log({**values, 'step': step})

    def flush(self) -> None:
        """W&B sends by itself."""

    def close(self) -> None:
        self._run.finish()


class Loggers:
    """The journal and, as configured, its copies. A workdir has one writer: other hosts have a Memory for a journal.

    check: asked before a bucket's files are written; raises where another run has the folder.
    """

    def __init__(
        self, workdir, resume_step=None, tensorboard: bool = True, wandb: str = '', config=None, check=lambda: None
    ):
        writes = is_first()
        self.journal = Journal(workdir, resume_step, check) if writes else Memory()
        self._writers: list[Any] = [self.journal]
        if tensorboard and writes:
            self._writers.append(TensorBoard(workdir, resume_step, check))
        if wandb and writes:
            self._writers.append(WeightsAndBiases(workdir, wandb, config))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        for writer in self._writers:
            writer.write(step, values)

    def flush(self) -> None:
        """Return when all that was written is where others read it."""
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        with contextlib.ExitStack() as closing:  # each, whatever the others raise
            for writer in self._writers:
                closing.callback(writer.close)


class Deferred:
    """Fetches a step's logs while the next step runs, so that reading a number never leaves the device idle."""

    def __init__(self):
        self._pending: tuple[int, dict[str, jax.Array]] | None = None

    def push(self, step: int, device_logs: dict[str, jax.Array]) -> tuple[int, dict[str, float]] | None:
        """Take the scalars of `step`, just dispatched; return those of the step pushed before, None the first time."""
        for value in device_logs.values():
            value.copy_to_host_async()
        previous = self.flush()
        self._pending = (step, device_logs)
        return previous

    def flush(self) -> tuple[int, dict[str, float]] | None:
        """Wait for the pending step and return (step, values); None when nothing is pending."""
        if self._pending is None:
            return None
        (step, logs), self._pending = self._pending, None
        return step, {key: float(value) for key, value in jax.device_get(logs).items()}


def check_finite(values: Mapping[str, float]) -> str | None:
    """Name the first value that is NaN or infinite, causes first: loss terms, loss/total, grad_norm, the others."""

    def rank(key: str) -> int:
        if key == 'loss/total':
            return 1
        return 0 if key.startswith('loss/') else 2 if key == 'grad_norm' else 3

    return next((key for key in sorted(values, key=rank) if not math.isfinite(values[key])), None)


def format_duration(seconds: float) -> str:
    """45 -> '45s', 185 -> '3m05s', 40000 -> '11h06m', 200000 -> '2d07h'."""
    seconds = round(seconds)
    if seconds < 60:
        return f'{seconds}s'
    if seconds < 3600:
        return f'{seconds // 60}m{seconds % 60:02d}s'
    if seconds < 86400:
        return f'{seconds // 3600}h{seconds % 3600 // 60:02d}m'
    return f'{seconds // 86400}d{seconds % 86400 // 3600:02d}h'


def progress_line(step: int, total: int, values: Mapping[str, float]) -> str:
    """One line for the person who watches. `values` has the journal's keys; what is absent is left out."""
    terms = {key[5:]: value for key, value in values.items() if key.startswith('loss/') and key != 'loss/total'}
    parts = [f'step {step:>{len(str(total))}}/{total}']
    if 'epoch' in values:
        parts.append(f'epoch {values["epoch"]:.2f}')
    if 'loss/total' in values:
        listed = ', '.join(f'{name} {value:.4g}' for name, value in terms.items())
        parts.append(f'loss {values["loss/total"]:.4g}' + (f' ({listed})' if len(terms) > 1 else ''))
    if 'lr' in values:
        parts.append(f'lr {values["lr"]:.3g}')
    if 'images_per_second' in values:
        parts.append(f'{values["images_per_second"]:.5g} img/s')
    if 'data_wait_ms' in values:
        share = f' ({values["data_wait_share"]:.0%})' if 'data_wait_share' in values else ''
        parts.append(f'data wait {values["data_wait_ms"]:.1f} ms{share}')
    parts += [f'{key} {values[key]:.1%}' for key in ('mfu', 'hfu') if key in values]
    if 'eta_seconds' in values:
        parts.append(f'eta {format_duration(values["eta_seconds"])}')
    return '  '.join(parts)


def parameter_table(params: Mapping[str, Any], shardings: Any = None, decay_mask: Any = None) -> str:
    """Path, shape, dtype, sharding and weight decay of every parameter, then totals per role and for all.

    `params`: {role: tree} of arrays or ShapeDtypeStructs. `shardings` (NamedSharding) and `decay_mask` (bool) have the
    same structure; None leaves their column out. Sizes in millions of parameters and MB (1e6 bytes).
    """
    leaves, specs, decayed = (dict(flatten_with_paths(tree)) for tree in (params, shardings, decay_mask))
    header = ['parameter', 'shape', 'dtype'] + ['sharding'] * bool(specs) + ['decay'] * bool(decayed)
    rows = [header]
    for path, leaf in leaves.items():
        row = [path, 'x'.join(map(str, leaf.shape)) or 'scalar', str(leaf.dtype)]
        row += [str(tuple(specs[path].spec))] if specs else []
        row += ['yes' if decayed[path] else 'no'] if decayed else []
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

    def describe(name: str, paths: Iterable[str]) -> str:
        chosen = {path: leaves[path] for path in paths}
        count = sum(math.prod(leaf.shape) for leaf in chosen.values())
        size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in chosen.values())
        text = f'{name}: {len(chosen)} arrays, {count / 1e6:.2f} M parameters, {size / 1e6:.1f} MB'
        if specs:
            shard_shapes = {path: specs[path].shard_shape(leaf.shape) for path, leaf in chosen.items()}
            size = sum(math.prod(shard_shapes[path]) * leaf.dtype.itemsize for path, leaf in chosen.items())
            text += f' ({size / 1e6:.1f} MB per device)'
        if decayed:
            text += f', {sum(math.prod(chosen[path].shape) for path in chosen if decayed[path]) / 1e6:.2f} M decayed'
        return text

    totals = [describe(role, dict(flatten_with_paths({role: tree}))) for role, tree in params.items()]
    return '\n'.join([*lines, '', *totals, describe('total', leaves)])
