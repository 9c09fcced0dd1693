"""MAE's light decoder: visible tokens and mask tokens, put back in place, through a few narrow blocks."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mim_jax.models.layers import drop_rates, layer_norm, make_blocks, normal_02, run_blocks, xavier
from mim_jax.models.levels import Levels
from mim_jax.parallel.activations import keep_split
from mim_jax.tokens import MaskPlan, Tokens, gather_tokens, sincos_positions


class Decoder(nn.Module):
    """Linear embedding, one shared mask token, fixed positions on all tokens, `depth` blocks, norm, linear head.

    Source: facebookresearch/mae models_mae.py (forward_decoder).
    """

    width: int
    depth: int
    heads: int
    output: int
    grid: tuple[int, int]
    mlp_ratio: float = 4.0
    scan: bool = False
    remat: str = 'none'
    dtype: Any = jnp.float32

    def setup(self):
        self.embed = nn.Dense(self.width, kernel_init=xavier, dtype=self.dtype)
        self.mask_token = self.param('mask_token', normal_02, (1, 1, self.width))
        self.blocks = make_blocks(
            self.depth, self.scan, self.remat, heads=self.heads, mlp_ratio=self.mlp_ratio, dtype=self.dtype
        )
        self.norm = layer_norm(self.dtype)
        self.head = nn.Dense(self.output, kernel_init=xavier, dtype=self.dtype)

    def __call__(self, latent: Tokens, plan: MaskPlan) -> Levels:
        """Tokens over V visible patches in plan.keep's order -> Levels over all N patches, prediction f[B,N,output]."""
        tokens = latent.map(lambda x: keep_split(self.embed(keep_split(x))))
        b, masked = plan.drop.shape
        mask = jnp.broadcast_to(self.mask_token.astype(self.dtype), (b, masked, self.width))
        embedding = gather_tokens(jnp.concatenate([tokens.patches, mask], axis=1), plan.restore)
        positions = jnp.asarray(sincos_positions(*self.grid, self.width), self.dtype)
        tokens = tokens.replace(patches=embedding + positions)
        outputs, queries_keys = run_blocks(self.blocks, tokens.joined(), drop_rates(0.0, self.depth))
        blocks = tuple(tokens.split(x) for x in outputs)
        prediction = keep_split(self.head(self.norm(blocks[-1].patches)))
        embedded = tokens.replace(patches=embedding)
        return Levels(embedded, tokens, blocks, queries_keys, plan=plan, prediction=prediction)
