"""Masking strategies that several bases share: (forward, view) -> scores, whose lowest stay visible, and their counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from mim_jax.errors import Refused

if TYPE_CHECKING:
    from mim_jax.forward import Forward


def visible_count(patches: int, mask_ratio: float) -> int:
    """V = floor(N (1 - mask_ratio)), as in facebookresearch/mae. Raises Refused when nothing would be visible or masked."""
    visible = int(patches * (1 - mask_ratio))
    if not 0 < visible < patches:
        raise Refused(
            f'a mask_ratio of {mask_ratio} leaves {visible} of {patches} patches visible; '
            'at least one must be visible and one masked: change mask_ratio, image_size or encoder.patch_size.'
        )
    return visible


def random_scores(forward: Forward, view: str) -> jax.Array:
    """Uniform noise f32[B,N]; every view ranks the same noise, so that views of different blocks are disjoint."""
    del view
    return forward.uniform('mask', (forward.recipe.patches,))


def visible_in_cells(grid: tuple[int, int], cell: int, mask_ratio: float) -> int:
    """V when ceil(cells * mask_ratio) cells of cell x cell patches are masked whole, as in SimMIM and ConMIM.

    Raises Refused when the grid does not divide into cells, or nothing would be visible or masked.
    """
    rows, columns = grid
    if cell < 1 or rows % cell or columns % cell:
        raise Refused(
            f'a grid of {rows} x {columns} patches does not divide into mask cells of {cell} x {cell}; '
            'change image_size, encoder.patch_size or mask_cell.'
        )
    cells = rows * columns // cell**2
    masked = math.ceil(cells * mask_ratio)
    if not 0 < masked < cells:
        raise Refused(
            f'a mask_ratio of {mask_ratio} masks {masked} of {cells} cells; at least one must be visible and one masked: '
            'change mask_ratio, image_size or mask_cell.'
        )
    return (cells - masked) * cell**2


def cell_scores(cell: int) -> Callable[[Forward, str], jax.Array]:
    """Every cell of cell x cell patches ranks as one: f32[B,N], the rank of the patch's cell in uniform noise.

    Ranks, not the noise itself: two cells that drew the same number would otherwise be masked in pieces.
    """

    def scores(forward: Forward, view: str) -> jax.Array:
        del view
        rows, columns = (side // cell for side in forward.recipe.grid)
        noise = forward.uniform('mask', (rows * columns,))
        ranks = jnp.argsort(jnp.argsort(noise, axis=1), axis=1).reshape(-1, rows, columns)
        return ranks.repeat(cell, axis=1).repeat(cell, axis=2).reshape(len(noise), -1).astype(jnp.float32)

    return scores
