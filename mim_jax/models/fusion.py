"""MFF's neck reader: several blocks of the encoder, projected and fused into what the decoders and heads read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.models.layers import Block, gelu, xavier
from mim_jax.models.levels import Levels
from mim_jax.tokens import Tokens


class Fusion(nn.Module):
    """Levels -> Tokens: the blocks `layers` (from 0, rising, the last one of the encoder included) as one sequence.

    Every layer but the last is projected, all tokens with CLS: not at all ('none'), by a linear layer, or by Linear, GELU,
    Linear of the same width ('nonlinear'). detach: no gradient goes through a projection into the encoder. Then
    'pool': the sum weighted by softmax(logits), one logit per layer, initially 1 (equation 4);
    'attention': one pre-norm transformer block over the tokens of all layers together, of which those of the last layer are
    kept (equation 5).
    One layer alone is returned as it is: no parameter is made.

    Watched: weight_<layer>, the softmax, or the attention that the last layer's tokens pay to each; of 'pool' also
    share_<layer>, that layer's part of the sum over layers of RMS(w_i P_i(x_i)), as a projection may rescale its input.

    Source: Liu et al., "Improving Pixel-based MIM by Reducing Wasted Modeling Capability", ICCV 2023, section 3.3; the
    softmax, the projections' initial values and raw residual streams: open-mmlab/mmpretrain models/selfsup/mff.py.
    """

    layers: tuple[int, ...]
    projection: Literal['none', 'linear', 'nonlinear'] = 'linear'
    fusion: Literal['pool', 'attention'] = 'pool'
    detach: bool = False
    heads: int = 12
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, levels: Levels) -> Tokens:
        """Every block's f[B,C+V,D] -> the same shape, f32, before the encoder's final norm."""
        *shallow, last = (levels.blocks[layer].joined() for layer in self.layers)
        if not shallow:
            return levels.last
        parts = [*(self._project(place, x) for place, x in enumerate(shallow)), last]
        fused = self._pool(parts) if self.fusion == 'pool' else self._attend(parts)
        return levels.last.split(fused)

    def _project(self, place: int, x: jax.Array) -> jax.Array:
        x = jax.lax.stop_gradient(x) if self.detach else x
        if self.projection == 'none':
            return x

        def linear(name: str) -> nn.Dense:
            return nn.Dense(x.shape[-1], kernel_init=xavier, dtype=self.dtype, name=name)

        if self.projection == 'linear':
            return linear(f'projection_{place:02d}')(x)
        return linear(f'projection_{place:02d}_fc2')(gelu(linear(f'projection_{place:02d}_fc1')(x)))

    def _pool(self, parts: Sequence[jax.Array]) -> jax.Array:
        weights = jax.nn.softmax(self.param('logits', nn.initializers.ones, (len(parts),)))
        weighted = [weight * x.astype(jnp.float32) for weight, x in zip(weights, parts, strict=True)]
        norms = jnp.stack([jnp.sqrt(jnp.mean(jnp.square(jax.lax.stop_gradient(x)))) for x in weighted])
        self._watch('weight', weights)
        self._watch('share', norms / norms.sum())
        return sum(weighted)

    def _attend(self, parts: Sequence[jax.Array]) -> jax.Array:
        length = parts[-1].shape[1]
        x = jnp.concatenate([part.astype(jnp.float32) for part in parts], axis=1)
        x, (_, pair) = Block(self.heads, dtype=self.dtype, name='block')(x, jnp.zeros(()))
        queries, keys = (jax.lax.stop_gradient(a).astype(jnp.float32) for a in pair)
        logits = jnp.einsum('bqhd,bkhd->bhqk', queries[:, -length:], keys) * queries.shape[-1] ** -0.5
        paid = jax.nn.softmax(logits).reshape(*logits.shape[:-1], len(parts), length).sum(-1)
        self._watch('weight', paid.mean((0, 1, 2)))
        return x[:, -length:]

    def _watch(self, name: str, values: jax.Array) -> None:
        for layer, value in zip(self.layers, values, strict=True):
            self.sow('watch', f'{name}_{layer:02d}', value)
