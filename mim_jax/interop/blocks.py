"""Our own two ways to store a stack of blocks, and the two ways to store the biases of its attention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax
import numpy as np

from mim_jax.weights.layout import Arrays, Layout


def unstack_blocks(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """'encoder/blocks/norm1/scale' f[depth,...] of encoder.scan=True -> 'encoder/block_00/norm1/scale', ...; others stay."""
    result = {}
    for path, array in arrays.items():
        head, stacked, rest = path.partition('/blocks/')
        if stacked:
            result |= {f'{head}/block_{i:02d}/{rest}': layer for i, layer in enumerate(array)}
        else:
            result[path] = array
    return result


def unstack_shapes(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    """`unstack_blocks` of shapes."""
    result = {}
    for path, leaf in shapes.items():
        head, stacked, rest = path.partition('/blocks/')
        one = jax.ShapeDtypeStruct(leaf.shape[1:] if stacked else leaf.shape, leaf.dtype)
        names = [f'{head}/block_{i:02d}/{rest}' for i in range(leaf.shape[0])] if stacked else [path]
        result |= dict.fromkeys(names, one)
    return result


def stack_blocks(arrays: Mapping[str, np.ndarray], like: Mapping[str, np.ndarray]) -> Arrays:
    """The inverse of `unstack_blocks`: exactly the paths of `like`."""
    result = {}
    for path, target in like.items():
        head, stacked, rest = path.partition('/blocks/')
        parts = [f'{head}/block_{i:02d}/{rest}' for i in range(target.shape[0])] if stacked else [path]
        result[path] = np.stack([arrays[part] for part in parts]) if stacked else arrays[path]
    return result


def value_bias(path: str) -> str:
    """'.../attn/q_bias' -> '.../attn/v_bias'."""
    return path.replace('q_bias', 'v_bias')


def packed_paths(paths: Iterable[str], layout: Layout) -> dict[str, str]:
    """{'.../attn/q_bias': '.../attn/qkv/bias'} where we keep query and value biases and the layout all three in one."""
    found = {path: path.replace('q_bias', 'qkv/bias') for path in paths if path.endswith('attn/q_bias')}
    return {path: packed for path, packed in found.items() if not layout.covers(path) and layout.covers(packed)}


def pack_biases(arrays: Mapping[str, np.ndarray], layout: Layout) -> Arrays:
    """Query and value biases in one vector with zeros for keys, where the layout stores them so."""
    arrays = dict(arrays)
    for path, packed in packed_paths(arrays, layout).items():
        query, value = arrays.pop(path), arrays.pop(value_bias(path))
        arrays[packed] = np.concatenate([query, np.zeros_like(query), value])
    return arrays


def unpack_bias(path: str, packed: np.ndarray) -> Arrays:
    """The inverse of `pack_biases` for the query bias at `path`. Raises ValueError when keys have a bias."""
    query, key, value = np.split(packed, 3)
    if key.any():
        raise ValueError('its keys have a bias, which this encoder lacks')
    return {path: query, value_bias(path): value}
