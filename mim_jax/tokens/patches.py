"""Images to patches and back, and the normalisations of targets: per patch (MAE), per patch and channel (BootMAE)."""

import chex
import jax
import jax.numpy as jnp

EPSILON = 1e-6
CHANNEL_EPSILON = 1e-5


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
    """f[B,H,W,3] -> f[B,N,P], row-major patches, values inside a patch ordered (dy, dx, channel).

    Source: facebookresearch/mae models_mae.py (patchify). Raises AssertionError when H or W is not divisible by patch_size.
    """
    chex.assert_rank(images, 4)
    b, height, width, channels = images.shape
    rows, columns = height // patch_size, width // patch_size
    chex.assert_equal((rows * patch_size, columns * patch_size), (height, width))
    cells = images.reshape(b, rows, patch_size, columns, patch_size, channels)
    return cells.transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * columns, patch_size**2 * channels)


def unpatchify(patches: jax.Array, patch_size: int, height: int, width: int) -> jax.Array:
    """f[B,N,P] -> f[B,H,W,3], the inverse of `patchify`."""
    chex.assert_rank(patches, 3)
    b, rows, columns = patches.shape[0], height // patch_size, width // patch_size
    cells = patches.reshape(b, rows, columns, patch_size, patch_size, -1)
    return cells.transpose(0, 1, 3, 2, 4, 5).reshape(b, height, width, -1)


def patch_statistics(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
    """f[B,N,P] -> mean and deviation f32[B,N,1] over all P values of a patch jointly.

    The variance is the *unbiased* one (divided by P - 1), as torch.var is and jnp.var is not;
    deviation = sqrt(variance + 1e-6). Source: facebookresearch/mae models_mae.py (forward_loss).
    """
    patches = patches.astype(jnp.float32)
    mean = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, ddof=1, keepdims=True)
    return mean, jnp.sqrt(variance + EPSILON)


def normalise_patches(patches: jax.Array) -> jax.Array:
    """f[B,N,P] -> f32[B,N,P]: every patch with its own mean removed and divided by its own deviation."""
    mean, deviation = patch_statistics(patches)
    return (patches.astype(jnp.float32) - mean) / deviation


def normalise_channels(patches: jax.Array) -> jax.Array:
    """f[B,N,P] -> f32[B,N,P]: each of the 3 channels of a patch with its own mean and deviation.

    The variance is the *biased* one; deviation = sqrt(variance + 1e-5). Source: LightDXY/BootMAE run_pretraining.py.
    """
    values = patches.astype(jnp.float32).reshape(*patches.shape[:2], -1, 3)
    mean, variance = values.mean(axis=2, keepdims=True), values.var(axis=2, keepdims=True)
    return ((values - mean) / jnp.sqrt(variance + CHANNEL_EPSILON)).reshape(patches.shape)
