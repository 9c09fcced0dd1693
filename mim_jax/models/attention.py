"""softmax(q k / sqrt d + bias) v, its logits and softmax in fp32: plain, and image after image for one CPU device.

What XLA:CPU makes of the plain form writes f32[B,H,T,T] to memory several times and its batch of small products runs far
below the rate of a large one; weights of one image stay in the cache (benchmarks/attention.py).
"""

import functools

import jax
import jax.numpy as jnp

from mim_jax.parallel.activations import is_single_cpu, keep_model_split


def attend(packed: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """f[B,T,3,H,d] of queries, keys and values, bias f32 broadcast to [B,H,T,T] -> f[B,T,H,d].

    By image where the train step is traced for one CPU device, else plainly (over several devices the loop would gather
    all images). Both are the same function to rounding; the one by image has no forward-mode derivative.
    """
    if not is_single_cpu():
        return attend_plainly(packed, bias)
    if bias is not None:
        _, length, _, heads, _ = packed.shape
        bias = jnp.broadcast_to(bias, (*bias.shape[:-3], heads, length, length)).reshape(-1, heads, length, length)
    return attend_by_image(packed, bias)


def attend_plainly(packed: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """`attend`, all images at once; where several devices share the heads, the result is held split by them."""
    queries, keys, values = jnp.moveaxis(packed, 2, 0)
    logits = jnp.einsum('bqhd,bkhd->bhqk', queries, keys, preferred_element_type=jnp.float32)
    logits = logits * packed.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + bias
    weights = jax.nn.softmax(logits).astype(packed.dtype)
    return keep_model_split(jnp.einsum('bhqk,bkhd->bqhd', weights, values), 2)


@jax.custom_vjp
def attend_by_image(packed: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """`attend`, image after image; bias f32[1|B,H,T,T].

    The gradient makes the weights again from the logarithm of their sum, f32[B,H,T], so f32[H,T,T] is all there ever is of
    them (Dao et al. 2022, FlashAttention, algorithm 4).
    """
    return _forward(packed, bias)[0]


def _forward(packed: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, tuple]:
    shared, own = _split_bias(bias)

    def one(image: tuple) -> tuple[jax.Array, jax.Array]:
        vectors, own = image
        queries, keys, values = _by_head(vectors)
        logits = _logits(queries, keys, shared if own is None else own)
        most = logits.max(axis=-1, keepdims=True)
        weights = jnp.exp(logits - most)
        total = weights.sum(axis=-1, keepdims=True)
        mixed = _dot('hqk,hkd->hqd', weights.astype(values.dtype), values) / total
        return mixed.swapaxes(0, 1), (most + jnp.log(total))[..., 0]

    out, logarithms = jax.lax.map(one, (packed, own))
    # The gradient subtracts sums over `out` from sums over the weights: rounded to bf16 it would double the gradient's error.
    return out.astype(packed.dtype), (packed, bias, out, logarithms)


def _backward(kept: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    packed, bias, out, logarithms = kept
    shared, own = _split_bias(bias)

    def one(of_shared: jax.Array | None, image: tuple) -> tuple[jax.Array | None, tuple]:
        vectors, out, logarithms, gradient, own = image
        queries, keys, values = _by_head(vectors)
        paid = jnp.sum(gradient.astype(jnp.float32) * out, axis=-1).T[..., None]
        gradient = gradient.swapaxes(0, 1)
        weights = jnp.exp(_logits(queries, keys, shared if own is None else own) - logarithms[..., None])
        moved = weights * (_dot('hqd,hkd->hqk', gradient, values) - paid)
        of_logits = (moved * packed.shape[-1] ** -0.5).astype(packed.dtype)
        parts = (
            _dot('hqk,hkd->qhd', of_logits, keys),
            _dot('hqk,hqd->khd', of_logits, queries),
            _dot('hqk,hqd->khd', weights.astype(packed.dtype), gradient),
        )
        if shared is not None:
            of_shared = of_shared + moved
        return of_shared, (jnp.stack(parts, axis=1).astype(packed.dtype), None if own is None else moved)

    start = None if shared is None else jnp.zeros_like(shared)
    of_shared, (of_packed, of_own) = jax.lax.scan(one, start, (packed, out, logarithms, gradient, own))
    return of_packed, of_own if shared is None else of_shared[None]


attend_by_image.defvjp(_forward, _backward)

_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _split_bias(bias: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
    """f32[1|B,H,T,T] -> (f32[H,T,T], None) of all images, or (None, f32[B,H,T,T]) of each."""
    return (bias[0], None) if bias is not None and len(bias) == 1 else (None, bias)


def _by_head(vectors: jax.Array) -> jax.Array:
    """f[T,3,H,d] -> f[3,H,T,d]."""
    return vectors.transpose(1, 2, 0, 3)


def _logits(queries: jax.Array, keys: jax.Array, bias: jax.Array | None) -> jax.Array:
    """f[H,T,d] twice, f32[H,T,T] -> f32[H,T,T]."""
    logits = _dot('hqd,hkd->hqk', queries, keys) * queries.shape[-1] ** -0.5
    return logits if bias is None else logits + bias
