"""Contrast between the patches of one image."""

import chex
import jax
import jax.numpy as jnp

from mim_jax.objectives.pixels import masked_mean


def normalise_length(x: jax.Array) -> jax.Array:
    """f[...,D] -> f32 of length 1; what is shorter than 1e-12 is divided by that, as torch.nn.functional.normalize does."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def patch_logits(queries: jax.Array, keys: jax.Array, temperature: float) -> jax.Array:
    """f[B,N,D], f[B,N,D] -> f32[B,N,N]: cosines of all pairs of patches of one image, over the temperature."""
    chex.assert_equal_shape([queries, keys])
    unit = normalise_length(queries), normalise_length(keys)
    # Full fp32: a TPU's default product would round to bf16.
    return jnp.einsum('bqd,bkd->bqk', *unit, precision=jax.lax.Precision.HIGHEST) / temperature


def denoising_contrast(queries: jax.Array, keys: jax.Array, masked: jax.Array, temperature: float) -> jax.Array:
    """f[B,N,D], f[B,N,D], bool[B,N] -> f32[]: InfoNCE within each image, mean over the masked patches of the batch.

    A masked patch's query must find the key of its own place among the N keys of the image, visible places included; other
    images are no negatives. Source: TencentARC/ConMIM engine_for_pretraining.py (train_one_epoch).
    """
    logits = patch_logits(queries, keys, temperature)
    own = jnp.diagonal(logits, axis1=1, axis2=2)
    return masked_mean(jax.nn.logsumexp(logits, axis=-1) - own, masked)
