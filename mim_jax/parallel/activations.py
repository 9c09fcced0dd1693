"""How activations are held: hints to the partitioner, given once where the train step is traced.

By image, over the axes of the batch. Without that the partitioner may keep FSDP's parameters split and run every image on
every device instead, which it does when a micro-batch has few tokens. And inside a block by heads and hidden units, over
the axis 'model': the first product of a branch then needs no communication and the second one ends in a sum over it, while
the residual stream is whole on every device of a group (Shoeybi et al. 2019, Megatron-LM).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mim_jax.parallel.mesh import BATCH_AXES, batch_sharding

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
    """f[B,...] unchanged, its rows over the batch's devices and whole on each; a no-op outside `split_by_image`."""
    mesh = _mesh.get()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, batch_sharding(mesh))


def splits_model(parts: int) -> bool:
    """Whether `parts` heads or hidden units are to be shared by several devices: not where these do not divide them."""
    mesh = _mesh.get()
    return mesh is not None and mesh.shape['model'] > 1 and parts % mesh.shape['model'] == 0


def keep_model_split(x: jax.Array, axis: int, by_image: bool = True) -> jax.Array:
    """f[B,...] unchanged, its rows over the batch's devices and `axis` over 'model'; as it is unless `splits_model`.

    by_image: False for a parameter, which has no rows: its other axes are left to the partitioner.
    """
    if not splits_model(x.shape[axis]):
        return x
    names = [None if by_image else PartitionSpec.UNCONSTRAINED] * x.ndim
    if by_image:
        names[0] = BATCH_AXES
    names[axis] = 'model'
    return jax.lax.with_sharding_constraint(x, NamedSharding(_mesh.get(), PartitionSpec(*names)))
