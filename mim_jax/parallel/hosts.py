"""What several hosts must do together: assemble global arrays, collect them, and agree. One host is the plain case."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed  # the public API asks the devices
from jax.sharding import Mesh, Sharding

from mim_jax.errors import ConfigError
from mim_jax.parallel.mesh import batch_sharding


def to_global(mesh: Mesh, local_batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Each host's contiguous rows of the global batch, in host order -> arrays [B, ...] split over all devices.

    Raises ConfigError when the rows cannot be divided evenly over the devices.
    """
    sharding = batch_sharding(mesh)
    rows = {len(value) for value in local_batch.values()}
    total = max(rows) * jax.process_count()
    if len(rows) != 1 or total % mesh.size:
        raise ConfigError(
            f'A batch of {total} images cannot be divided evenly over {mesh.size} devices: '
            f'choose a batch_size (divided by accumulate) that is a multiple of {mesh.size}.'
        )
    if jax.process_count() == 1:
        return jax.device_put(local_batch, sharding)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in local_batch.items()}


def place(tree: Any, shardings: Any) -> Any:
    """Arrays that every host holds whole, and equal, -> the same placed over the devices of all hosts.

    `shardings`: one, or a tree of them. As jax.device_put, which on several hosts would first send every array around to
    compare it.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    return jax.tree.map(_place_one, tree, jax.tree.broadcast(shardings, tree))


def _place_one(value: Any, sharding: Sharding) -> jax.Array:
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_place_one(jax.random.key_data(value), sharding))
    whole = np.asarray(value)
    return jax.make_array_from_callback(whole.shape, sharding, whole.__getitem__)


def are_several() -> bool:
    """Whether this process is one of several. Touches no device."""
    return distributed.global_state.num_processes > 1


def is_first() -> bool:
    """Whether this process speaks and writes for the run. Touches no device."""
    return distributed.global_state.process_id == 0
