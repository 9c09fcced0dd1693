"""Transformer parts: activations, attention, MLP, pre-norm block, and stacks of blocks unrolled, scanned or rematerialised."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.models.attention import attend
from mim_jax.parallel.activations import keep_model_split, keep_split, splits_model, use_by_head

Dtype = Any
Initializer = nn.initializers.Initializer
xavier = nn.initializers.xavier_uniform()
normal_02 = nn.initializers.normal(0.02)
truncated_02 = nn.initializers.truncated_normal(0.02, lower=-1.0, upper=1.0)  # at one deviation: BEiT's descendants

REMAT_POLICIES: dict[str, Callable | None] = {
    'full': None,  # keep only the block's input
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep the outputs of matrix products with weights
}


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, x/2 (1 + erf(x / sqrt 2)), computed in fp32: 1 + erf cancels for negative x.

    Written with erf because XLA:CPU is far slower on erfc.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def quick_gelu(x: jax.Array) -> jax.Array:
    """x sigmoid(1.702 x), the activation of OpenAI's CLIP, computed in fp32."""
    wide = x.astype(jnp.float32)
    return (wide * jax.nn.sigmoid(1.702 * wide)).astype(x.dtype)


ACTIVATIONS = {'gelu': gelu, 'quick_gelu': quick_gelu}


def fan_in_uniform(fan_in: int) -> nn.initializers.Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what PyTorch leaves in a convolution's bias."""

    def initialise(key: jax.Array, shape: Sequence[int], dtype: Dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return initialise


def xavier_of_three(key: jax.Array, shape: Sequence[int], dtype: Dtype = jnp.float32) -> jax.Array:
    """Xavier-uniform for three matrices side by side, each with the fan-out of one."""
    limit = (6.0 / (shape[0] + shape[1] // 3)) ** 0.5
    return jax.random.uniform(key, shape, dtype, -limit, limit)


@dataclass(frozen=True)
class Scheme:
    """How a family of methods initialises a transformer.

    linear, qkv: kernels (and the patch embedding's); patch_bias: fan-in -> its bias; rescale: the kernels that write to the
    residual stream, in block l = 1, 2, ..., are divided by sqrt(2 l). All other biases are 0.
    """

    linear: Initializer
    qkv: Initializer
    cls_token: Initializer
    mask_token: Initializer
    patch_bias: Callable[[int], Initializer] = lambda fan_in: nn.initializers.zeros
    rescale: bool = False


SCHEMES = {
    'mae': Scheme(xavier, xavier, normal_02, normal_02, fan_in_uniform),  # facebookresearch/mae models_mae.py
    # LightDXY/BootMAE models/modeling_pretrain_bootmae.py
    'bootmae': Scheme(xavier, xavier_of_three, nn.initializers.normal(1e-6), truncated_02),
    # microsoft/SimMIM models/simmim.py, TencentARC/ConMIM modeling_pretrain.py
    'beit': Scheme(truncated_02, truncated_02, truncated_02, truncated_02, rescale=True),
}


def residual_init(scheme: Scheme, layer: jax.Array) -> Initializer:
    """The initialiser of a kernel that writes to the residual stream in block `layer` = 1, 2, ..., f32[]."""
    if not scheme.rescale:
        return scheme.linear

    def initialise(key: jax.Array, shape: Sequence[int], dtype: Dtype = jnp.float32) -> jax.Array:
        return (scheme.linear(key, shape, dtype) / jnp.sqrt(2.0 * layer)).astype(dtype)

    return initialise


def layer_norm(dtype: Dtype, name: str | None = None, epsilon: float = 1e-6) -> nn.LayerNorm:
    """LayerNorm, statistics in fp32 by the two-pass variance (the one-pass form loses digits)."""
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)


class QueriesKeysValues(nn.Module):
    """Three vectors per head by one matrix product: kernel (D, 3I), I = heads * head_width, ordered [q | k | v], each
    head-major. Where several devices share the heads, the product is held split by them, which no contiguous part of
    the kernel's columns would be.
    """

    heads: int
    head_width: int
    use_bias: bool
    kernel_init: Initializer
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, qv_bias: tuple[jax.Array, jax.Array] | None = None) -> jax.Array:
        """f[B,T,D], biases f[I] of queries and of values beside its own -> f[B,T,3,heads,head_width]."""
        parts = (3, self.heads, self.head_width)
        kernel = self.param('kernel', self.kernel_init, (x.shape[-1], math.prod(parts)))
        bias = self.param('bias', nn.initializers.zeros, (math.prod(parts),)) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        if splits_model():
            kernel = use_by_head(kernel.reshape(-1, *parts))
        packed = jnp.tensordot(x, kernel, axes=1)
        if bias is not None:
            packed = packed + bias.reshape(1, 1, *kernel.shape[1:])
        if qv_bias is not None:
            q_bias, v_bias = qv_bias
            added = jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias]).astype(packed.dtype)
            packed = packed + added.reshape(kernel.shape[1:])
        return keep_model_split(packed.reshape(*x.shape[:2], *parts), 3)


