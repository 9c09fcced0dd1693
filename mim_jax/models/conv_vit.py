"""The convolutional ViT of MCMAE: two masked convolution stages, then transformer blocks, for visible patches only."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.models.depthwise import DepthwiseConv
from mim_jax.models.layers import (
    REMAT_POLICIES,
    Initializer,
    drop_path,
    drop_rates,
    fan_in_uniform,
    gelu,
    layer_norm,
    make_blocks,
    run_blocks,
    xavier,
)
from mim_jax.models.levels import Levels
from mim_jax.models.places import Places
from mim_jax.parallel.activations import keep_split
from mim_jax.tokens import MaskPlan, Tokens, patchify, sincos_positions


def stage_norm(dtype: Any, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm of the convolution stages and patch embeddings: epsilon 1e-5, PyTorch's default."""
    return nn.LayerNorm(epsilon=1e-5, dtype=dtype, use_fast_variance=False, name=name)


def convolution(width: int, fan_in: int, dtype: Any, name: str, kernel_init: Initializer | None = None) -> nn.Dense:
    """A convolution whose kernel is its stride, so one matrix product; kernel and bias as PyTorch leaves a Conv2d's."""
    uniform = fan_in_uniform(fan_in)
    return nn.Dense(width, kernel_init=kernel_init or uniform, bias_init=uniform, dtype=dtype, name=name)


class StageEmbed(nn.Module):
    """Convolution, norm, GELU."""

    width: int
    kernel_init: Initializer | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """f[B,T,values under the kernel] -> f[B,T,width]."""
        proj = convolution(self.width, x.shape[-1], self.dtype, 'proj', self.kernel_init)
        return gelu(stage_norm(self.dtype, 'norm')(proj(x)))


class ConvBlock(nn.Module):
    """x + conv2(depthwise 5x5(visible * conv1(norm x))), then x + MLP(norm x), all but the depth-wise one pointwise.

    Source: Alpha-VL/ConvMAE vision_transformer.py (CBlock).
    """

    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, drop_rate: jax.Array, places: Places) -> jax.Array:
        """Visible cells f[B,V*n,C] -> f[B,V*n,C]."""
        x, width = keep_split(x), x.shape[-1]
        hidden = int(self.mlp_ratio * width)
        y = convolution(width, width, self.dtype, 'conv1')(stage_norm(self.dtype, 'norm1')(x))
        y = places.collect(DepthwiseConv(5, name='depthwise')(places.spread(y)))
        y = convolution(width, width, self.dtype, 'conv2')(y)
        x = x + drop_path(self, y, drop_rate)
        y = gelu(convolution(hidden, width, self.dtype, 'fc1')(stage_norm(self.dtype, 'norm2')(x)))
        y = convolution(width, hidden, self.dtype, 'fc2')(y)
        return keep_split(x + drop_path(self, y, drop_rate))


class ConvStage(nn.Module):
    """`depth` convolution blocks named block_00, ..."""

    depth: int
    mlp_ratio: float = 4.0
    remat: str = 'none'
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, rates: jax.Array, places: Places) -> jax.Array:
        """Visible cells f[B,V*n,C], drop-path rates f32[depth] -> f[B,V*n,C]."""
        kind = ConvBlock if self.remat == 'none' else nn.remat(ConvBlock, policy=REMAT_POLICIES[self.remat])
        for i in range(self.depth):
            x = kind(self.mlp_ratio, self.dtype, name=f'block_{i:02d}')(x, rates[i], places)
        return x


class ConvViT(nn.Module):
    """Stages of patch_size/4, patch_size/2 and patch_size pixels a position; the last is a ViT without CLS.

    width, depth, heads: of the transformer stage; stage_widths, stage_depths: of the two before. Only the depth-wise
    convolution mixes positions of different patches, and it reads zeros where the mask is. So the stages compute visible
    patches alone, which equals the released code there exactly; what that computes for masked patches it throws away.
    Drop-path ramps over the blocks of all stages (ConvViT in the released vision_transformer.py).
    Levels.maps: 'stage1' f[B,V,16,C1] and 'stage2' f[B,V,4,C2], the stages' outputs at the cells of each visible patch.

    Source: Alpha-VL/ConvMAE models_convmae.py. patch_size is a multiple of 4.
    """

    cls: ClassVar[bool] = False
    mask_tokens: ClassVar[bool] = False

    patch_size: int
    width: int
    depth: int
    heads: int
    grid: tuple[int, int] | None = None
    stage_widths: tuple[int, int] = (256, 384)
    stage_depths: tuple[int, int] = (2, 2)
    mlp_ratio: float = 4.0
    learned_positions: bool = False
    drop_path: float = 0.0
    scan: bool = False
    remat: str = 'none'
    dtype: Any = jnp.float32

    def setup(self):
        shared = {'mlp_ratio': self.mlp_ratio, 'dtype': self.dtype}
        self.embed1, self.embed2 = (StageEmbed(width, dtype=self.dtype) for width in self.stage_widths)
        self.embed3 = StageEmbed(self.width, xavier, dtype=self.dtype)
        self.embed4 = nn.Dense(self.width, kernel_init=xavier, dtype=self.dtype)
        self.stage1, self.stage2 = (ConvStage(depth, remat=self.remat, **shared) for depth in self.stage_depths)
        self.blocks = make_blocks(self.depth, self.scan, self.remat, heads=self.heads, **shared)
        if self.learned_positions:
            self.pos_embed = self.param(
                'pos_embed', lambda key: jnp.asarray(sincos_positions(*self.grid, self.width))[None]
            )
        self.norm = layer_norm(self.dtype)

    def levels(self, images: jax.Array, plan: MaskPlan | None = None) -> Levels:
        """f[B,H,W,3] normalised images -> Levels over V visible patches (N without a plan)."""
        places = Places(plan, images.shape[1] // self.patch_size, images.shape[2] // self.patch_size)
        first, second = self.stage_depths
        rates = drop_rates(self.drop_path, first + second + self.depth)

        fine = self.patch_size // 4  # pixels a cell of stage 1
        pixels = patchify(images.astype(self.dtype), fine).reshape(len(images), 4 * places.rows, 4 * places.columns, -1)
        cells = self.embed1(keep_split(places.collect(pixels)))
        stage1 = self.stage1(cells, rates[:first], places)
        stage2 = self.stage2(self.embed2(places.merge(stage1)), rates[first : first + second], places)
        embedding = keep_split(self.embed4(self.embed3(places.merge(stage2))))

        positions = (
            self.pos_embed[0] if self.learned_positions else sincos_positions(places.rows, places.columns, self.width)
        )
        positions = jnp.asarray(positions, self.dtype)
        placed = embedding + (positions if plan is None else jnp.take(positions, plan.keep, axis=0))
        tokens = Tokens(jnp.zeros((len(images), 0, self.width), self.dtype), placed)
        outputs, queries_keys = run_blocks(self.blocks, tokens.joined(), rates[first + second :])
        return Levels(
            embedding=tokens.replace(patches=embedding),
            placed=tokens,
            blocks=tuple(tokens.split(x) for x in outputs),
            queries_keys=queries_keys,
            maps={'stage1': places.per_patch(stage1), 'stage2': places.per_patch(stage2)},
            plan=plan,
        )

    def finish(self, tokens: Tokens) -> Tokens:
        """The final norm."""
        return tokens.map(self.norm)

    def __call__(self, images: jax.Array, plan: MaskPlan | None = None) -> Tokens:
        return self.finish(self.levels(images, plan).last)
