"""Heads in place of a decoder."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mim_jax.models.layers import fan_in_uniform
from mim_jax.models.levels import Levels
from mim_jax.parallel.activations import keep_split
from mim_jax.tokens import MaskPlan, Tokens


class LinearHead(nn.Module):
    """One linear layer from every latent patch to its pixels: SimMIM's whole decoder.

    There it is a 1 x 1 convolution and a pixel shuffle (microsoft/SimMIM models/simmim.py), whose channels go
    (channel, dy, dx); the columns here go as patchify has them, (dy, dx, channel). Kernel and bias start as PyTorch leaves
    a convolution's: U(-1/sqrt(D), 1/sqrt(D)).
    """

    output: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, latent: Tokens, plan: MaskPlan | None) -> Levels:
        """Tokens over all N patches -> Levels without blocks, prediction f[B,N,output]; the plan is not read."""
        uniform = fan_in_uniform(latent.patches.shape[-1])
        linear = nn.Dense(self.output, kernel_init=uniform, bias_init=uniform, dtype=self.dtype, name='linear')
        return Levels(latent, latent, (), plan=plan, prediction=keep_split(linear(keep_split(latent.patches))))
