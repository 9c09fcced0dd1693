"""Names and layouts of the released ConvMAE: MaskedAutoencoderConvViT.state_dict() of Alpha-VL/ConvMAE."""

import numpy as np

from mim_jax.interop.timm import packed_bias, timm_blocks
from mim_jax.recipe import Recipe
from mim_jax.tokens import sincos_positions
from mim_jax.weights.layout import PATCHES, Entry, Form, Layout, linear, norm


def convolution(side: int) -> Form:
    """torch Conv2d (out, in, side, side) with stride `side` <-> the matrix (side*side*in, out), rows ordered (dy, dx, in)."""
    return Form(PATCHES.to_ours, lambda a: a.reshape(side, side, -1, a.shape[-1]).transpose(3, 2, 0, 1))


POINTWISE = convolution(1)
DEPTHWISE = Form(lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))  # (C, 1, k, k) <-> (k, k, 1, C)


def convolution_stage(stage: int) -> tuple[Entry, ...]:
    """A stage's embedding, its blocks and what it adds to the transformer's output."""
    ours, theirs = f'encoder/stage{stage}/block_{{i}}', f'blocks{stage}.{{i}}'
    return (
        *linear(
            f'encoder/embed{stage}/proj', f'patch_embed{stage}.proj', form=PATCHES if stage == 1 else convolution(2)
        ),
        *norm(f'encoder/embed{stage}/norm', f'patch_embed{stage}.norm'),
        *norm(f'{ours}/norm1', f'{theirs}.norm1'),
        *linear(f'{ours}/conv1', f'{theirs}.conv1', form=POINTWISE),
        *linear(f'{ours}/depthwise', f'{theirs}.attn', form=DEPTHWISE),
        *linear(f'{ours}/conv2', f'{theirs}.conv2', form=POINTWISE),
        *norm(f'{ours}/norm2', f'{theirs}.norm2'),
        *linear(f'{ours}/fc1', f'{theirs}.mlp.fc1', form=POINTWISE),
        *linear(f'{ours}/fc2', f'{theirs}.mlp.fc2', form=POINTWISE),
        *linear(f'neck/stages/stage{stage}', f'stage{stage}_output_decode', form=convolution(4 if stage == 1 else 2)),
    )


def encoder_positions(recipe: Recipe) -> np.ndarray:
    """f32[1,N,D]."""
    return sincos_positions(*recipe.grid, recipe.encoder.width)[None]


def decoder_positions(recipe: Recipe) -> np.ndarray:
    """f32[1,N,D of the decoder]."""
    return sincos_positions(*recipe.grid, recipe.module('decoder/pixels').width)[None]


CONVMAE = Layout(
    name='Alpha-VL/ConvMAE',
    entries=(
        *convolution_stage(1),
        *convolution_stage(2),
        *linear('encoder/embed3/proj', 'patch_embed3.proj', form=convolution(2)),
        *norm('encoder/embed3/norm', 'patch_embed3.norm'),
        *linear('encoder/embed4', 'patch_embed4'),
        *timm_blocks('encoder', 'blocks3'),
        packed_bias('encoder', 'blocks3'),
        *norm('encoder/norm', 'norm'),
        *linear('decoder/pixels/embed', 'decoder_embed'),
        Entry('decoder/pixels/mask_token', 'mask_token'),
        *timm_blocks('decoder/pixels', 'decoder_blocks'),
        packed_bias('decoder/pixels', 'decoder_blocks'),
        *norm('decoder/pixels/norm', 'decoder_norm'),
        *linear('decoder/pixels/head', 'decoder_pred'),
    ),
    constants={'pos_embed': encoder_positions, 'decoder_pos_embed': decoder_positions},
)
