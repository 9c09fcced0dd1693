"""Prefix and patch tokens, kept apart outside the encoder so that nobody ever writes `[:, 1:]`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Tokens:
    """Prefix f[B,C,D] (CLS; C may be 0) and patches f[B,N or V,D] of one sequence."""

    prefix: jax.Array
    patches: jax.Array

    def joined(self) -> jax.Array:
        """f[B,C+N,D]: prefix first, as every ViT orders them."""
        return jnp.concatenate([self.prefix, self.patches], axis=1)

    def split(self, joined: jax.Array) -> 'Tokens':
        """The inverse of `joined` for any array with this sequence's prefix length."""
        count = self.prefix.shape[1]
        return Tokens(joined[:, :count], joined[:, count:])

    def map(self, function: Callable[[jax.Array], jax.Array]) -> 'Tokens':
        """Apply a token-wise function to prefix and patches in one call."""
        return self.split(function(self.joined()))


def gather_tokens(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    """f[B,N,D], i32[B,K] -> f[B,K,D]: the tokens at `ids`, in their order."""
    return jnp.take_along_axis(tokens, ids[..., None], axis=1)
