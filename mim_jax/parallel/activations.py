"""Activations stay split by image: a hint to the partitioner, given once where the train step is traced.

Without it the partitioner may keep FSDP's parameters split and run every image on every device instead, which it does
when a micro-batch has few tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
from jax.sharding import Mesh

from mim_jax.parallel.mesh import batch_sharding

_mesh: ContextVar[Mesh | None] = ContextVar('mesh', default=None)


@contextmanager
def split_by_image(mesh: Mesh) -> Iterator[None]:
    """While tracing inside, `keep_split` holds arrays split over `mesh` by their first axis."""
    token = _mesh.set(mesh)
    try:
        yield
    finally:
        _mesh.reset(token)


def keep_split(x: jax.Array) -> jax.Array:
    """f[B,...] unchanged, its rows over all devices; a no-op outside `split_by_image`."""
    mesh = _mesh.get()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, batch_sharding(mesh))
