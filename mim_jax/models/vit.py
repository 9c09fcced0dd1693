"""The Vision Transformer encoder, in MAE's form (visible patches only) and in SimMIM's (mask tokens inside)."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mim_jax.models.layers import SCHEMES, drop_rates, layer_norm, make_blocks, run_blocks
from mim_jax.models.levels import Levels
from mim_jax.parallel.activations import keep_split
from mim_jax.tokens import MaskPlan, Tokens, gather_tokens, patchify, relative_index, sincos_positions


class ViT(nn.Module):
    """Patch embedding, positions, optional CLS, `depth` pre-norm blocks, final norm.

    grid: rows and columns of patches, needed by what has parameters for them. mask_tokens: masked patches enter as one
    learned token; else they are removed before they are embedded, which is exact because the embedding is one matrix
    product per patch. positions: 'sincos' (MAE's layout), 'sincos_rows' (MoCo v3's), or 'none'; learned_positions: the
    table is a parameter (1,N,D) that starts so. relative_bias: one table of biases by offset, with entries of its own for
    CLS, shared by all blocks, added to the logits. scheme: of initialisation, a key of layers.SCHEMES. layer_scale,
    qkv_bias: see layers.Block.

    Source: facebookresearch/mae models_mae.py; microsoft/SimMIM models/vision_transformer.py (relative_bias, mask_tokens).
    """

    patch_size: int
    width: int
    depth: int
    heads: int
    grid: tuple[int, int] | None = None
    mlp_ratio: float = 4.0
    cls: bool = True
    mask_tokens: bool = False
    positions: Literal['sincos', 'sincos_rows', 'none'] = 'sincos'
    learned_positions: bool = False
    relative_bias: bool = False
    qkv_bias: Literal['all', 'qv'] = 'all'
    drop_path: float = 0.0
    layer_scale: float | None = None
    scheme: str = 'mae'
    scan: bool = False
    remat: str = 'none'
    dtype: Any = jnp.float32

    def setup(self):
        scheme, patch_values = SCHEMES[self.scheme], self.patch_size**2 * 3
        # A strided convolution with kernel = stride is this product; the kernel's rows follow patchify's (dy, dx, channel).
        self.patch_embed = nn.Dense(
            self.width, kernel_init=scheme.linear, bias_init=scheme.patch_bias(patch_values), dtype=self.dtype
        )
        if self.cls:
            self.cls_token = self.param('cls_token', scheme.cls_token, (1, 1, self.width))
        if self.mask_tokens:
            self.mask_token = self.param('mask_token', scheme.mask_token, (1, 1, self.width))
        if self.learned_positions:
            self.pos_embed = self.param('pos_embed', lambda key: jnp.asarray(self._table(*self.grid))[None])
        if self.relative_bias:
            rows, columns = self.grid
            entries = (2 * rows - 1) * (2 * columns - 1) + 3
            self.relative_bias_table = self.param('relative_bias_table', nn.initializers.zeros, (entries, self.heads))
        self.blocks = make_blocks(
            self.depth,
            self.scan,
            self.remat,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            layer_scale=self.layer_scale,
            qkv_bias=self.qkv_bias,
            scheme=self.scheme,
            dtype=self.dtype,
        )
        self.norm = layer_norm(self.dtype)

    def levels(self, images: jax.Array, plan: MaskPlan | None = None) -> Levels:
        """f[B,H,W,3] normalised images -> Levels over V visible patches (N with mask_tokens or without a plan)."""
        patches = patchify(images.astype(self.dtype), self.patch_size)
        removed = plan is not None and not self.mask_tokens
        if removed:
            patches = gather_tokens(patches, plan.keep)
        embedding = keep_split(self.patch_embed(keep_split(patches)))
        if plan is not None and self.mask_tokens:
            embedding = jnp.where(plan.masked[..., None], self.mask_token.astype(self.dtype), embedding)
        placed = embedding
        if self.learned_positions or self.positions != 'none':
            grid = images.shape[1] // self.patch_size, images.shape[2] // self.patch_size
            positions = self.pos_embed[0] if self.learned_positions else self._table(*grid)
            positions = jnp.asarray(positions, self.dtype)
            placed = embedding + (jnp.take(positions, plan.keep, axis=0) if removed else positions)
        prefix = jnp.zeros((len(images), 0, self.width), self.dtype)
        if self.cls:
            prefix = jnp.broadcast_to(self.cls_token.astype(self.dtype), (len(images), 1, self.width))
        tokens = Tokens(prefix, placed)
        bias = self._bias(plan) if self.relative_bias else None
        rates = drop_rates(self.drop_path, self.depth)
        outputs, queries_keys = run_blocks(self.blocks, tokens.joined(), rates, bias)
        return Levels(
            embedding=tokens.replace(patches=embedding),
            placed=tokens,
            blocks=tuple(tokens.split(x) for x in outputs),
            queries_keys=queries_keys,
            attention_bias=bias,
            plan=plan,
        )

    def finish(self, tokens: Tokens) -> Tokens:
        """The final norm, on prefix and patches."""
        return tokens.map(self.norm)

    def __call__(self, images: jax.Array, plan: MaskPlan | None = None) -> Tokens:
        return self.finish(self.levels(images, plan).last)

    def _table(self, rows: int, columns: int) -> np.ndarray:
        """f32[N,D], fixed or initial positions."""
        return sincos_positions(rows, columns, self.width, row_first=self.positions == 'sincos_rows')

    def _bias(self, plan: MaskPlan | None) -> jax.Array:
        """f32[1 or B,heads,T,T]: the bias of every pair of tokens that is there."""
        index = relative_index(*self.grid)[1 - self.cls :, 1 - self.cls :]
        if plan is None or self.mask_tokens:
            return jnp.moveaxis(self.relative_bias_table[index], -1, 0)[None]
        kept = plan.keep + int(self.cls)
        if self.cls:
            kept = jnp.concatenate([jnp.zeros_like(kept[:, :1]), kept], axis=1)
        index = jnp.asarray(index)[kept[:, :, None], kept[:, None, :]]
        return jnp.moveaxis(self.relative_bias_table[index], -1, 1)
