"""MCMAE's neck reader: what the convolution stages add to the transformer's output."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.models.conv_vit import convolution
from mim_jax.models.levels import Levels
from mim_jax.tokens import Tokens


class AddStages(nn.Module):
    """Every stage's map, all cells of a patch through one linear layer, summed; a prefix gets nothing.

    In the released code these are convolutions of stride 4 and 2 (stage1_output_decode, stage2_output_decode in
    Alpha-VL/ConvMAE models_convmae.py).
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, levels: Levels) -> Tokens:
        """Levels with maps f[B,V,n,C] -> Tokens f[B,V,D]."""
        return Tokens(jnp.zeros_like(levels.last.prefix), sum(self._read(levels, name) for name in levels.maps))

    def _read(self, levels: Levels, name: str) -> jax.Array:
        patches = levels.maps[name].reshape(*levels.last.patches.shape[:2], -1)
        return convolution(levels.last.patches.shape[-1], patches.shape[-1], self.dtype, name)(patches)
