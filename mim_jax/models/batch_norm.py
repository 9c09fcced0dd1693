"""BatchNorm by PyTorch's definition, over a chosen number of images."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

MOMENTUM = 0.1  # of the running statistics: PyTorch's convention, flax's momentum is 1 minus this


class BatchNorm(nn.Module):
    """Normalises the last axis with statistics over all others, in fp32; then, if `affine`, scale and bias.

    The biased variance normalises, the unbiased one enters the running average (momentum 0.1), as in
    torch.nn.BatchNorm1d. With the collection 'batch_stats' mutable the batch's statistics are used and the running ones
    ('mean', 'var') moved, else the running ones are used; initialising leaves them at 0 and 1.

    group_images: how many images share statistics. 0: all of the micro-batch, over all devices (torch.nn.SyncBatchNorm). A
    number: every run of so many images by itself, as on a device that holds no others (BatchNorm under DDP); a batch of at
    most that many is one run. Results do not depend on the devices; nothing is sent between them when a run of images
    lies on one. The running statistics then average over runs, where DDP keeps those of its first device.
    """

    group_images: int = 0
    affine: bool = True
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """f[B,...,D] -> the same shape in `dtype`. ValueError: B does not divide into groups, or a group has one value."""
        width = x.shape[-1]
        mean = self.variable('batch_stats', 'mean', jnp.zeros, (width,))
        variance = self.variable('batch_stats', 'var', jnp.ones, (width,))
        if self.is_mutable_collection('batch_stats'):
            y, batch_mean, batch_variance = self._normalise(x)
            if not self.is_initializing():
                mean.value += MOMENTUM * (batch_mean - mean.value)
                variance.value += MOMENTUM * (batch_variance - variance.value)
        else:
            y = (x.astype(jnp.float32) - mean.value) * jax.lax.rsqrt(variance.value + self.epsilon)
        if self.affine:
            scale = self.param('scale', nn.initializers.ones, (width,))
            bias = self.param('bias', nn.initializers.zeros, (width,))
            y = y * scale + bias
        return y.astype(self.dtype)

    def _normalise(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """f[B,...,D] -> normalised f32 of that shape; mean and unbiased variance f32[D], averaged over groups."""
        images = min(self.group_images, len(x)) or len(x)
        if len(x) % images:
            raise ValueError(f'BatchNorm over groups of {images} images: a batch of {len(x)} does not divide into them')
        groups = x.reshape(-1, images, *x.shape[1:]).astype(jnp.float32)
        axes = tuple(range(1, groups.ndim - 1))
        count = math.prod(groups.shape[axis] for axis in axes)
        if count == 1:
            raise ValueError('BatchNorm has one value per channel to take statistics of; it needs two images at least')
        mean = groups.mean(axes, keepdims=True)
        centred = groups - mean  # two passes: the mean of squares less the squared mean loses digits
        variance = jnp.square(centred).mean(axes, keepdims=True)
        y = (centred * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        average = (a.reshape(-1, x.shape[-1]).mean(axis=0) for a in (mean, variance * (count / (count - 1))))
        return y, *average
