"""An encoder's parameters in a file of their own, in our names: what a protocol reads that trains nothing of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mim_jax.models.levels import Encoder
from mim_jax.weights.files import WeightsError, read_weights, write_safetensors

PREFIX = 'encoder/'


def save_encoder(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> None:
    """{'encoder/...': f32, blocks apart} -> a safetensors file, written in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, {name: np.asarray(array, np.float32) for name, array in arrays.items()}, about)


def load_encoder(path: Path, encoder: Encoder) -> Any:
    """The nested parameters of `encoder` (blocks apart: scan=False), kernels in its dtype, everything else in fp32.

    Raises WeightsError listing what is missing, unknown or mis-shaped.
    """
    arrays, wanted = read_weights(path).arrays, encoder_shapes(encoder)
    problems = [f'{name}: missing' for name in sorted(wanted.keys() - arrays.keys())]
    problems += [f'{name}: unknown' for name in sorted(arrays.keys() - wanted.keys())]
    problems += [
        f'{name}: shape {arrays[name].shape}, wanted {leaf.shape}'
        for name, leaf in sorted(wanted.items())
        if name in arrays and arrays[name].shape != leaf.shape
    ]
    if problems:
        raise WeightsError(f'{path} does not hold this encoder:\n  ' + '\n  '.join(problems))
    flat = {
        name.removeprefix(PREFIX): array.astype(frozen_dtype(name, encoder.dtype)) for name, array in arrays.items()
    }
    return traverse_util.unflatten_dict(flat, sep='/')


def frozen_dtype(path: str, dtype: Any) -> Any:
    """Of a parameter that is never trained: kernels, nearly all of the memory, are in `dtype`, everything else in fp32."""
    return dtype if path.endswith('/kernel') else jnp.float32


def describe_encoder(encoder: Encoder) -> Any:
    """The nested shapes and dtypes of a frozen encoder's parameters, as they are once loaded."""
    flat = {
        path.removeprefix(PREFIX): jax.ShapeDtypeStruct(leaf.shape, frozen_dtype(path, encoder.dtype))
        for path, leaf in encoder_shapes(encoder).items()
    }
    return traverse_util.unflatten_dict(flat, sep='/')


def encoder_shapes(encoder: Encoder) -> dict[str, jax.ShapeDtypeStruct]:
    """{'encoder/...': shape} of all parameters."""
    side = encoder.grid[0] * encoder.patch_size
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    made = jax.eval_shape(encoder.init, jax.random.key(0), image)['params']
    return {PREFIX + path: leaf for path, leaf in traverse_util.flatten_dict(made, sep='/').items()}
