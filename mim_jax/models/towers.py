"""Frozen towers: the visual tower of CLIP, DINO and DINOv2 as they were published, for teachers."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.errors import Refused
from mim_jax.models.layers import SCHEMES, drop_rates, layer_norm, make_blocks, normal_02, run_blocks
from mim_jax.models.levels import Levels
from mim_jax.parallel.activations import keep_split
from mim_jax.tokens import MaskPlan, Tokens, patchify

Feature = Literal['pre_ln', 'ln_post', 'proj']
FEATURES: tuple[Feature, ...] = ('pre_ln', 'ln_post', 'proj')


def resize_images(images: jax.Array, side: tuple[int, int]) -> jax.Array:
    """f[B,H,W,3] -> f[B,*side,3]: Pillow's bicubic, anti-aliased where it shrinks; what has that size already is returned."""
    if images.shape[1:3] == side:
        return images
    return jax.image.resize(images, (len(images), *side, images.shape[-1]), 'cubic', antialias=True)


class Tower(nn.Module):
    """A ViT with CLS and learned positions, CLS's among them, that sees whole images.

    grid: rows and columns of patches; images of another size than grid * patch_size are resized to it. pre_norm: CLIP's
    form, a norm before the first block and no bias in the patch embedding; layer_scale: DINOv2's; projected: width of the
    linear map, without bias, after the final norm (CLIP), 0 where there is none. activation: a key of layers.ACTIVATIONS;
    epsilon: of all norms. Residual stream, norms' statistics, softmax and activations are fp32 whatever `dtype`.

    Source: openai/CLIP clip/model.py (VisionTransformer); facebookresearch/dino vision_transformer.py;
    facebookresearch/dinov2 dinov2/models/vision_transformer.py; transformers' CLIPVisionModel, ViTModel, Dinov2Model.
    """

    patch_size: int
    width: int
    depth: int
    heads: int
    grid: tuple[int, int]
    mlp_ratio: float = 4.0
    pre_norm: bool = False
    layer_scale: bool = False
    projected: int = 0
    activation: Literal['gelu', 'quick_gelu'] = 'gelu'
    epsilon: float = 1e-6
    dtype: Any = jnp.float32
    cls: ClassVar[bool] = True
    mask_tokens: ClassVar[bool] = False

    def setup(self):
        rows, columns = self.grid
        scheme = SCHEMES['mae']
        self.patch_embed = nn.Dense(self.width, use_bias=not self.pre_norm, kernel_init=scheme.linear, dtype=self.dtype)
        self.cls_token = self.param('cls_token', scheme.cls_token, (1, 1, self.width))
        self.pos_embed = self.param('pos_embed', normal_02, (1, 1 + rows * columns, self.width))
        if self.pre_norm:
            self.norm_pre = layer_norm(jnp.float32, epsilon=self.epsilon)  # it makes the residual stream, which is fp32
        self.blocks = make_blocks(
            self.depth,
            scan=False,
            remat='none',
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            layer_scale=1.0 if self.layer_scale else None,
            activation=self.activation,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )
        self.norm = layer_norm(self.dtype, epsilon=self.epsilon)
        if self.projected:
            self.projection = nn.Dense(self.projected, use_bias=False, kernel_init=scheme.linear, dtype=self.dtype)

    def levels(self, images: jax.Array, plan: MaskPlan | None = None) -> Levels:
        """f[B,H,W,3] images, normalised as the tower was trained -> Levels over all N patches. ValueError: a plan."""
        if plan is not None:
            raise ValueError('a tower sees whole images; give its teacher no plan')
        side = tuple(count * self.patch_size for count in self.grid)
        patches = patchify(resize_images(images, side).astype(self.dtype), self.patch_size)
        patches = keep_split(self.patch_embed(keep_split(patches))).astype(jnp.float32)
        embedding = Tokens(jnp.broadcast_to(self.cls_token, (len(images), 1, self.width)), patches)
        x = embedding.joined() + self.pos_embed
        if self.pre_norm:
            x = self.norm_pre(x)
        outputs, queries_keys = run_blocks(self.blocks, x, drop_rates(0.0, self.depth))
        return Levels(
            embedding=embedding,
            placed=embedding.split(x),
            blocks=tuple(embedding.split(output) for output in outputs),
            queries_keys=queries_keys,
        )

    def finish(self, tokens: Tokens) -> Tokens:
        """The final norm, on CLS and patches (CLIP itself applies it to CLS alone)."""
        return tokens.map(self.norm)

    def project(self, tokens: Tokens) -> Tokens:
        """Finished tokens -> tokens of width `projected`: CLIP's joint space. Refuses a tower without projection."""
        if not self.projected:
            raise Refused(
                'This tower has no projection: take the feature ln_post or pre_ln, or a CLIP file that has one.'
            )
        return tokens.map(self.projection)

    def features(self, levels: Levels, choice: Feature) -> jax.Array:
        """f[B,N,C], the patches of the last block raw ('pre_ln'), after the final norm ('ln_post'), projected ('proj')."""
        if choice == 'pre_ln':
            return levels.last.patches
        finished = self.finish(levels.last)
        return (self.project(finished) if choice == 'proj' else finished).patches

    def __call__(self, images: jax.Array) -> Tokens:
        """f[B,H,W,3] -> the tokens at the very end: projected where there is a projection."""
        finished = self.finish(self.levels(images).last)
        return self.project(finished) if self.projected else finished
