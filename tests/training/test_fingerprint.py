"""The checksum of an array: the same wherever the array lies, another for any other array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mim_jax.parallel.mesh import make_mesh
from mim_jax.training.fingerprint import fingerprint, fingerprint_all

DTYPES = ['float32', 'bfloat16', 'float16', 'int8', 'uint8', 'int32', 'bool', 'float8_e4m3fn']


def digest(x):
    return tuple(np.asarray(fingerprint(x)).tolist())


@pytest.mark.parametrize('dtype', DTYPES)
def test_one_altered_element_is_seen(dtype):
    x = np.asarray(jax.random.normal(jax.random.key(0), (16, 24)).astype(dtype))
    seen = {digest(x)}
    for place in range(0, x.size, 29):
        altered = x.copy()
        bits = altered.reshape(-1).view(np.uint8)
        bits[place * x.itemsize] ^= 1  # the lowest bit of one element; a bool stays a bool
        seen.add(digest(altered))
    assert len(seen) == 1 + len(range(0, x.size, 29))


def test_other_changes_are_seen():
    x = jax.random.normal(jax.random.key(0), (16, 24))
    others = [
        -x,
        x.at[0].multiply(-1),
        x[::-1],
        x[:, ::-1],
        x.T,
        x.at[3].set(x[4]).at[4].set(x[3]),
        jnp.zeros((16, 24)),
    ]
    assert len({digest(other) for other in [x, *others]}) == 1 + len(others)
    assert digest(jnp.zeros(5)) != digest(jnp.zeros(6))
    assert digest(jnp.float32(0.0)) != digest(jnp.float32(-0.0))
    assert digest(jnp.full(3, jnp.nan)) == digest(jnp.full(3, jnp.nan))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_sharding_does_not_matter(dtype):
    x = jax.random.normal(jax.random.key(0), (3, 64, 128)).astype(dtype)
    mesh = make_mesh(fsdp=4)
    for spec in [(), (None, 'fsdp'), (None, 'data', 'fsdp'), (None, None, ('data', 'fsdp'))]:
        assert digest(jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))) == digest(x)


def test_no_copy_is_made():
    x = jax.ShapeDtypeStruct((2048, 2048), jnp.float32)
    assert fingerprint.lower(x).compile().memory_analysis().temp_size_in_bytes < 2**16


def mix(h):
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> shift)) * factor % 2**32
    return h ^ (h >> 16)


def test_the_values_are_frozen():
    """Checkpoints written by earlier versions must stay readable: the definition, in plain Python, and its values."""
    arrays = {'a': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': jnp.bfloat16(1.5), 'c': jnp.zeros((0, 4))}
    sums = [
        sum(mix(int(bits) ^ mix(place ^ seed)) for place, bits in enumerate(arrays['a'].reshape(-1).view(np.uint32)))
        for seed in (0x9E3779B9, 0x85EBCA77)
    ]
    assert fingerprint_all(arrays)['a'] == ''.join(f'{s % 2**32:08x}' for s in sums)
    assert fingerprint_all(arrays) == {'a': '245355ab06422a6e', 'b': '7843b1004ad90611', 'c': '0' * 16}
