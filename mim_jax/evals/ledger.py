"""What a test that trains nothing has found so far: it can be watched, and goes on where it was killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mim_jax.parallel.agreement import exchange, together
from mim_jax.parallel.hosts import is_first
from mim_jax.paths import replacing
from mim_jax.training.journal import JOURNAL, Journal, encode_json, read_events

PREDICTIONS = 'predictions'
QUIET_SECONDS = 30.0

# What a part's count gives: its values, and what the classifier said of every image, {name: an item per image}.
Counted = tuple[Mapping[str, float], Mapping[str, np.ndarray]]


class Ledger:
    """Events of metrics.jsonl: {'step', 'test': the seal}, {'step', 'part', its values} for each, {'step', 'ended', metrics}.

    workdir: of the test; seal: what it is a test of, as JSON has it: parts are taken over from a test of the same that did not
    come to its end, and from no other; step: of the checkpoint; predictions: keep what is said of every image, too. The first
    of several hosts writes, all of them read.
    """

    def __init__(self, workdir: Path, seal: Mapping[str, Any], step: int, predictions: bool = False):
        self.folder, self.step, self.predictions = workdir / PREDICTIONS, step, predictions
        self.seal = encode_json(seal)
        begun = exchange('the ledger', together('the ledger', lambda: read_parts(workdir / JOURNAL, self.seal)))[0]
        self._parts = begun or {}
        self._journal = together('the journal', lambda: Journal(workdir) if is_first() else None)
        if begun is None:
            self._write({'test': self.seal})

    def measure(self, part: str, count: Callable[[], Counted]) -> dict[str, float]:
        """The values of a part: known from before, or counted now. Its predictions go to predictions/<part>.npz if wanted."""
        file = self.folder / f'{part.replace(" ", "_")}.npz'
        known, kept = self._parts.get(part), exchange('predictions', file.exists())[0]
        if known is None or (self.predictions and not (known.get(PREDICTIONS) and kept)):
            values, arrays = count()
            known = {**values, PREDICTIONS: self.predictions}
            if self.predictions and self._journal:
                save_arrays(file, {**arrays, 'test': np.array(str(self.seal))})
            self._write({'part': part, **known})
        return {name: value for name, value in known.items() if name != PREDICTIONS}

    def end(self, metrics: Mapping[str, float]) -> None:
        """The test is done: given again, it begins anew."""
        self._write({'ended': True, **metrics})

    def close(self) -> None:
        if self._journal:
            self._journal.close()

    def _write(self, event: Mapping[str, Any]) -> None:
        if self._journal:
            self._journal.write(self.step, event)


def read_parts(file: Path, seal: Any) -> dict[str, dict[str, Any]] | None:
    """{part: its values} of the journal's last test; None unless that has this seal and did not come to its end."""
    parts: dict[str, dict[str, Any]] | None = None
    for event in read_events(file):
        if 'test' in event:
            parts = {} if event['test'] == seal else None
        elif 'ended' in event:
            parts = None
        elif 'part' in event and parts is not None:
            parts[event['part']] = {name: value for name, value in event.items() if name not in ('step', 'part')}
    return parts


def save_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An npz file, whole or not at all."""
    file.parent.mkdir(exist_ok=True)
    with replacing(file) as temporary, temporary.open('wb') as opened:
        np.savez(opened, **arrays)


def watch_batches(
    batches: Iterable[Mapping[str, Any]], total: int, report: Callable[[str], None], every: float = QUIET_SECONDS
) -> Iterator[Mapping[str, Any]]:
    """The same batches, and a line on how many of `total` images were read whenever so many seconds passed without one.

    Of several hosts, which share the images, each counts its own for all.
    """
    done, told = 0, time.monotonic()
    for batch in batches:
        yield batch
        done += int(np.count_nonzero(batch['weight'])) * jax.process_count()
        if done < total and time.monotonic() - told >= every:
            report(f'{done:,} of {total:,} images')
            told = time.monotonic()
