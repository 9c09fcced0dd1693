"""What several hosts must do together: assemble global arrays, collect them, and agree. One host is the plain case."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

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


def broadcast(value: Any) -> Any:
    """The first host's value on every host, so that decisions by the clock agree. All hosts must call it."""
    if jax.process_count() == 1:
        return value
    return multihost_utils.broadcast_one_to_all(value)
