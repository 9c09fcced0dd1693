"""What a run says about itself: a journal of events, TensorBoard, W&B, a progress line, a parameter table, a summary.

The journal, `metrics.jsonl`, is the record: one JSON object per event, always written. TensorBoard and W&B are copies.
JSON has no NaN, so a value that is not finite is written as the string 'nan', 'inf' or '-inf'; `float()` reads it back.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mim_jax.errors import ConfigError, WorkdirError
from mim_jax.parallel.hosts import is_first
from mim_jax.parallel.rules import flatten_with_paths

JOURNAL = 'metrics.jsonl'


def encode_json(value: Any) -> Any:
    """Make `value` standard JSON: arrays and NumPy scalars become numbers, non-finite floats become strings."""
    if isinstance(value, Mapping):
        return {str(key): encode_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode_json(item) for item in value]
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return encode_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def replace_file(path: str | Path, text: str) -> None:
    """Write a whole file or leave the old one: a reader, or a run killed here, never sees half of it.

    A run has one writer: on every host but the first this does nothing.
    """
    if not is_first():
        return
    path = Path(path)
    temporary = path.with_name(path.name + '.tmp')
    with temporary.open('w', encoding='utf-8') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_summary(path: str | Path, **fields: Any) -> None:
    """Write `fields` to `path` as indented JSON, atomically."""
    replace_file(path, json.dumps(encode_json(fields), indent=2, allow_nan=False) + '\n')


def read_events(path: str | Path) -> list[dict[str, Any]]:
    """Read a journal, oldest event first. A torn last line (the run was killed while writing) is left out.

    Raises WorkdirError when any other line is not a JSON object.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise WorkdirError(f'{path} line {number} is not JSON; delete that line and run again.') from error
        if not isinstance(event, dict):
            raise WorkdirError(f'{path} line {number} is not a JSON object; delete that line and run again.')
        events.append(event)
    return events


class Memory:
    """In place of a Journal on every host but the first: the latest values of this session, and no file."""

    def __init__(self):
        self._last: dict[str, Any] = {}

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self._last.update(encode_json({'step': int(step), **values}))

    def last(self, key: str) -> Any:
        """The latest value of `key`; None when it was never written."""
        return self._last.get(key)

    def last_values(self) -> dict[str, Any]:
        """The latest value of every key."""
        return dict(self._last)

    def close(self) -> None:
        pass


class Journal(Memory):
    """Append-only `metrics.jsonl`: one event per line, on its way to the disk before `write` returns.

    `resume_step` is the step the run goes on from. Events of later steps belong to work that was lost and will be done
    again, so they are dropped, and so is a torn last line. None keeps every whole event. The latest values are those of the
    whole file, earlier sessions included.
    """

    def __init__(self, workdir: str | Path, resume_step: int | None = None):
        super().__init__()
        self.path = Path(workdir) / JOURNAL
        self.path.parent.mkdir(parents=True, exist_ok=True)
        events = [e for e in read_events(self.path) if resume_step is None or e.get('step', 0) <= resume_step]
        replace_file(self.path, ''.join(json.dumps(event) + '\n' for event in events))
        for event in events:
            self._last.update(event)
        self._file = self.path.open('a', encoding='utf-8')

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        event = encode_json({'step': int(step), **values})
        self._file.write(json.dumps(event, allow_nan=False) + '\n')
        self._file.flush()
        self._last.update(event)

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """TensorBoard event files through tensorboardX, which needs no TensorFlow."""

    def __init__(self, workdir: str | Path, resume_step: int | None = None):
        from tensorboardX import SummaryWriter  # imported late: a run without TensorBoard need not load protobuf

        # TensorBoard hides earlier events from purge_step on; the step we resume from itself is good.
        purge_step = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(Path(workdir) / 'tensorboard'), purge_step=purge_step, flush_secs=10)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, int | float | np.number):
                self._writer.add_scalar(key, float(value), step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """W&B, when `log.wandb` names a project. The workdir keeps the run's id: a resumed run goes on in the same plot.

    Raises ConfigError when wandb is not installed.
    """

    def __init__(self, workdir: str | Path, project: str, config: Mapping[str, Any] | None = None):
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(f"log.wandb='{project}' needs wandb: pip install wandb, or set log.wandb=''.") from error
        id_file = Path(workdir) / 'wandb_id.txt'
        run_id = id_file.read_text().strip() if id_file.exists() else None
        self._run = wandb.init(project=project, id=run_id, resume='allow', dir=str(workdir), config=config)
        replace_file(id_file, self._run.id + '\n')
        # W&B refuses steps that go back, as they do after a resume; with our own axis it takes them.
        self._run.define_metric('step')
        self._run.define_metric('*', step_metric='step')

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log({**values, 'step': step})

    def close(self) -> None:
        self._run.finish()


class Loggers:
    """The journal and, as configured, its copies. A workdir has one writer: other hosts have a Memory for a journal."""

    def __init__(self, workdir, resume_step=None, tensorboard: bool = True, wandb: str = '', config=None):
        writes = is_first()
        self.journal = Journal(workdir, resume_step) if writes else Memory()
        self._writers: list[Any] = [self.journal]
        if tensorboard and writes:
            self._writers.append(TensorBoard(workdir, resume_step))
        if wandb and writes:
            self._writers.append(WeightsAndBiases(workdir, wandb, config))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        for writer in self._writers:
            writer.write(step, values)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


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
