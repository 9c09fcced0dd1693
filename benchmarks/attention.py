"""Self-attention on the CPU, forward and with its gradient: which form? python benchmarks/attention.py [rounds]

MAE's decoder at 224 pixels: f32[8,197,3,16,32] of queries, keys, values. Forms: what the models do (one product over the
batch); the same image after image; and image after image with a gradient that makes the weights again from one logarithm per
query, so that f32[16,197,197] is all there ever is of them (the form of FlashAttention's gradient, Dao et al. 2022). Where
torch is installed (make test-parity's environment), its scaled_dot_product_attention too. Interleaved; prints milliseconds
and the largest difference from the first form. Numbers with machine and date: benchmarks/README.md.
"""

import importlib.util
import os
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 9
IMAGES, LENGTH, HEADS, WIDTH = 8, 197, 16, 32
SCALE = WIDTH**-0.5


def plain(packed: jax.Array) -> jax.Array:
    """f[B,T,3,H,d] -> f[B,T,H,d], as mim_jax/models/layers.py has it."""
    queries, keys, values = jnp.moveaxis(packed, 2, 0)
    weights = jax.nn.softmax(jnp.einsum('bqhd,bkhd->bhqk', queries, keys) * SCALE)
    return jnp.einsum('bhqk,bkhd->bqhd', weights, values)


def by_image(packed: jax.Array) -> jax.Array:
    """`plain` of one image after another, JAX's gradient."""
    return jax.lax.map(lambda vectors: plain(vectors[None])[0], packed)


@jax.custom_vjp
def made_again(packed: jax.Array) -> jax.Array:
    """`by_image`; its gradient makes the weights again."""
    return forwards(packed)[0]


def forwards(packed: jax.Array) -> tuple[jax.Array, tuple]:
    def one(vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
        queries, keys, values = vectors.transpose(1, 2, 0, 3)
        logits = jnp.einsum('hqd,hkd->hqk', queries, keys) * SCALE
        most = logits.max(axis=-1, keepdims=True)
        weights = jnp.exp(logits - most)
        total = weights.sum(axis=-1, keepdims=True)
        mixed = jnp.einsum('hqk,hkd->hqd', weights, values) / total
        return mixed.swapaxes(0, 1), (most + jnp.log(total))[..., 0]

    out, logarithms = jax.lax.map(one, packed)
    return out, (packed, out, logarithms)


def backwards(kept: tuple, gradient: jax.Array) -> tuple[jax.Array]:
    def one(image: tuple) -> jax.Array:
        vectors, out, logarithms, gradient = image
        queries, keys, values = vectors.transpose(1, 2, 0, 3)
        paid = jnp.einsum('qhd,qhd->hq', gradient, out)
        gradient = gradient.swapaxes(0, 1)
        weights = jnp.exp(jnp.einsum('hqd,hkd->hqk', queries, keys) * SCALE - logarithms[..., None])
        moved = weights * (jnp.einsum('hqd,hkd->hqk', gradient, values) - paid[..., None])
        parts = (
            jnp.einsum('hqk,hkd->qhd', moved, keys) * SCALE,
            jnp.einsum('hqk,hqd->khd', moved, queries) * SCALE,
            jnp.einsum('hqk,hqd->khd', weights, gradient),
        )
        return jnp.stack(parts, axis=1)

    return (jax.lax.map(one, (*kept, gradient)),)


made_again.defvjp(forwards, backwards)


def prepare_torch(packed: np.ndarray, gradient: np.ndarray):
    """(forward, forward and backward) of torch, with as many threads as this process may use."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    inputs, outer = torch.tensor(packed, requires_grad=True), torch.tensor(gradient)

    def attend() -> torch.Tensor:
        queries, keys, values = inputs.permute(2, 0, 3, 1, 4).unbind(0)
        return torch.nn.functional.scaled_dot_product_attention(queries, keys, values).transpose(1, 2)

    def forward() -> None:
        with torch.no_grad():
            attend()

    def both() -> None:
        inputs.grad = None
        attend().backward(outer)

    return forward, both


def prepare(form, packed: np.ndarray, gradient: np.ndarray):
    """(forward, forward and backward) of one of our forms, compiled, and what they compute."""
    forward = jax.jit(form).lower(packed).compile()
    both = jax.jit(lambda packed, gradient: jax.vjp(form, packed)[1](gradient)[0]).lower(packed, gradient).compile()
    packed, gradient = jnp.asarray(packed), jnp.asarray(gradient)
    calls = lambda: jax.block_until_ready(forward(packed)), lambda: jax.block_until_ready(both(packed, gradient))
    return calls, [np.asarray(call()) for call in calls]


def main() -> None:
    draw = np.random.default_rng(0)
    packed = draw.standard_normal((IMAGES, LENGTH, 3, HEADS, WIDTH), dtype=np.float32)
    gradient = draw.standard_normal((IMAGES, LENGTH, HEADS, WIDTH), dtype=np.float32)
    runs, found = {}, {}
    for form in (plain, by_image, made_again):
        runs[form.__name__], found[form.__name__] = prepare(form, packed, gradient)
    if importlib.util.find_spec('torch'):
        runs['torch'] = prepare_torch(packed, gradient)
    seconds = {name: ([], []) for name in runs}
    for turn in range(ROUNDS + 1):
        for name, calls in runs.items():
            for times, call in zip(seconds[name], calls, strict=True):
                start = time.perf_counter()
                call()
                if turn:  # the first warms up
                    times.append(time.perf_counter() - start)
    print(
        f'{jax.devices()[0].device_kind}, jax {jax.__version__}, {ROUNDS} rounds, {len(os.sched_getaffinity(0))} cores'
    )
    for name, (forward, both) in seconds.items():
        apart = max(
            (np.abs(a - b).max() for a, b in zip(found.get(name, []), found['plain'], strict=False)), default=None
        )
        print(
            f'{name:12} forward {statistics.median(forward) * 1e3:6.1f} ms (least {min(forward) * 1e3:.1f}), with gradient '
            f'{statistics.median(both) * 1e3:6.1f} ms (least {min(both) * 1e3:.1f})'
            + ('' if apart is None else f'; at most {apart:.1e} from plain')
        )


if __name__ == '__main__':
    main()
