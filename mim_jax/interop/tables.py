"""What other libraries store and we compute: tables of fixed positions and of indices. Every fault is a ValueError."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mim_jax.interop.formats import Format
from mim_jax.recipe import Recipe
from mim_jax.weights.resize import resize_positions, square_grid

SAME, SAME_IN_HALF = 1e-5, 2e-3  # largest difference of equal sine-cosine tables, and where one was stored in 16 bits


@dataclass(frozen=True)
class Positions:
    """patches f32[1,N,D] to learn, None where the fixed ones stay; prefix f32[1,1,D]: the position of CLS, None if zero."""

    patches: np.ndarray | None
    prefix: np.ndarray | None
    resized: str = ''
    recomputed: str = ''


def read_positions(table: np.ndarray, form: Format, recipe: Recipe, learned: bool, half: bool) -> Positions:
    """The encoder's table of absolute positions, in our order, on our grid.

    A model that learns positions takes any table. One with fixed positions takes the table only if it is those, and the
    position of CLS, whatever it is: that is a constant added to the CLS token, so it can become part of it.
    """
    name, prefix = form.positions.theirs, int(recipe.encoder.cls)
    fixed = form.layout.constants[name](recipe)
    source = square_grid(table.shape[1] - prefix) if table.ndim == 3 else None
    if table.dtype.kind != 'f' or source is None or table.shape[-1] != fixed.shape[-1]:
        raise ValueError(f'not a table of positions of width {fixed.shape[-1]} on a square grid')
    ours = form.positions.form.to_ours(table)
    moved = ours[:, :prefix] if ours[:, :prefix].any() else None
    here, there = _grid_text(recipe.grid), _grid_text(source)
    if learned:
        if source == recipe.grid:
            return Positions(np.array(ours[:, prefix:]), moved)
        patches = resize_positions(ours[0, prefix:], source, recipe.grid)[None]
        return Positions(patches, moved, resized=f'from {there} to {here} patches')
    if source != recipe.grid:
        raise ValueError(
            f'positions of {there} patches, where this config has {here}; set encoder.positions=learned to resize and '
            f'train them, or --ignore {name} to use the fixed ones'
        )
    difference = float(np.abs(table[:, prefix:] - fixed[:, prefix:]).max())
    if difference > (SAME_IN_HALF if half else SAME):
        raise ValueError(
            f'not the fixed positions (they differ by up to {difference:.2g}); set encoder.positions=learned to keep them'
        )
    return Positions(None, moved, recomputed=f'the fixed positions (largest difference {difference:.1e})')


def check_constant(
    name: str, table: np.ndarray, compute: Callable[[Recipe], np.ndarray], recipe: Recipe, half: bool
) -> str:
    """A line on a constant that is ours, on this grid or (made anew, then) on its own."""
    expected, tolerance = compute(recipe), SAME_IN_HALF if half else SAME
    if table.shape == expected.shape:
        difference = _difference(table, expected)
        if difference > tolerance:
            raise ValueError(
                f'differs by up to {difference:.2g} from the one computed here; --ignore {name} to use that'
            )
        return f'a constant (largest difference {difference:.1e})'
    # Another grid: of N or 1 + N entries along the second axis, whichever it is, the root rounded down is its side.
    side = math.isqrt(table.shape[1]) if table.ndim > 1 else 0
    config = recipe.config.copy_and_resolve_references().unlock()
    config.image_size = side * recipe.encoder.patch_size
    there = compute(replace(recipe, config=config)) if side else expected
    if table.shape != there.shape or _difference(table, there) > tolerance:
        raise ValueError(f'wanted {expected.shape}; --ignore {name} to use the one computed here')
    return f'a constant, for {_grid_text(recipe.grid)} patches in place of {side} x {side}'


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float64) - b).max())


def _grid_text(grid: tuple[int, int]) -> str:
    return f'{grid[0]} x {grid[1]}'
