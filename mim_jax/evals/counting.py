"""Exact top-1 and top-5 accuracy: hits counted as integers, divided once."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from mim_jax.data.sources import Source
from mim_jax.errors import DataError, UserError
from mim_jax.evals.features import run_batches


def rank_labels(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Logits f[n,K], labels i[n] -> how many classes come before the label, i64[n]; 0 is a top-1 hit, below 5 a top-5.

    Classes are ordered by logit, equal ones by class number. So the first class is argmax's, every top-1 hit is a
    top-5 hit, and a network that gives all classes the same logit always answers 0, 1, 2, 3, 4: it scores chance.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(axis=1)


class Predictions:
    """Collects what count_correct saw, to be saved."""

    def __init__(self) -> None:
        self._parts: list[dict[str, np.ndarray]] = []

    def add(self, found: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray]) -> None:
        """{name: logits f32[b,K]} and the rows they are of."""
        logits = {f'logits/{name}' if name else 'logits': one for name, one in found.items()}
        self._parts.append({**logits, 'label': rows['label'], 'index': rows['index']})

    def arrays(self) -> dict[str, np.ndarray]:
        """'logits' (or 'logits/<name>' of several) f32[n,K], 'label' i32[n], 'index' i32[n] in the source; stored order."""
        return {name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}


def count_correct(
    predict: Callable[[Any], Any],
    batches: Iterable[Mapping[str, Any]],
    mesh: Mesh | None = None,
    source: Source | None = None,
    predictions: Predictions | None = None,
) -> dict[str, float | int]:
    """Accuracy of `predict` on all images -> {'top1': percent, 'top5': percent, 'images': n}.

    `predict`: images u8[b,S,S,3] -> logits f[b,K], or {name: logits} of several classifiers, which gives '<name>/top1' and
    so on ('' stays without a name); it, `batches` and `mesh` are run_batches'. Images of weight 0 are not counted. A logit
    of -inf is a class that is ruled out. With fewer than five classes top5 is 100.
    `source`: names images in messages. `predictions`: takes all logits.

    Raises:
      DataError: a label that is no class of the logits, or no image at all.
      UserError: a logit that is NaN or +inf, which must not pass for an answer.
    """
    hits: dict[str, np.ndarray] = collections.defaultdict(lambda: np.zeros(2, np.int64))
    images = 0
    for output, rows in run_batches(predict, batches, mesh):
        found = output if isinstance(output, Mapping) else {'': output}
        found = {name: logits.astype(np.float32) for name, logits in found.items()}
        for name, logits in found.items():
            check_rows(logits, rows, source)
            ranks = rank_labels(logits, rows['label'])
            hits[name] += [(ranks < 1).sum(), (ranks < 5).sum()]
        images += len(rows['label'])
        if predictions:
            predictions.add(found, rows)
    if not images:
        raise DataError('There are no images to evaluate: the split is empty, or none of its images could be decoded.')
    percents = {
        f'{name}/{rank}' if name else rank: 100.0 * int(hit) / images
        for name, both in hits.items()
        for rank, hit in zip(('top1', 'top5'), both, strict=True)
    }
    return {**percents, 'images': images}


def check_rows(logits: np.ndarray, rows: Mapping[str, np.ndarray], source: Source | None) -> None:
    """Raise for the first image of a batch whose label or logits cannot be counted."""

    def name_first(wrong: np.ndarray) -> tuple[int, str]:
        row = int(wrong.argmax())
        index = int(rows['index'][row])
        return row, f'{source[index].name} (index {index})' if source else f'Image {index}'

    classes = logits.shape[1]
    wrong = (rows['label'] < 0) | (rows['label'] >= classes)
    if wrong.any():
        row, name = name_first(wrong)
        raise DataError(
            f'{name} has label {int(rows["label"][row])}, but the network tells classes 0 to {classes - 1} apart: '
            'evaluate on the data set it was trained for.'
        )
    wrong = (np.isnan(logits) | (logits == np.inf)).any(axis=1)
    if wrong.any():
        raise UserError(
            f'{name_first(wrong)[1]} has a logit that is NaN or infinite: the network overflows or its parameters are '
            'damaged. Use an earlier checkpoint, or dtype=float32.'
        )
