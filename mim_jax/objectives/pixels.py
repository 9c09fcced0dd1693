"""Losses on predicted pixels."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp


def masked_mean(values: jax.Array, masked: jax.Array) -> jax.Array:
    """f[B,N], bool[B,N] -> f32[]: the mean over masked patches of the whole batch."""
    chex.assert_equal_shape([values, masked])
    weights = masked.astype(jnp.float32)
    return jnp.sum(values.astype(jnp.float32) * weights) / jnp.sum(weights)


def masked_distance(
    prediction: jax.Array,
    target: jax.Array,
    masked: jax.Array,
    distance: Callable[[jax.Array], jax.Array] = jnp.square,
) -> jax.Array:
    """f[B,N,P], f[B,N,P], bool[B,N] -> f32[]: `distance` of the error, mean over P, then mean over masked patches.

    Visible patches carry no loss. Source: facebookresearch/mae models_mae.py (forward_loss) with distance = square.
    """
    chex.assert_equal_shape([prediction, target])
    error = distance(prediction.astype(jnp.float32) - target.astype(jnp.float32))
    return masked_mean(error.mean(axis=-1), masked)
