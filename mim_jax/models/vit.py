"""The Vision Transformer encoder, in MAE's form (visible patches only) and in SimMIM's (mask tokens inside)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.models.layers import fan_in_uniform, layer_norm, make_blocks, normal_02, run_blocks, xavier
from mim_jax.models.levels import Levels
from mim_jax.parallel.activations import keep_split
from mim_jax.tokens import MaskPlan, Tokens, gather_tokens, patchify, sincos_positions


class ViT(nn.Module):
    """Patch embedding, fixed sine-cosine positions, optional CLS, `depth` pre-norm blocks, final norm.

    With mask_tokens=False masked patches are removed before they are embedded, which is exact because the embedding is
    one matrix product per patch. Source: facebookresearch/mae models_mae.py; initialisation in design/methods section 1.
    """

    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    cls: bool = True
    mask_tokens: bool = False
    drop_path: float = 0.0
    layer_scale: float | None = None
    scan: bool = False
    remat: str = 'none'
    dtype: Any = jnp.float32

    def setup(self):
        patch_values = self.patch_size**2 * 3
        # A strided convolution with kernel = stride is this product; the kernel's rows follow patchify's (dy, dx, channel).
        self.patch_embed = nn.Dense(
            self.width, kernel_init=xavier, bias_init=fan_in_uniform(patch_values), dtype=self.dtype
        )
        if self.cls:
            self.cls_token = self.param('cls_token', normal_02, (1, 1, self.width))
        if self.mask_tokens:
            self.mask_token = self.param('mask_token', normal_02, (1, 1, self.width))
        self.blocks = make_blocks(
            self.depth,
            self.scan,
            self.remat,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            layer_scale=self.layer_scale,
            dtype=self.dtype,
        )
        self.norm = layer_norm(self.dtype)

    def levels(self, images: jax.Array, plan: MaskPlan | None = None) -> Levels:
        """f[B,H,W,3] normalised images -> Levels over V visible patches (N with mask_tokens or without a plan)."""
        b, rows, columns = images.shape[0], images.shape[1] // self.patch_size, images.shape[2] // self.patch_size
        patches = patchify(images.astype(self.dtype), self.patch_size)
        positions = jnp.asarray(sincos_positions(rows, columns, self.width), self.dtype)[None]
        if plan is not None and not self.mask_tokens:
            patches = gather_tokens(patches, plan.keep)
            positions = jnp.take(positions[0], plan.keep, axis=0)
        embedding = keep_split(self.patch_embed(keep_split(patches)))
        if plan is not None and self.mask_tokens:
            embedding = jnp.where(plan.masked[..., None], self.mask_token.astype(self.dtype), embedding)
        prefix = jnp.zeros((b, 0, self.width), self.dtype)
        if self.cls:
            prefix = jnp.broadcast_to(self.cls_token.astype(self.dtype), (b, 1, self.width))
        tokens = Tokens(prefix, embedding + positions)
        outputs, queries_keys = run_blocks(self.blocks, tokens.joined(), self.depth, self.drop_path)
        return Levels(
            embedding=tokens.replace(patches=embedding),
            blocks=tuple(tokens.split(x) for x in outputs),
            queries_keys=queries_keys,
            plan=plan,
        )

    def finish(self, tokens: Tokens) -> Tokens:
        """The final norm, on prefix and patches."""
        return tokens.map(self.norm)

    def __call__(self, images: jax.Array, plan: MaskPlan | None = None) -> Tokens:
        return self.finish(self.levels(images, plan).last)
