"""The MLP heads of contrastive and distilling objectives."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.models.batch_norm import BatchNorm
from mim_jax.models.layers import SCHEMES
from mim_jax.parallel.activations import keep_split


class Projector(nn.Module):
    """Linear layers without bias, each but the last followed by BatchNorm and ReLU.

    widths: of the layers' outputs; last_norm: BatchNorm without scale and bias after the last layer too, its output in fp32
    (ConMIM: widths (4096, 4096, 256) with it; LUT: (4096, D) without); group_images: see BatchNorm; scheme: whose `linear`
    initialises the kernels, a key of layers.SCHEMES. Source: TencentARC/ConMIM modeling_pretrain.py (_build_mlp).
    """

    widths: tuple[int, ...]
    last_norm: bool = False
    group_images: int = 0
    scheme: str = 'mae'
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """f[B,...,D] -> f[B,...,widths[-1]]; the statistics are over all axes but the last."""
        initial = SCHEMES[self.scheme].linear
        for number, width in enumerate(self.widths, start=1):
            linear = nn.Dense(width, use_bias=False, kernel_init=initial, dtype=self.dtype, name=f'fc{number}')
            x = keep_split(linear(keep_split(x)))
            if number < len(self.widths):
                x = nn.relu(BatchNorm(self.group_images, dtype=self.dtype, name=f'bn{number}')(x))
            elif self.last_norm:
                x = BatchNorm(self.group_images, affine=False, name=f'bn{number}')(x)
        return x
