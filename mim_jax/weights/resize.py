"""Position tables for another grid of patches, as PyTorch's bicubic interpolation resizes them."""

from __future__ import annotations

import math

import numpy as np

CUBIC = -0.75  # the free parameter of PyTorch's bicubic kernel; Pillow's is -0.5


def resize_positions(table: np.ndarray, source: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """f[rows*columns,D] of patches on `source` -> f32[rows*columns,D] on `target`, both (rows, columns).

    Bicubic, half-pixel centres, edges repeated, no anti-aliasing: torch's interpolate(mode='bicubic', align_corners=False),
    which facebookresearch/mae (util/pos_embed.py) and its descendants use.
    """
    grid = np.asarray(table, np.float64).reshape(*source, -1)
    rows, columns = (_cubic_weights(n, m) for n, m in zip(source, target, strict=True))
    return np.einsum('ry,cx,yxd->rcd', rows, columns, grid).reshape(-1, grid.shape[-1]).astype(np.float32)


def _cubic_weights(source: int, target: int) -> np.ndarray:
    """f64[target,source]: each row sums to 1."""
    weights = np.zeros((target, source))
    for i in range(target):
        centre = (i + 0.5) * source / target - 0.5
        first = math.floor(centre) - 1
        for tap in range(first, first + 4):
            weights[i, min(max(tap, 0), source - 1)] += _cubic(abs(centre - tap))
    return weights


def _cubic(x: float) -> float:
    """The cubic convolution kernel (Keys 1981) at distance x < 2."""
    if x <= 1:
        return ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
    return CUBIC * (((x - 5) * x + 8) * x - 4)


def square_grid(entries: int) -> tuple[int, int] | None:
    """(side, side) of a table with one entry per patch; None when it is not of a square grid."""
    side = math.isqrt(entries)
    return (side, side) if side * side == entries else None
