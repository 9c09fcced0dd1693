"""MR-MAE's mimic loss: a frozen teacher's features of the tokens that a student predicts them for."""

import jax
import jax.numpy as jnp

EPSILON = 1e-6
NORMS = ('none', 'layer_norm', 'l2')


def normalise_target(features: jax.Array, norm: str) -> jax.Array:
    """f[B,T,C] -> f32[B,T,C]: 'none': as they are; 'layer_norm': less their mean, by their deviation; 'l2': of length 1."""
    features = features.astype(jnp.float32)
    if norm == 'layer_norm':
        return jax.nn.standardize(features, variance=features.var(-1, keepdims=True), epsilon=EPSILON)
    if norm == 'l2':
        return features * jax.lax.rsqrt(jnp.maximum(jnp.square(features).sum(-1, keepdims=True), EPSILON**2))
    return features


def mimic_distance(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """f[B,T,C] twice -> f32[]: squared error, mean over tokens and channels.

    Gao et al., "Mimic before Reconstruct", equation 2, which sums over channels: with 768 of them, as many as a patch of 16
    pixels has values, sums and means of both losses are in the same ratio.
    """
    return jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32)).mean()
