"""What the goldens of the methods share: weights by rule, photographs, and samples small enough to store.

NumPy only, so that the scripts that write goldens (with PyTorch) and the tests that read them (with JAX) import it alike.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / 'golden'
SAMPLES = 64  # values kept of an array, beside its norm and its largest value


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """U[-1, 1) f64, a function of the name alone: Philox bits keyed by its CRC-32, the same on any NumPy."""
    bits = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    return (2.0 * (bits >> np.uint64(11)) * 2.0**-53 - 1.0).reshape(shape)


def draw_weight(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value f32 of the parameter at one of our paths (no leading 'params/'), with u = uniform(path).

    scale (norms): 1 + 0.2 u; gamma_* (LayerScale): 0.5 + 0.2 u; kernels: u sqrt(3 / inputs), all but the last axis being
    inputs; biases, tokens, tables: 0.3 u.
    """
    u, name = uniform(path, shape), path.rpartition('/')[2]
    if name == 'scale':
        value = 1.0 + 0.2 * u
    elif name.startswith('gamma'):
        value = 0.5 + 0.2 * u
    elif name == 'kernel':
        value = u * (3.0 / np.prod(shape[:-1])) ** 0.5
    else:
        value = 0.3 * u
    return value.astype(np.float32)


def draw_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """{path: shape} -> {path: value}."""
    return {path: draw_weight(path, tuple(shape)) for path, shape in shapes.items()}


def photographs(side: int, count: int = 2) -> np.ndarray:
    """u8[count,side,side,3], count <= 4, side <= 112: corners of the photographs in golden/photos.npz."""
    with np.load(GOLDEN / 'photos.npz') as stored:
        return stored['images'][:count, :side, :side].copy()


def sample(name: str, array: np.ndarray) -> np.ndarray:
    """f32[2+n]: Euclidean norm and largest absolute value of an array, then up to SAMPLES values at places set by the name."""
    flat = np.asarray(array, np.float64).ravel()
    if flat.size > SAMPLES:
        places = ((uniform(f'sample/{name}', (SAMPLES,)) + 1.0) / 2.0 * flat.size).astype(np.int64)
        values = flat[places]
    else:
        values = flat
    return np.concatenate([[np.linalg.norm(flat), np.abs(flat).max()], values]).astype(np.float32)


def sample_all(arrays: Mapping[str, np.ndarray], prefix: str = '') -> dict[str, np.ndarray]:
    """`sample` of every array, under prefix + name, ready for np.savez_compressed."""
    return {f'{prefix}{name}': sample(name, array) for name, array in arrays.items()}


def largest_difference(
    ours: Mapping[str, np.ndarray], stored: Mapping[str, np.ndarray], relative: bool, floor: float = 0.0
) -> tuple[float, str]:
    """(largest difference between our arrays and the stored samples of the same names, its name).

    relative: divided by the reference array's largest value, or by `floor` where that is larger (for gradients that are
    zero in exact arithmetic). The norm is compared like a value, over the reference's norm. The names must be the same.
    """
    assert ours.keys() == stored.keys(), sorted(ours.keys() ^ stored.keys())
    worst = (0.0, '')
    for name, reference in stored.items():
        found = sample(name, ours[name])
        assert found.shape == reference.shape, name
        difference = float(np.abs(found[1:] - reference[1:]).max())
        if relative:
            by_norm = abs(float(found[0]) - float(reference[0])) / max(float(reference[0]), floor, 1e-30)
            difference = max(difference / max(float(reference[1]), floor, 1e-30), by_norm)
        worst = max(worst, (difference, name))
    return worst


def under(stored: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The entries below a prefix, without it."""
    return {name.removeprefix(prefix): array for name, array in stored.items() if name.startswith(prefix)}
