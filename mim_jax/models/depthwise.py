"""Depth-wise convolution as shifted multiply-adds: every channel has a filter of its own."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.models.layers import fan_in_uniform


@jax.custom_vjp
def correlate(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """f[B,H,W,C], f32[k,k,1,C], k odd -> f[B,H,W,C], zeros around the image, sums in fp32.

    Why not lax.conv_general_dilated with C groups: on XLA:CPU, forward and backward take 4.4 times as long. Why a gradient of
    our own: JAX's takes 1.2 times as long and keeps k^2 arrays of the input's size at once, 308 MiB for 40 at CViT-B's first
    stage, batch 4 (benchmarks/depthwise.py). TPU and GPU: not measured.
    """
    return _correlate(x, kernel)


def _correlate(x: jax.Array, kernel: jax.Array) -> jax.Array:
    side, (_, height, width, _) = len(kernel), x.shape
    padded = _pad(x, side).astype(jnp.float32)
    shifts = ((i, j) for i in range(side) for j in range(side))
    return sum(padded[:, i : i + height, j : j + width] * kernel[i, j, 0] for i, j in shifts).astype(x.dtype)


def _correlate_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _correlate(x, kernel), (x, kernel)


def _correlate_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    side, padded = len(kernel), _pad(x, len(kernel))

    def at_offset(offset: jax.Array) -> jax.Array:
        window = jax.lax.dynamic_slice(padded, (0, *jnp.divmod(offset, side), 0), x.shape)
        return jnp.sum(window.astype(jnp.float32) * gradient.astype(jnp.float32), axis=(0, 1, 2))

    to_kernel = jax.lax.map(at_offset, jnp.arange(side**2)).reshape(kernel.shape)
    return _correlate(gradient, kernel[::-1, ::-1]), to_kernel


correlate.defvjp(_correlate_forward, _correlate_backward)


def _pad(x: jax.Array, side: int) -> jax.Array:
    reach = side // 2
    return jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))


class DepthwiseConv(nn.Module):
    """side x side, stride 1, zero-padded to keep the size; kernel (side, side, 1, C) and bias as PyTorch leaves a Conv2d's."""

    side: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """f[B,H,W,C] -> f[B,H,W,C]."""
        uniform = fan_in_uniform(self.side**2)
        kernel = self.param('kernel', uniform, (self.side, self.side, 1, x.shape[-1]))
        bias = self.param('bias', uniform, (x.shape[-1],))
        return correlate(x, kernel) + bias.astype(x.dtype)
