"""Relative-bias tables for another grid of patches, as the methods' own code resizes them."""

from __future__ import annotations

import math

import numpy as np
from scipy.interpolate import RectBivariateSpline

SPECIAL = 3  # last rows of a relative-bias table: CLS to patch, patch to CLS, CLS to CLS


def resize_relative_bias(table: np.ndarray, source: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """f[(2r-1)(2c-1)+3,heads] for the grid `source` (r, c) -> f32, the same for the grid `target`; the special rows stay.

    The known offsets are put at geometrically growing distances, such that they span the wanted ones, and a cubic spline
    through them is read at whole distances: near offsets keep their resolution. Source: BEiT run_class_finetuning.py, as
    in microsoft/SimMIM utils.py (remap_pretrained_keys_vit).
    """
    table = np.asarray(table, np.float64)
    known = [_geometric_offsets(2 * n - 1, 2 * m - 1) for n, m in zip(source, target, strict=True)]
    wanted = [np.arange(1.0 - m, m) for m in target]
    grid = table[:-SPECIAL].reshape(2 * source[0] - 1, 2 * source[1] - 1, -1)
    degrees = [min(3, len(offsets) - 1) for offsets in known]
    heads = [
        RectBivariateSpline(*known, grid[..., head], kx=degrees[0], ky=degrees[1])(*wanted).ravel()
        for head in range(grid.shape[-1])
    ]
    return np.concatenate([np.stack(heads, axis=-1), table[-SPECIAL:]]).astype(np.float32)


def _geometric_offsets(source: int, target: int) -> np.ndarray:
    """f64[source]: 0 and, on both sides, 1, 1 + q, 1 + q + q^2, ...; q such that the last is about target // 2.

    q is looked for in 1.01 to 1.5 by halving, to 1e-6, because the released code does so.
    """
    low, high, steps = 1.01, 1.5, source // 2
    ratio = low
    while high - low > 1e-6:
        ratio = (low + high) / 2.0
        reach = (1.0 - ratio**steps) / (1.0 - ratio)
        low, high = (low, ratio) if reach > target // 2 else (ratio, high)
    distances = np.cumsum(ratio ** np.arange(steps))
    return np.concatenate([-distances[::-1], [0.0], distances])


def square_relative_grid(entries: int) -> tuple[int, int] | None:
    """(side, side), 2 or more, of a relative-bias table with so many rows; None when it is not of a square grid."""
    span = math.isqrt(max(entries - SPECIAL, 0))
    return ((span + 1) // 2,) * 2 if span * span == entries - SPECIAL and span % 2 and span > 1 else None
