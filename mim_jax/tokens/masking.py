"""Mask plans. Every strategy is: scores -> order -> plan; counts are static, so nothing ever recompiles."""

import chex
import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class MaskPlan:
    """Which patches an encoder sees.

    keep i32[B,V]: ids of visible patches, in the order of their scores; drop i32[B,M]: ids of masked ones, going on in that
    order (and round to its beginning, for blocks after the first);
    restore i32[B,N]: for each patch its place in concatenate([keep, drop]); masked bool[B,N]: True = masked.
    """

    keep: jax.Array
    drop: jax.Array
    restore: jax.Array
    masked: jax.Array


def plan_from_scores(scores: jax.Array, visible: int, block: int = 0) -> MaskPlan:
    """f[B,N] -> MaskPlan with the `visible` lowest scores of each image kept.

    block k keeps the k-th run of `visible` patches of the same order instead (LUT's second view is block 1). Plans of
    different blocks keep disjoint sets where the scores do not depend on the view; MR-MAE's focus ranks each crop by its own
    attention, in a second pass of its tower. With uniform noise and block 0 this is MAE's random masking
    (facebookresearch/mae models_mae.py, random_masking): argsort ascending, first V kept in shuffled order.
    """
    chex.assert_rank(scores, 2)
    patches = scores.shape[1]
    if not (block + 1) * visible <= patches:
        raise ValueError(f'block {block} of {visible} visible patches does not fit in {patches} patches')
    order = jnp.argsort(scores, axis=1).astype(jnp.int32)
    if block:
        order = jnp.roll(order, -block * visible, axis=1)
    restore = jnp.argsort(order, axis=1).astype(jnp.int32)
    return MaskPlan(order[:, :visible], order[:, visible:], restore, restore >= visible)
