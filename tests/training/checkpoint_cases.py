"""A small state, and ways to damage the files that hold it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.parallel.rules import flatten_with_paths, shardings


def make_state(seed=0, width=64):
    """A small state with the shapes that matter: matrices, scalars, half precision, integers, an empty branch."""
    keys = jax.random.split(jax.random.key(seed), 4)
    params = {
        'encoder': {
            'block_00': {'mlp': {'fc1': {'kernel': jax.random.normal(keys[0], (width, 4 * width))}}},
            'cls_token': jax.random.normal(keys[1], (1, 1, width)),
        },
        'neck/last': {'kernel': jax.random.normal(keys[2], (width, 8)).astype(jnp.bfloat16)},
    }
    return {
        'step': jnp.int32(seed),
        'params': params,
        'opt_state': ({'mu': jax.tree.map(lambda x: x * 0.1, params)}, ()),
        'batch_stats': {},
        'flags': {'mask': jax.random.bernoulli(keys[3], shape=(33,)), 'codes': jnp.arange(-5, 5, dtype=jnp.int8)},
    }


def abstract(state, mesh=None):
    """The state's shapes, placed by the default rules."""
    shapes = jax.eval_shape(lambda: state)
    if mesh is None:
        return shapes
    placed = shardings(shapes, mesh, whole=False)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placed)


def assert_identical(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for (path, got), (_, want) in zip(flatten_with_paths(tree), flatten_with_paths(expected), strict=True):
        assert got.dtype == want.dtype, path
        assert np.asarray(got).tobytes() == np.asarray(want).tobytes(), path


def damage(path, change):
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def flip(offset, mask=0xFF):
    def change(content):
        content[offset] ^= mask

    return change


def truncate(size):
    def change(content):
        del content[size:]

    return change


def largest_file(directory):
    return max((p for p in Path(directory).rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
