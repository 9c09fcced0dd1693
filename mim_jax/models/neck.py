"""Neck readers, Levels -> Tokens. A recipe's neck is the SUM of its readers, then the encoder's final norm."""

from flax import linen as nn

from mim_jax.models.levels import Levels
from mim_jax.tokens import Tokens


class Last(nn.Module):
    """The last block's output: what every base reads unless a paper swaps it."""

    def __call__(self, levels: Levels) -> Tokens:
        return levels.last
