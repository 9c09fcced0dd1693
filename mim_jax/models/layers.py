"""Transformer parts: exact GELU, attention, MLP, pre-norm block, and stacks of blocks unrolled, scanned or rematerialised."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.parallel.activations import keep_split

Dtype = Any
xavier = nn.initializers.xavier_uniform()
normal_02 = nn.initializers.normal(0.02)

REMAT_POLICIES: dict[str, Callable | None] = {
    'full': None,  # keep only the block's input
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep the outputs of matrix products with weights
}


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, x/2 (1 + erf(x / sqrt 2)); written with erf because XLA:CPU is far slower on erfc (design/feasibility 8)."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


def fan_in_uniform(fan_in: int) -> nn.initializers.Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what PyTorch leaves in a convolution's bias."""

    def initialise(key: jax.Array, shape: Sequence[int], dtype: Dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return initialise


def layer_norm(dtype: Dtype, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm with epsilon 1e-6, statistics in fp32 by the two-pass variance (the one-pass form loses digits)."""
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, use_fast_variance=False, name=name)


class Attention(nn.Module):
    """Multi-head self-attention; softmax in fp32, scale head_width^-1/2.

    qkv is one kernel (D, 3D), output ordered [q | k | v], each head-major, so xavier's fan-out is 3D as in timm.
    """

    heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array | None = None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """f[B,T,D], bias added to the logits (broadcast to [B,heads,T,T]) -> f[B,T,D] and (q, k), each f[B,T,heads,D/heads]."""
        b, length, width = x.shape
        packed = nn.Dense(3 * width, kernel_init=xavier, dtype=self.dtype, name='qkv')(x)
        queries, keys, values = jnp.moveaxis(packed.reshape(b, length, 3, self.heads, width // self.heads), 2, 0)
        logits = jnp.einsum('bqhd,bkhd->bhqk', queries, keys, preferred_element_type=jnp.float32)
        logits = logits * (width // self.heads) ** -0.5
        if bias is not None:
            logits = logits + bias
        weights = jax.nn.softmax(logits).astype(self.dtype)
        mixed = jnp.einsum('bhqk,bkhd->bqhd', weights, values).reshape(b, length, width)
        return nn.Dense(width, kernel_init=xavier, dtype=self.dtype, name='out')(mixed), (queries, keys)


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    hidden: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = gelu(nn.Dense(self.hidden, kernel_init=xavier, dtype=self.dtype, name='fc1')(x))
        return nn.Dense(x.shape[-1], kernel_init=xavier, dtype=self.dtype, name='fc2')(y)


class Block(nn.Module):
    """Pre-norm transformer block with optional LayerScale and drop-path.

    Drop-path drops a whole branch for a whole sample and divides a kept branch by its keep probability; it acts only
    when the caller gives the 'drop_path' random stream, that is, in training.
    """

    heads: int
    mlp_ratio: float = 4.0
    layer_scale: float | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, drop_rate: jax.Array, bias: jax.Array | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, tuple[jax.Array, jax.Array]]]:
        """f[B,T,D], drop rate f32[], bias -> output and (the same output as a scan's record, (q, k))."""
        x = keep_split(x)
        y, queries_keys = Attention(self.heads, self.dtype, name='attn')(layer_norm(self.dtype, 'norm1')(x), bias)
        x = x + self._drop(self._scale('gamma_1', y), drop_rate)
        y = Mlp(int(self.mlp_ratio * x.shape[-1]), self.dtype, name='mlp')(layer_norm(self.dtype, 'norm2')(x))
        x = keep_split(x + self._drop(self._scale('gamma_2', y), drop_rate))
        return x, (x, queries_keys)

    def _scale(self, name: str, y: jax.Array) -> jax.Array:
        if self.layer_scale is None:
            return y
        gamma = self.param(name, nn.initializers.constant(self.layer_scale), (y.shape[-1],))
        return y * gamma.astype(y.dtype)

    def _drop(self, y: jax.Array, drop_rate: jax.Array) -> jax.Array:
        if not self.has_rng('drop_path'):
            return y
        draws = jax.random.uniform(self.make_rng('drop_path'), (y.shape[0], 1, 1))
        return jnp.where(draws < drop_rate, 0.0, y / (1.0 - drop_rate)).astype(y.dtype)


def make_blocks(depth: int, scan: bool, remat: str, **block: Any) -> list[nn.Module] | nn.Module:
    """`depth` blocks to assign to `self.blocks` in a module's setup.

    A list named block_00 ... , or with `scan` one module whose parameters are stacked along a leading depth axis (one
    compiled body: quick to compile). remat: 'none' or a key of REMAT_POLICIES.
    """
    kind = Block
    if remat != 'none':
        kind = nn.remat(Block, policy=REMAT_POLICIES[remat], prevent_cse=not scan)
    if not scan:
        return [kind(**block, name=f'block_{i:02d}') for i in range(depth)]
    scanned = nn.scan(
        kind,
        variable_axes={'params': 0},
        split_rngs={'params': True, 'drop_path': True},
        in_axes=(0, nn.broadcast),
        length=depth,
    )
    return scanned(**block)


def run_blocks(
    blocks: Sequence[nn.Module] | nn.Module, x: jax.Array, depth: int, drop_path: float, bias: jax.Array | None = None
) -> tuple[tuple[jax.Array, ...], tuple[tuple[jax.Array, jax.Array], ...]]:
    """f[B,T,D] -> every block's output and (q, k); drop-path ramps linearly from 0 at block 0 to `drop_path` at the last."""
    rates = jnp.linspace(0.0, drop_path, depth)
    if isinstance(blocks, nn.Module):
        _, (outputs, (queries, keys)) = blocks(x, rates, bias)
        return tuple(outputs[i] for i in range(depth)), tuple((queries[i], keys[i]) for i in range(depth))
    outputs, queries_keys = [], []
    for block, rate in zip(blocks, rates, strict=True):
        x, (_, pair) = block(x, rate, bias)
        outputs.append(x)
        queries_keys.append(pair)
    return tuple(outputs), tuple(queries_keys)