class Attention(nn.Module):
    """Multi-head self-attention; softmax in fp32, scale head_width^-1/2, head_width = D // heads (rounded down).

    qkv is one kernel (D, 3I), I = heads * head_width, output ordered [q | k | v], each head-major. qkv_bias: of all three
    in one vector ('all'), or of queries and values only, q_bias and v_bias ('qv'): a key's bias changes no attention.
    """

    heads: int
    dtype: Dtype = jnp.float32
    qkv_bias: Literal['all', 'qv'] = 'all'
    scheme: str = 'mae'

    @nn.compact
    def __call__(
        self, x: jax.Array, bias: jax.Array | None = None, layer: jax.Array | float = 1.0
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """f[B,T,D], bias added to the logits (broadcast to [B,heads,T,T]) -> f[B,T,D] and (q, k), each f[B,T,heads,I/heads].

        layer: the block's number from 1, f32[]; only initialisation reads it.
        """
        b, length, width = x.shape
        scheme, head_width = SCHEMES[self.scheme], width // self.heads
        inner = self.heads * head_width
        project = QueriesKeysValues(
            self.heads, head_width, self.qkv_bias == 'all', scheme.qkv, dtype=self.dtype, name='qkv'
        )
        qv_bias = None
        if self.qkv_bias == 'qv':
            qv_bias = tuple(self.param(name, nn.initializers.zeros, (inner,)) for name in ('q_bias', 'v_bias'))
        packed = project(x, qv_bias)
        mixed = attend(packed, bias).reshape(b, length, inner)
        out = nn.Dense(width, kernel_init=residual_init(scheme, layer), dtype=self.dtype, name='out')(mixed)
        return out, (packed[:, :, 0], packed[:, :, 1])


class Mlp(nn.Module):
    """Linear, activation (a key of ACTIVATIONS), Linear."""

    hidden: int
    dtype: Dtype = jnp.float32
    scheme: str = 'mae'
    activation: str = 'gelu'

    @nn.compact
    def __call__(self, x: jax.Array, layer: jax.Array | float = 1.0) -> jax.Array:
        """f[B,T,D] -> f[B,T,D]; layer as in Attention."""
        scheme = SCHEMES[self.scheme]
        hidden = nn.Dense(self.hidden, kernel_init=scheme.linear, dtype=self.dtype, name='fc1')(x)
        y = ACTIVATIONS[self.activation](keep_model_split(hidden, -1))
        return nn.Dense(x.shape[-1], kernel_init=residual_init(scheme, layer), dtype=self.dtype, name='fc2')(y)


def drop_path(module: nn.Module, branch: jax.Array, rate: jax.Array) -> jax.Array:
    """f[B,T,D], rate f32[] -> the branch, dropped whole for some samples and divided by its keep probability for the others.

    It acts only when the caller of `module` gives the 'drop_path' random stream, that is, in training.
    """
    if not module.has_rng('drop_path'):
        return branch
    draws = jax.random.uniform(module.make_rng('drop_path'), (branch.shape[0], 1, 1))
    return jnp.where(draws < rate, 0.0, branch / (1.0 - rate)).astype(branch.dtype)


class Block(nn.Module):
    """Pre-norm transformer block with optional LayerScale and drop-path; epsilon: of its norms.

    The residual stream keeps the type it comes in, fp32 from `run_blocks`, whatever `dtype` the branches are computed in:
    in bf16 a branch scaled by a small LayerScale would be rounded away when it is added.
    """

    heads: int
    mlp_ratio: float = 4.0
    layer_scale: float | None = None
    dtype: Dtype = jnp.float32
    qkv_bias: Literal['all', 'qv'] = 'all'
    scheme: str = 'mae'
    activation: str = 'gelu'
    epsilon: float = 1e-6

    @nn.compact
    def __call__(
        self, x: jax.Array, drop_rate: jax.Array, layer: jax.Array | float = 1.0, bias: jax.Array | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, tuple[jax.Array, jax.Array]]]:
        """f[B,T,D], drop rate f32[], number of the block f32[], bias -> output, (the same as a scan's record, (q, k))."""
        x = keep_split(x)
        attention = Attention(self.heads, self.dtype, self.qkv_bias, self.scheme, name='attn')
        y, queries_keys = attention(layer_norm(self.dtype, 'norm1', self.epsilon)(x), bias, layer)
        x = x + drop_path(self, self._scale('gamma_1', y), drop_rate)
        mlp = Mlp(int(self.mlp_ratio * x.shape[-1]), self.dtype, self.scheme, self.activation, name='mlp')
        y = mlp(layer_norm(self.dtype, 'norm2', self.epsilon)(x), layer)
        x = keep_split(x + drop_path(self, self._scale('gamma_2', y), drop_rate))
        return x, (x, queries_keys)

    def _scale(self, name: str, y: jax.Array) -> jax.Array:
        if self.layer_scale is None:
            return y
        gamma = self.param(name, nn.initializers.constant(self.layer_scale), (y.shape[-1],))
        return y * gamma


