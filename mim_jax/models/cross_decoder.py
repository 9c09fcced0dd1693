"""BootMAE's decoder: mask tokens and latent through a few blocks that also attend to a level of the encoder."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.models.layers import REMAT_POLICIES, SCHEMES, Attention, Mlp, fan_in_uniform, layer_norm
from mim_jax.models.levels import Levels
from mim_jax.parallel.activations import keep_split
from mim_jax.tokens import MaskPlan, Tokens, gather_tokens, sincos_positions

SCHEME = 'bootmae'
linear_init = SCHEMES[SCHEME].linear


class CrossAttention(nn.Module):
    """Queries from x, keys and values from a memory; otherwise as layers.Attention with qkv_bias='qv'.

    kv is one kernel (C, 2I), output ordered [k | v], each head-major; its initial values take it for one matrix.
    """

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, memory: jax.Array) -> jax.Array:
        """f[B,T,D], f[B,S,C] -> f[B,T,D]."""
        width, head_width = x.shape[-1], x.shape[-1] // self.heads
        inner = self.heads * head_width
        q_bias, v_bias = (self.param(name, nn.initializers.zeros, (inner,)) for name in ('q_bias', 'v_bias'))
        queries = nn.Dense(inner, use_bias=False, kernel_init=linear_init, dtype=self.dtype, name='q')(x)
        packed = nn.Dense(2 * inner, use_bias=False, kernel_init=linear_init, dtype=self.dtype, name='kv')(memory)
        keys, values = jnp.split(packed, 2, axis=-1)
        queries, values = queries + q_bias.astype(self.dtype), values + v_bias.astype(self.dtype)
        queries, keys, values = (a.reshape(*a.shape[:2], self.heads, head_width) for a in (queries, keys, values))
        logits = jnp.einsum('bqhd,bkhd->bhqk', queries, keys, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * head_width**-0.5).astype(self.dtype)
        mixed = jnp.einsum('bhqk,bkhd->bqhd', weights, values).reshape(*x.shape[:2], inner)
        return nn.Dense(width, kernel_init=linear_init, dtype=self.dtype, name='out')(mixed)


class CrossBlock(nn.Module):
    """Pre-norm self-attention, cross-attention to a normed memory, MLP, each added to the residual stream."""

    heads: int
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, memory: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """f[B,T,D], f[B,S,C] -> f[B,T,D] and the self-attention's (q, k)."""
        x = keep_split(x)
        attention = Attention(self.heads, self.dtype, 'qv', SCHEME, name='attn')
        y, queries_keys = attention(layer_norm(self.dtype, 'norm1')(x))
        x = x + y
        memory = layer_norm(self.dtype, 'norm4')(memory)
        x = x + CrossAttention(self.heads, self.dtype, name='cross')(layer_norm(self.dtype, 'norm3')(x), memory)
        mlp = Mlp(int(self.mlp_ratio * x.shape[-1]), self.dtype, SCHEME, name='mlp')
        return keep_split(x + mlp(layer_norm(self.dtype, 'norm2')(x))), queries_keys


class PixelHead(nn.Module):
    """A transposed convolution whose stride is its kernel: one matrix product per token, one bias per *channel*.

    Values of a patch in patchify's order; initially U(+-1/sqrt(output)), kernel and bias, as PyTorch leaves them.
    """

    output: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """f[B,N,D] -> f[B,N,output], output = patch_size^2 * 3."""
        initialise = fan_in_uniform(self.output)  # torch takes (3, height, width) of the kernel for its inputs
        kernel = self.param('kernel', initialise, (x.shape[-1], self.output))
        bias = jnp.tile(self.param('bias', initialise, (3,)), self.output // 3)
        return x @ kernel.astype(self.dtype) + bias.astype(self.dtype)


class CrossDecoder(nn.Module):
    """Linear embedding, one shared mask token, `depth` blocks with a memory, norm, head.

    Fixed positions, row first, are added to masked tokens *only*: visible ones bring theirs along. heads may leave a rest
    of `width`: 12 heads on 512 are 42 wide, 504 together. pixel_head: see PixelHead; else linear. remat: as the encoder's.

    Source: LightDXY/BootMAE models/modeling_pretrain_bootmae.py.
    """

    width: int
    depth: int
    heads: int
    output: int
    grid: tuple[int, int]
    pixel_head: bool = False
    mlp_ratio: float = 4.0
    remat: str = 'none'
    dtype: Any = jnp.float32

    def setup(self):
        self.embed = nn.Dense(self.width, kernel_init=linear_init, dtype=self.dtype)
        self.mask_token = self.param('mask_token', SCHEMES[SCHEME].mask_token, (1, 1, self.width))
        block = CrossBlock if self.remat == 'none' else nn.remat(CrossBlock, policy=REMAT_POLICIES[self.remat])
        self.blocks = [block(self.heads, self.mlp_ratio, self.dtype, name=f'block_{i:02d}') for i in range(self.depth)]
        self.norm = layer_norm(self.dtype)
        if self.pixel_head:
            self.head = PixelHead(self.output, self.dtype)
        else:
            self.head = nn.Dense(self.output, kernel_init=linear_init, dtype=self.dtype)

    def __call__(self, latent: Tokens, plan: MaskPlan, memory: jax.Array) -> Levels:
        """Tokens over V visible patches in plan.keep's order, memory f[B,S,C] -> Levels over N, prediction f[B,N,output]."""
        tokens = latent.map(lambda x: keep_split(self.embed(keep_split(x))))
        b, masked = plan.drop.shape
        mask = jnp.broadcast_to(self.mask_token.astype(self.dtype), (b, masked, self.width))
        embedding = gather_tokens(jnp.concatenate([tokens.patches, mask], axis=1), plan.restore)
        positions = jnp.asarray(sincos_positions(*self.grid, self.width, row_first=True), self.dtype)
        embedded = tokens.replace(patches=embedding)
        tokens = tokens.replace(patches=embedding + jnp.where(plan.masked[..., None], positions, 0))
        memory, x = keep_split(memory), tokens.joined().astype(jnp.float32)
        outputs, queries_keys = [], []
        for block in self.blocks:
            x, pair = block(x, memory)
            outputs.append(tokens.split(x))
            queries_keys.append(pair)
        prediction = keep_split(self.head(self.norm(outputs[-1].patches)))
        return Levels(embedded, tokens, tuple(outputs), tuple(queries_keys), plan=plan, prediction=prediction)
