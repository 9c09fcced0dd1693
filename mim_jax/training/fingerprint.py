"""Exact checksums of sharded arrays, computed where the arrays live.

`fingerprint(x)` mixes the bits of every element with the element's place in the whole array and adds the results
modulo 2**32, twice with different constants: 64 bits. Integer sums do not depend on order, so the same array has the
same fingerprint on every mesh, backend and host count. The mixing is a bijection of the bits for a given place: a
change of any one element always changes the fingerprint, other changes go unseen with probability 2**-64.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SEEDS = (0x9E3779B9, 0x85EBCA77)


def fingerprint_all(arrays: dict[str, jax.Array]) -> dict[str, str]:
    """{path: array} -> {path: 16 hexadecimal digits}. One small program is compiled per distinct shape."""
    # One at a time: many programs with collectives in flight at once starve each other of threads on several CPU devices.
    sums = {path: jax.device_get(compile_for(array)(array)) for path, array in arrays.items()}
    return {path: f'{first:08x}{second:08x}' for path, (first, second) in sums.items()}


def compile_for(array: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """`fingerprint`, its result on every device that holds a part, so that each host can read it."""
    sharding = getattr(array, 'sharding', None)
    return _compile_on(sharding.mesh) if isinstance(sharding, NamedSharding) else fingerprint


@functools.cache
def _compile_on(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(fingerprint, out_shardings=NamedSharding(mesh, PartitionSpec()))


@jax.jit
def fingerprint(x: jax.Array) -> jax.Array:
    """Any shape and dtype -> u32[2]. One pass over the array and, both sums being one reduction, no copy of it."""
    words = _as_words(x)
    place = jnp.zeros(words.shape, jnp.uint32)  # the linear index, modulo 2**32
    for axis, size in enumerate(words.shape):
        place = place * np.uint32(size) + lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    terms = tuple(_mix(words ^ _mix(place ^ np.uint32(seed))) for seed in SEEDS)
    zeros = (np.uint32(0),) * len(SEEDS)
    return jnp.stack(lax.reduce(terms, zeros, lambda a, b: (a[0] + b[0], a[1] + b[1]), tuple(range(words.ndim))))


def _as_words(x: jax.Array) -> jax.Array:
    """The bits of x as uint32; 64-bit elements become two words in a new last axis."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    width = x.dtype.itemsize
    bits = lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16}.get(width, jnp.uint32))
    return bits.astype(jnp.uint32)


def _mix(h: jax.Array) -> jax.Array:
    """The 32-bit finalizer of MurmurHash3 (Appleby 2011): a bijection in which every bit depends on every bit."""
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
