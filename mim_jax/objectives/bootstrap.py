"""BootMAE's losses: masked patches weighted by how deep they lie inside the mask; features compared after a plain norm."""

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

EPSILON = 1e-6


def depth_weights(masked: jax.Array) -> jax.Array:
    """bool[B,rows,columns] -> f32, the same shape: 0 where visible, else 1 + the share of masked patches in the 3 x 3 around.

    What lies outside the grid counts as visible. Source: LightDXY/BootMAE run_pretraining.py (weight_mask).
    """
    chex.assert_rank(masked, 3)
    mask = masked.astype(jnp.float32)[..., None]
    return (mask * (1.0 + nn.avg_pool(mask, (3, 3), padding='SAME')))[..., 0]


def weighted_distance(prediction: jax.Array, target: jax.Array, masked: jax.Array, weights: jax.Array) -> jax.Array:
    """f[B,N,P], f[B,N,P], bool[B,N], f[B,N] -> f32[]: squared error, mean over P, weighted sum / number of masked patches.

    The weights are not normalised away: with those of `depth_weights` the loss is up to twice the plain one.
    """
    chex.assert_equal_shape([prediction, target])
    chex.assert_equal_shape([masked, weights])
    error = jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32)).mean(axis=-1)
    return jnp.sum(weights * error) / jnp.sum(masked.astype(jnp.float32))


def normalise_features(features: jax.Array) -> jax.Array:
    """f[...,D] -> f32: LayerNorm without scale and bias, biased variance + 1e-6."""
    features = features.astype(jnp.float32)
    centred = features - features.mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + EPSILON)
