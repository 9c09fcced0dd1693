"""SimMIM's released layout with a ViT (microsoft/SimMIM): what its checkpoints hold under 'model'."""

import math

import numpy as np

from mim_jax.interop.layout import PATCHES, Entry, Form, Layout, linear, norm
from mim_jax.tokens import relative_index


def _to_pixel_order(a: np.ndarray) -> np.ndarray:
    """Last axis from (channel, dy, dx), as a pixel shuffle reads it, to patchify's (dy, dx, channel)."""
    side = math.isqrt(a.shape[-1] // 3)
    return np.moveaxis(a.reshape(*a.shape[:-1], 3, side, side), -3, -1).reshape(a.shape)


def _to_shuffle_order(a: np.ndarray) -> np.ndarray:
    """The inverse of `_to_pixel_order`."""
    side = math.isqrt(a.shape[-1] // 3)
    return np.moveaxis(a.reshape(*a.shape[:-1], side, side, 3), -1, -3).reshape(a.shape)


SHUFFLE_BIAS = Form(_to_pixel_order, _to_shuffle_order)
# torch Conv2d (out, in, 1, 1) before a pixel shuffle <-> the matrix (in, out)
SHUFFLE_KERNEL = Form(
    lambda a: _to_pixel_order(a[:, :, 0, 0].T),
    lambda a: _to_shuffle_order(a).T[:, :, None, None],
)

_OURS, _THEIRS = 'encoder/block_{i}', 'encoder.blocks.{i}'

SIMMIM = Layout(
    'microsoft/SimMIM',
    entries=(
        *linear('encoder/patch_embed', 'encoder.patch_embed.proj', form=PATCHES),
        Entry('encoder/cls_token', 'encoder.cls_token'),
        Entry('encoder/mask_token', 'encoder.mask_token'),
        Entry('encoder/relative_bias_table', 'encoder.rel_pos_bias.relative_position_bias_table'),
        *norm(f'{_OURS}/norm1', f'{_THEIRS}.norm1'),
        *linear(f'{_OURS}/attn/qkv', f'{_THEIRS}.attn.qkv', bias=False),
        Entry(f'{_OURS}/attn/q_bias', f'{_THEIRS}.attn.q_bias'),
        Entry(f'{_OURS}/attn/v_bias', f'{_THEIRS}.attn.v_bias'),
        *linear(f'{_OURS}/attn/out', f'{_THEIRS}.attn.proj'),
        Entry(f'{_OURS}/gamma_1', f'{_THEIRS}.gamma_1'),
        *norm(f'{_OURS}/norm2', f'{_THEIRS}.norm2'),
        *linear(f'{_OURS}/mlp/fc1', f'{_THEIRS}.mlp.fc1'),
        *linear(f'{_OURS}/mlp/fc2', f'{_THEIRS}.mlp.fc2'),
        Entry(f'{_OURS}/gamma_2', f'{_THEIRS}.gamma_2'),
        *norm('encoder/norm', 'encoder.norm'),
        Entry('decoder/pixels/linear/kernel', 'decoder.0.weight', SHUFFLE_KERNEL),
        Entry('decoder/pixels/linear/bias', 'decoder.0.bias', SHUFFLE_BIAS),
    ),
    constants={
        'encoder.rel_pos_bias.relative_position_index': lambda recipe: relative_index(*recipe.grid).astype(np.int64),
    },
)