def make_blocks(depth: int, scan: bool, remat: str, **block: Any) -> list[nn.Module] | nn.Module:
    """`depth` blocks (Block with these fields) to assign to `self.blocks` in a module's setup.

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
        in_axes=(0, 0, nn.broadcast),
        length=depth,
    )
    return scanned(**block)


def drop_rates(rate: float, depth: int) -> jax.Array:
    """f32[depth]: drop-path's probability of every block, rising linearly from 0 to `rate` at the last."""
    return jnp.linspace(0.0, rate, depth)


def run_blocks(
    blocks: Sequence[nn.Module] | nn.Module, x: jax.Array, rates: jax.Array, bias: jax.Array | None = None
) -> tuple[tuple[jax.Array, ...], tuple[tuple[jax.Array, jax.Array], ...]]:
    """f[B,T,D], drop-path rates f32[depth], bias of all blocks' attention -> every block's output, f32, and (q, k)."""
    depth = len(rates)
    x = x.astype(jnp.float32)  # as PyTorch's autocast has it; see Block
    layers = jnp.arange(1.0, depth + 1.0)
    if isinstance(blocks, nn.Module):
        _, (outputs, (queries, keys)) = blocks(x, rates, layers, bias)
        return tuple(outputs[i] for i in range(depth)), tuple((queries[i], keys[i]) for i in range(depth))
    outputs, queries_keys = [], []
    for block, rate, layer in zip(blocks, rates, layers, strict=True):
        x, (_, pair) = block(x, rate, layer, bias)
        outputs.append(x)
        queries_keys.append(pair)
    return tuple(outputs), tuple(queries_keys)
