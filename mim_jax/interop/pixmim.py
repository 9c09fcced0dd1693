"""The layout of PixMIM, and of MAE, in mmselfsup (open-mmlab/mmselfsup on mmcls' VisionTransformer).

Their fixed positions are [sin row | cos row | sin column | cos column], ours [sin column | cos column | sin row | cos row]:
the halves of the channels are exchanged. Every other operation on the residual stream treats its channels alike, so the
networks are equal once everything that reads or writes the stream has its halves exchanged, which the forms below do;
no weights are approximated. Probes and fine-tuning that read the encoder see its channels in the other order.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from mim_jax.tokens import sincos_positions
from mim_jax.weights.layout import LINEAR, PATCHES, SAME, Entry, Form, Layout


def _exchange_halves(a: np.ndarray, axis: int) -> np.ndarray:
    return np.roll(a, a.shape[axis] // 2, axis)


def _exchanged(form: Form, axis: int) -> Form:
    """`form` with the halves of one axis of our array exchanged."""
    return Form(
        lambda a: _exchange_halves(form.to_ours(a), axis),
        lambda a: form.to_theirs(_exchange_halves(a, axis)),
    )


STREAM = _exchanged(SAME, -1)  # a vector of the residual stream: biases of what writes to it, norms, tokens
WRITES = _exchanged(LINEAR, -1)
READS = _exchanged(LINEAR, 0)
BETWEEN = _exchanged(WRITES, 0)  # from one residual stream to another


def _norm(ours: str, theirs: str) -> tuple[Entry, ...]:
    return Entry(f'{ours}/scale', f'{theirs}.weight', STREAM), Entry(f'{ours}/bias', f'{theirs}.bias', STREAM)


def writer(ours: str, theirs: str, form: Form = WRITES) -> tuple[Entry, ...]:
    """Kernel and bias of a layer whose outputs are channels of the residual stream."""
    return Entry(f'{ours}/kernel', f'{theirs}.weight', form), Entry(f'{ours}/bias', f'{theirs}.bias', STREAM)


def _reader(ours: str, theirs: str) -> tuple[Entry, ...]:
    return Entry(f'{ours}/kernel', f'{theirs}.weight', READS), Entry(f'{ours}/bias', f'{theirs}.bias')


def _blocks(ours: str, theirs: str) -> tuple[Entry, ...]:
    return (
        *_norm(f'{ours}/norm1', f'{theirs}.ln1'),
        *_reader(f'{ours}/attn/qkv', f'{theirs}.attn.qkv'),
        *writer(f'{ours}/attn/out', f'{theirs}.attn.proj'),
        *_norm(f'{ours}/norm2', f'{theirs}.ln2'),
        *_reader(f'{ours}/mlp/fc1', f'{theirs}.ffn.layers.0.0'),
        *writer(f'{ours}/mlp/fc2', f'{theirs}.ffn.layers.1'),
    )


def _positions(width: Callable[[Any], int]) -> Callable[[Any], np.ndarray]:
    """recipe -> f32[1,1+N,D], zero for CLS."""

    def table(recipe: Any) -> np.ndarray:
        patches = sincos_positions(*recipe.grid, width(recipe), row_first=True)
        return np.concatenate([np.zeros_like(patches[:1]), patches])[None]

    return table


PIXMIM = Layout(
    'mmselfsup',
    entries=(
        *writer('encoder/patch_embed', 'backbone.patch_embed.projection', _exchanged(PATCHES, -1)),
        Entry('encoder/cls_token', 'backbone.cls_token', STREAM),
        *_blocks('encoder/block_{i}', 'backbone.layers.{i}'),
        *_norm('encoder/norm', 'backbone.ln1'),
        *writer('decoder/pixels/embed', 'neck.decoder_embed', BETWEEN),  # the encoder's stream to the decoder's own
        Entry('decoder/pixels/mask_token', 'neck.mask_token', STREAM),
        *_blocks('decoder/pixels/block_{i}', 'neck.decoder_blocks.{i}'),
        *_norm('decoder/pixels/norm', 'neck.ln1'),
        *_reader('decoder/pixels/head', 'neck.decoder_pred'),
    ),
    constants={
        'backbone.pos_embed': _positions(lambda recipe: recipe.encoder.width),
        'neck.decoder_pos_embed': _positions(lambda recipe: recipe.decoders['pixels'].module.width),
    },
    ignored={
        r'target_generator\.low_pass_filter': 'the disc is computed here',
    },
)
