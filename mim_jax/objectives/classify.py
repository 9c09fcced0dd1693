"""Classification: cross-entropies to labels and to mixed targets, and how often the best class is the right one."""

import chex
import jax
import jax.numpy as jnp

from mim_jax.mixing import smooth_labels


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """f[B,K], i32[B] -> f32[]: cross-entropy to 1 - s on the label plus s / K on every class, mean over the batch.

    s: `smoothing`. Source: torch.nn.CrossEntropyLoss(label_smoothing=s); timm's LabelSmoothingCrossEntropy, DeiT's, is equal.
    """
    chex.assert_rank([logits, labels], [2, 1])
    return soft_cross_entropy(logits, smooth_labels(labels, logits.shape[-1], smoothing))


def soft_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """f[B,K], probabilities f32[B,K] -> f32[]: cross-entropy, mean over the batch. timm's SoftTargetCrossEntropy."""
    chex.assert_equal_shape([logits, targets])
    return -(targets * jax.nn.log_softmax(logits.astype(jnp.float32))).sum(axis=-1).mean()


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """f[B,K], i32[B] -> f32[]: in percent, how often the largest logit is the label's."""
    chex.assert_rank([logits, labels], [2, 1])
    return 100.0 * jnp.mean(jnp.argmax(logits, axis=-1) == labels)
