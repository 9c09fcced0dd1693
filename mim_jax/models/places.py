"""Feature maps finer than the patch grid, kept at the visible patches only, and spread out where neighbours are read."""

import math

import jax
import jax.numpy as jnp
from flax import struct

from mim_jax.tokens import MaskPlan, gather_tokens, patchify, unpatchify


@struct.dataclass
class Places:
    """Where the visible patches of each image are; plan None: all of them, row by row.

    A patch holds n = s x s cells, row by row: the positions of a feature map that lie inside it. Cells of the visible
    patches are kept as f[B,V*n,C], patch by patch.
    """

    plan: MaskPlan | None
    rows: int = struct.field(pytree_node=False)
    columns: int = struct.field(pytree_node=False)

    def per_patch(self, cells: jax.Array) -> jax.Array:
        """f[B,V*n,C] -> f[B,V,n,C]."""
        patches = self.rows * self.columns if self.plan is None else self.plan.keep.shape[1]
        return cells.reshape(len(cells), patches, -1, cells.shape[-1])

    def merge(self, cells: jax.Array) -> jax.Array:
        """f[B,V*n,C] -> f[B,V*n/4,4*C], squares of 2 x 2 cells: what a convolution of stride 2 reads."""
        b, patches, n, channels = self.per_patch(cells).shape
        squares = cells.reshape(b * patches, math.isqrt(n), math.isqrt(n), channels)
        return patchify(squares, 2).reshape(b, -1, 4 * channels)

    def spread(self, cells: jax.Array) -> jax.Array:
        """f[B,V*n,C] -> the whole feature map f[B,rows*s,columns*s,C], zero where masked."""
        b, patches, n, channels = self.per_patch(cells).shape
        whole, side = cells.reshape(b, patches, n * channels), math.isqrt(n)
        if self.plan is not None:  # a masked patch's place is V or more: beyond the end, hence filled
            whole = jnp.take_along_axis(whole, self.plan.restore[..., None], axis=1, mode='fill', fill_value=0)
        return unpatchify(whole, side, self.rows * side, self.columns * side)

    def collect(self, feature_map: jax.Array) -> jax.Array:
        """The visible cells of a feature map; undoes `spread`."""
        whole = patchify(feature_map, feature_map.shape[1] // self.rows)
        if self.plan is not None:
            whole = gather_tokens(whole, self.plan.keep)
        return whole.reshape(len(whole), -1, feature_map.shape[-1])
