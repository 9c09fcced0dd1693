"""BootMAE's released layout (LightDXY/BootMAE models/modeling_pretrain_bootmae.py): encoder and both decoders.

Its checkpoints hold it under 'model', and the momentum model, which has the same form, under 'model_ema'.
"""

import math
from typing import Any

import numpy as np

from mim_jax.tokens import sincos_positions
from mim_jax.weights.layout import PATCHES, Entry, Form, Layout, linear, norm


def _to_convolution(a: np.ndarray) -> np.ndarray:
    side = math.isqrt(a.shape[1] // 3)
    return a.reshape(-1, side, side, 3).transpose(0, 3, 1, 2)


# torch ConvTranspose2d (in, 3, p, p) with stride p <-> the matrix (in, p*p*3), columns ordered (dy, dx, channel)
TRANSPOSED = Form(lambda a: a.transpose(0, 2, 3, 1).reshape(a.shape[0], -1), _to_convolution)


def _positions(recipe: Any, width: int) -> np.ndarray:
    """f32[1,1+N,width]: CLS has zeros."""
    table = sincos_positions(*recipe.grid, width, row_first=True)
    return np.concatenate([np.zeros_like(table[:1]), table])[None]


def _attention(ours: str, theirs: str, *kernels: str) -> tuple[Entry, ...]:
    return (
        *(entry for name in kernels for entry in linear(f'{ours}/{name}', f'{theirs}.{name}', bias=False)),
        Entry(f'{ours}/q_bias', f'{theirs}.q_bias'),
        Entry(f'{ours}/v_bias', f'{theirs}.v_bias'),
        *linear(f'{ours}/out', f'{theirs}.proj'),
    )


def _block(ours: str, theirs: str) -> tuple[Entry, ...]:
    return (
        *norm(f'{ours}/norm1', f'{theirs}.norm1'),
        *_attention(f'{ours}/attn', f'{theirs}.attn', 'qkv'),
        *norm(f'{ours}/norm2', f'{theirs}.norm2'),
        *linear(f'{ours}/mlp/fc1', f'{theirs}.mlp.fc1'),
        *linear(f'{ours}/mlp/fc2', f'{theirs}.mlp.fc2'),
    )


def _decoder(ours: str, suffix: str) -> tuple[Entry, ...]:
    """All but the head; the feature decoder's names are the pixel decoder's with '_1' behind."""
    block, theirs = f'{ours}/block_{{i}}', f'decode_blocks{suffix}.{{i}}'
    return (
        *linear(f'{ours}/embed', f'down{suffix}'),
        Entry(f'{ours}/mask_token', f'mask_token{suffix}'),
        *_block(block, theirs),
        *norm(f'{block}/norm3', f'{theirs}.norm3'),
        *norm(f'{block}/norm4', f'{theirs}.norm4'),
        *_attention(f'{block}/cross', f'{theirs}.c_attn', 'q', 'kv'),
        *norm(f'{ours}/norm', f'decode_norm{suffix}'),
    )


BOOTMAE = Layout(
    'LightDXY/BootMAE',
    entries=(
        *linear('encoder/patch_embed', 'patch_embed.proj', form=PATCHES),
        Entry('encoder/cls_token', 'cls_token'),
        *_block('encoder/block_{i}', 'blocks.{i}'),
        *norm('encoder/norm', 'norm'),
        *_decoder('decoder/pixels', ''),
        *linear('decoder/pixels/head', 'lm_head.proj', form=TRANSPOSED),
        *_decoder('decoder/features', '_1'),
        *linear('decoder/features/head', 'lm_head_1'),
    ),
    constants={
        'pos_embed': lambda recipe: _positions(recipe, recipe.encoder.width),
        'de_pos_embed': lambda recipe: _positions(recipe, recipe.decoders['pixels'].module.width),
    },
)
