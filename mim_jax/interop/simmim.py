"""SimMIM's released layout with a ViT (microsoft/SimMIM): what its checkpoints hold under 'model'."""

import math

import numpy as np

from mim_jax.interop.timm import beit_encoder
from mim_jax.tokens import relative_index
from mim_jax.weights.layout import Entry, Form, Layout


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

SIMMIM = Layout(
    'microsoft/SimMIM',
    entries=(
        *beit_encoder('encoder.'),
        Entry('decoder/pixels/linear/kernel', 'decoder.0.weight', SHUFFLE_KERNEL),
        Entry('decoder/pixels/linear/bias', 'decoder.0.bias', SHUFFLE_BIAS),
    ),
    constants={
        'encoder.rel_pos_bias.relative_position_index': lambda recipe: relative_index(*recipe.grid).astype(np.int64),
    },
)
