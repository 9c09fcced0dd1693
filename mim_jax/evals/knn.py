"""k-nearest-neighbour accuracy of frozen features, by DINO's protocol."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

NEIGHBOURS = (10, 20, 100, 200)
HEADLINE = 20


def normalise_rows(features: jax.Array) -> jax.Array:
    """f[n,D] -> f32[n,D] of unit length."""
    features = jnp.asarray(features, jnp.float32)
    return features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


@partial(jax.jit, static_argnames=('num_classes', 'ks'))
def vote(
    bank: jax.Array, bank_labels: jax.Array, queries: jax.Array, num_classes: int, ks: Sequence[int], temperature: float
) -> jax.Array:
    """Unit rows f32[n,D] and f32[q,D] -> the predicted class of every query for every k, i32[len(ks),q]."""
    # Full fp32: a TPU's default product rounds to bf16, which reorders near neighbours.
    similarities = jnp.matmul(queries, bank.T, precision=jax.lax.Precision.HIGHEST)
    nearest, index = jax.lax.top_k(similarities, max(ks))
    weights, labels = jnp.exp(nearest / temperature), bank_labels[index]
    rows = jnp.arange(len(queries))[:, None]

    def predict(k: int) -> jax.Array:
        votes = jnp.zeros((len(queries), num_classes)).at[rows, labels[:, :k]].add(weights[:, :k])
        return votes.argmax(-1)

    return jnp.stack([predict(k) for k in ks])


def knn_accuracy(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    num_classes: int,
    ks: Sequence[int] = NEIGHBOURS,
    temperature: float = 0.07,
    chunk: int = 256,
) -> dict[str, float]:
    """Features f[n,D], labels i[n] -> {'knn': percent at k = 20, 'knn_best': percent at the best k}.

    Features L2-normalised, cosine similarity, the k nearest training images vote with weight exp(similarity / 0.07).
    A k above the number of training images is clipped to it. `chunk` queries are compared at a time.
    Pixel reconstruction gives low numbers here (public: MAE-B, 100 epochs, 11.2 on ImageNet): read the trend.
    Source: facebookresearch/dinov2 eval/knn.py; k and temperature of Wu et al. 2018 as in DINO.
    """
    bank, bank_labels = normalise_rows(train_x), jnp.asarray(train_y, jnp.int32)
    ks = [min(k, len(train_x)) for k in dict.fromkeys([HEADLINE, *ks])]
    correct = np.zeros(len(ks))
    for start in range(0, len(test_x), chunk):
        queries, labels = test_x[start : start + chunk], test_y[start : start + chunk]
        padded = np.pad(queries, ((0, chunk - len(queries)), (0, 0)))  # one shape, one compilation
        predicted = vote(bank, bank_labels, normalise_rows(padded), num_classes, tuple(ks), temperature)
        correct += (np.asarray(predicted)[:, : len(labels)] == labels).sum(axis=1)
    percents = 100.0 * correct / len(test_x)
    return {'knn': float(percents[0]), 'knn_best': float(percents.max())}
