"""Frozen features of a data set, in host memory, for the probes."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np


def extract_features(
    encode: Callable[[Any], jax.Array], batches: Iterable[Mapping[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """Encode every batch and drop the padding -> features f32[n,D], labels i32[n], in the order of the batches.

    `encode`: images u8[b,S,S,3] -> f[b,D], jitted by the caller; on several hosts its output must be replicated.
    `batches`: dicts with image, label i[b] and weight f[b], where weight 0 marks padding.
    """
    features, labels = [], []

    def collect(output: jax.Array, batch: Mapping[str, Any]) -> None:
        kept = np.asarray(batch['weight']) > 0
        features.append(np.asarray(output, dtype=np.float32)[kept])
        labels.append(np.asarray(batch['label'], dtype=np.int32)[kept])

    pending = None
    for batch in batches:
        running = encode(batch['image']), batch
        if pending:  # fetched while the device works on the next batch
            collect(*pending)
        pending = running
    if pending is None:
        raise ValueError('no batches to extract features from')
    collect(*pending)
    return np.concatenate(features), np.concatenate(labels)
