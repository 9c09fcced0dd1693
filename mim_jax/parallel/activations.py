"""How activations are held: hints to the partitioner, given once where the train step is traced.

By image, over the axes of the batch. Without that the partitioner may keep FSDP's parameters split and run every image on
every device instead, which it does when a micro-batch has few tokens. And inside a block by heads and hidden units, over
the axis 'model': the first product of a branch then needs no communication and the second one ends in a sum over it, while
the residual stream is whole on every device of a group (Shoeybi et al. 2019, Megatron-LM).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mim_jax.parallel.mesh import BATCH_AXES, batch_sharding

_mesh: ContextVar[Mesh | None] = ContextVar('mesh', default=None)


@contextmanager
def split_by_image(mesh: Mesh) -> Iterator[None]:
    """While tracing inside, `keep_split` and `keep_model_split` hold arrays split over `mesh`."""
    token = _mesh.set(mesh)
    try:
        yield
    finally:
        _mesh.reset(token)


def keep_split(x: jax.Array) -> jax.Array:
    """f[B,...] unchanged, its rows over the batch's devices and whole on each; a no-op outside `split_by_image`."""
    mesh = _mesh.get()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, batch_sharding(mesh))


def splits_model() -> bool:
    """Whether the devices of a group share the heads and the hidden units of what is being traced."""
    mesh = _mesh.get()
    return mesh is not None and mesh.shape['model'] > 1


def is_single_cpu() -> bool:
    """Whether what is being traced is for one CPU device; False outside `split_by_image`."""
    mesh = _mesh.get()
    return mesh is not None and mesh.size == 1 and mesh.devices.item().platform == 'cpu'


def keep_model_split(x: jax.Array, axis: int) -> jax.Array:
    """f[B,...] unchanged, its rows as `keep_split` has them and `axis` over 'model'; a no-op unless `splits_model`."""
    if not splits_model():
        return x
    names = [BATCH_AXES, *[None] * (x.ndim - 1)]
    names[axis] = 'model'
    return _constrain(x, *names)


def use_by_head(kernel: jax.Array) -> jax.Array:
    """f[D,3,heads,head_width] unchanged, for a product that is split by heads, however it is stored; where `splits_model`.

    D is left to the partitioner, which gathers it over 'fsdp' for the product and scatters its gradient.
    """
    return _constrain(kernel, PartitionSpec.UNCONSTRAINED, None, 'model', None)


def _constrain(x: jax.Array, *names: Any) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, NamedSharding(_mesh.get(), PartitionSpec(*names)))
