"""Protocols that train no network: functions of a frozen encoder, or of a trained classifier.

Their keyword options are a section of the config, as a method's are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mim_jax.evals.cached import cached_probe
from mim_jax.evals.classifiers import accuracy, corruptions, ensemble
from mim_jax.evals.knn import HEADLINE, NEIGHBOURS, check_vote, knn_percents, summarise_percents
from mim_jax.evals.ridge import ridge_accuracy
from mim_jax.evals.robust_protocol import robustness
from mim_jax.evals.subject import Subject


def knn(
    subject: Subject,
    *,
    pool: str = 'cls',
    norm: str = 'encoder',
    layer: int = 0,
    neighbours: tuple = NEIGHBOURS,
    temperature: float = 0.07,
) -> dict[str, float]:
    """DINO's k-NN over the whole training split. pool, norm, layer: as linear_probe's; the others: see knn_percents.

    Raises ConfigError for neighbours or a temperature that nobody can vote with.
    """
    check_vote(neighbours, temperature)
    train, test = subject.open()
    bank, queries = (subject.features(source, layer, pool, norm) for source in (train, test))
    subject.report(f'Features of {len(bank[0]):,} training and {len(queries[0]):,} test images.')
    ks = (HEADLINE, *neighbours)
    return summarise_percents(knn_percents(*bank, *queries, train.num_classes, ks, temperature, mesh=subject.mesh))


def ridge(subject: Subject, *, pool: str = 'mean', norm: str = 'encoder', layer: int = 0) -> dict[str, float]:
    """The quick probe of the training program, on the whole splits. It is not a linear probe by MAE's protocol."""
    train, test = subject.open()
    bank, queries = (subject.features(source, layer, pool, norm) for source in (train, test))
    return ridge_accuracy(*bank, *queries, train.num_classes)


# (Subject, **options) -> metrics
OF_ENCODER: dict[str, Callable[..., dict[str, float]]] = {'knn': knn, 'ridge': ridge, 'cached_probe': cached_probe}
# (Network, **options) -> metrics, and what results.json says beside them
OF_CLASSIFIER: dict[str, Callable[..., tuple[dict[str, float], dict[str, Any]]]] = {
    'accuracy': accuracy,
    'ensemble': ensemble,
    'robustness': robustness,
    'corruptions': corruptions,
}
DIRECT: dict[str, Callable] = {**OF_ENCODER, **OF_CLASSIFIER}
