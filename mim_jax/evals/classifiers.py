"""Protocols of a trained classifier: functions of a Network. Their keyword options are a section of the config.

Each returns its metrics, in percent, and what results.json should say beside them. What it counts it measures by the task's
ledger, part by part; predictions are logits, labels and places (index) of all images. head: which of the run's classifiers
is tested: '' is the trained one, 'average' the average of its weights, '00', '01', ... those of a linear probe's rates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mim_jax.data.cache import cache_source
from mim_jax.data.images import decode
from mim_jax.data.sources import Example, Source
from mim_jax.errors import ConfigError, Refused
from mim_jax.evals.corruptions import CORRUPTIONS, corrupt, describe_source
from mim_jax.evals.counting import Predictions, count_correct, rank_labels
from mim_jax.evals.ledger import Counted
from mim_jax.evals.metrics import SEVERITIES, check_logits, top_k_correct
from mim_jax.evals.network import Network
from mim_jax.paths import open_path

Found = tuple[dict[str, float], dict[str, Any]]


def accuracy(network: Network) -> Found:
    """Top-1 and top-5 of all of the run's classifiers, again: what the run counted when it ended."""
    test, task = network.open_test(), network.task

    def count() -> Counted:
        predictions = Predictions() if task.ledger.predictions else None
        found = count_correct(network.predict, network.batches(test), task.mesh, test, predictions)
        return found, predictions.arrays() if predictions else {}

    return task.ledger.measure('test', count), {}


def ensemble(network: Network, *, with_run: str = '', head: str = '') -> Found:
    """Top-1 and top-5 of the mean of two classifiers' probabilities, and of each alone (MR-MAE table 4, rule inferred).

    with_run: folder of the other fine-tuned run; each sees the images as it was trained to.
    """
    if not with_run:
        raise ConfigError('ensemble.with_run must be the folder of a second fine-tuned run.')
    other = network.another(open_path(with_run))
    if other.classes != network.classes:
        raise Refused(
            f'{with_run} tells {other.classes} classes apart, {network.run} {network.classes}; use one dataset.'
        )
    test = network.open_test()

    def count() -> Counted:
        (first, rows), (second, others) = (one.logits(test, head) for one in (network, other))
        if not np.array_equal(rows['index'], others['index']):
            raise Refused('The two runs could not read the same images; repair the dataset.')
        both = {'': (softmax(first) + softmax(second)) / 2, 'first/': first, 'second/': second}
        found = {
            f'{name}top{k}': 100.0 * int((rank_labels(values, rows['label']) < k).sum()) / len(values)
            for name, values in both.items()
            for k in (1, 5)
        }
        return {**found, 'images': len(first)}, {'logits/first': first, 'logits/second': second, **rows}

    found = network.task.ledger.measure('test', count)
    return found, {'second': {'run': str(other.run), 'step': other.step}}


def softmax(logits: np.ndarray) -> np.ndarray:
    """f[n,K] -> f64[n,K]."""
    logits = check_logits(logits, len(logits)).astype(np.float64)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class CorruptedSource:
    """The images of another source, 32 x 32 pixels, each corrupted as evals/corruptions does it."""

    source: Source
    corruption: str
    severity: int
    seed: int

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    @property
    def description(self) -> str:
        return f'{self.source.description}, {self.corruption} {self.severity}'

    @property
    def fingerprint(self) -> str:
        return f'{self.source.fingerprint}/{self.corruption}/{self.severity}/{self.seed}'

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        pixels = np.asarray(decode(example.image, example.name, index))[None]
        return example._replace(image=corrupt(pixels, self.corruption, self.severity, self.seed, index)[0])


def corruptions(
    network: Network, *, names: tuple = (), severities: tuple = SEVERITIES, limit: int = 0, head: str = ''
) -> Found:
    """Top-1 errors on corrupted test images of 32 x 32 pixels, which are made here: not the published CIFAR-10-C.

    names: of the corruptions, () is all of them; limit: so many random images, 0 is all. Returns 'mean_error' over
    corruptions, 'error/<corruption>', its mean over severities, and clean_top1. Beside them errors[corruption][severity].
    """
    names = tuple(names) or tuple(CORRUPTIONS)
    wrong = [name for name in names if name not in CORRUPTIONS] or [str(s) for s in severities if s not in SEVERITIES]
    if wrong or not severities:
        raise ConfigError(
            f'corruptions: {wrong[0] if wrong else "no severity"} cannot be made here; names are {", ".join(CORRUPTIONS)}, '
            'severities 1 to 5.'
        )
    if limit < 0:
        raise ConfigError(f'corruptions.limit={limit} must be a number of images, or 0 for all.')
    task = network.task
    test = cache_source(network.open_test(), task.config.data.cache, task.config.data.threads)

    def measure(part: str, source: Source) -> dict[str, float]:
        def count() -> Counted:
            logits, rows = network.logits(source, head, limit=limit)
            error = 100.0 - 100.0 * top_k_correct(logits, rows['label']) / len(logits)
            task.report(f'{part}: {error:.2f} % errors')
            return {'error': error, 'images': len(logits)}, {'logits': logits, **rows}

        return task.ledger.measure(part, count)

    # The first corrupted image fails at once where the images are of another size.
    corrupted = {name: [CorruptedSource(test, name, s, task.config.seed) for s in severities] for name in names}
    corrupted[names[0]][0][0]
    clean = measure('clean', test)
    errors = {
        name: {source.severity: measure(f'{name} {source.severity}', source)['error'] for source in sources}
        for name, sources in corrupted.items()
    }
    means = {name: float(np.mean(list(by_severity.values()))) for name, by_severity in errors.items()}
    mean_error = float(np.mean(list(means.values())))
    found = {'mean_error': mean_error, 'clean_top1': 100.0 - clean['error'], 'images': clean['images']}
    return found | {f'error/{name}': error for name, error in means.items()}, {
        'images': describe_source(),
        'errors': errors,
    }
