"""What an encoder or a decoder passed through, and the protocol every encoder follows."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from mim_jax.tokens import MaskPlan, Tokens


@struct.dataclass
class Levels:
    """Every intermediate of one network on one batch. What nobody reads is pruned by the compiler.

    embedding: Tokens before positions are added (layer 0 of MTO); placed: with them, what enters the first block; blocks:
    Tokens after every block, raw residual stream; queries_keys: per block (q, k), each f[B,T,heads,head_width];
    attention_bias: what was added to the logits, or None; maps: convolution stages by name, f[B,V,n,C], the n cells of each
    visible patch row by row; plan: the MaskPlan that was applied, or None; prediction: f[B,N,P], decoders only.
    """

    embedding: Tokens
    placed: Tokens
    blocks: tuple[Tokens, ...]
    queries_keys: tuple[tuple[jax.Array, jax.Array], ...] = ()
    attention_bias: Any = None
    maps: dict[str, jax.Array] = struct.field(default_factory=dict)
    plan: MaskPlan | None = None
    prediction: jax.Array | None = None

    @property
    def last(self) -> Tokens:
        """Tokens after the last block, before the final norm."""
        return self.blocks[-1]

    def attention(self, block: int) -> jax.Array:
        """Softmax maps of one block, f32[B,heads,T,T] over prefix and patches; computed only if asked for."""
        queries, keys = (a.astype(jnp.float32) for a in self.queries_keys[block])
        logits = jnp.einsum('bqhd,bkhd->bhqk', queries, keys) * queries.shape[-1] ** -0.5
        if self.attention_bias is not None:
            logits = logits + self.attention_bias
        return jax.nn.softmax(logits)


class Encoder(Protocol):
    """What a recipe, a forward pass and an evaluation may ask of an encoder (ViT, conv-stem ViT, frozen tower alike).

    mask_tokens: True when masked patches enter as mask tokens (SimMIM), False when they are left out (MAE).
    """

    patch_size: int
    width: int
    depth: int
    cls: bool
    mask_tokens: bool

    def levels(self, images: jax.Array, plan: MaskPlan | None) -> Levels: ...

    def finish(self, tokens: Tokens) -> Tokens: ...
