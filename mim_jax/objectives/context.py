"""Distances of a student's outputs to its teacher's, in fp32: means over everything but the features."""

import chex
import jax
import jax.numpy as jnp

from mim_jax.objectives.contrast import normalise_length


def cosine_distance(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """f[...,D], f[...,D] -> f32[] in [0,4]: 2 - 2 cos, the squared distance of unit vectors (naver-ai/lut engine_lut.py)."""
    chex.assert_equal_shape([outputs, targets])
    return jnp.mean(2.0 - 2.0 * jnp.sum(normalise_length(outputs) * normalise_length(targets), axis=-1))


def info_nce(outputs: jax.Array, targets: jax.Array, temperature: float) -> jax.Array:
    """f[...,K,D], f[...,K,D] -> f32[]: each output must find its own among the K targets, by cosines over the temperature.

    K is the batch, or the tokens of one image; its other entries are the negatives.
    """
    chex.assert_equal_shape([outputs, targets])
    unit = normalise_length(outputs), normalise_length(targets)
    # Full fp32: a TPU's default product would round to bf16.
    logits = jnp.einsum('...qd,...kd->...qk', *unit, precision=jax.lax.Precision.HIGHEST) / temperature
    own = jnp.diagonal(logits, axis1=-2, axis2=-1)
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - own)


def smooth_l1(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """f[...,D], f[...,D] -> f32[]: of each error e, e^2 / 2 below 1 and |e| - 1/2 above; torch.nn.functional.smooth_l1_loss."""
    chex.assert_equal_shape([outputs, targets])
    error = jnp.abs(outputs.astype(jnp.float32) - targets.astype(jnp.float32))
    return jnp.mean(jnp.where(error < 1.0, 0.5 * jnp.square(error), error - 0.5))
