"""Neck readers, Levels -> Tokens. A recipe's neck is the SUM of its readers, then the encoder's final norm."""

import jax
from flax import linen as nn

from mim_jax.models.levels import Levels
from mim_jax.tokens import Tokens


class Last(nn.Module):
    """The last block's output: what every base reads unless a paper swaps it."""

    def __call__(self, levels: Levels) -> Tokens:
        return levels.last


class AddLevels(nn.Module):
    """The outputs of some blocks, numbered from 0, added up: no weights, no projections (MR-MAE, MCMAE's way)."""

    layers: tuple[int, ...]

    def __call__(self, levels: Levels) -> Tokens:
        return jax.tree.map(lambda *xs: sum(xs), *(levels.blocks[layer] for layer in self.layers))
