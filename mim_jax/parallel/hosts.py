"""What several hosts must do together: assemble global arrays, collect them, and agree. One host is the plain case."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mim_jax.errors import ConfigError
from mim_jax.parallel.mesh import batch_sharding, batch_shards


def rows_by_host(
    mesh: Mesh, batch_size: int, host_of: Callable[[jax.Device], int] = lambda device: device.process_index
) -> dict[int, np.ndarray]:
    """{host: the rows of a global batch that its devices hold, i64, ascending}.

    They need not be consecutive, as a mesh follows the network and not the hosts; and two hosts hold the same rows where a
    'model' group lies on both. Raises ConfigError when the batch cannot be divided evenly.
    """
    shards, group = batch_shards(mesh), mesh.shape['model']
    if batch_size % shards:
        over = f'{shards} devices' if group == 1 else f'{shards} groups of {group} devices'
        raise ConfigError(
            f'A batch of {batch_size} images cannot be divided evenly over {over}: choose a batch_size (divided by '
            f'accumulate) that is a multiple of {shards}.'
        )
    size, numbers = batch_size // shards, np.arange(batch_size)
    held: dict[int, set[int]] = {}
    for device, (part,) in batch_sharding(mesh).devices_indices_map((shards,)).items():
        held.setdefault(host_of(device), set()).add(part.indices(shards)[0])
    return {host: numbers.reshape(shards, size)[sorted(parts)].ravel() for host, parts in held.items()}


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this host's devices hold, i64, ascending. Raises ConfigError as `rows_by_host`."""
    return rows_by_host(mesh, batch_size)[jax.process_index()]


def to_global(mesh: Mesh, local_batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The global batch's `local_rows`, in their order -> arrays [B, ...] split as `batch_sharding` wants them.

    Raises ConfigError when the rows cannot be divided evenly over the devices.
    """
    (length,), shards = {len(value) for value in local_batch.values()}, batch_shards(mesh)
    total = length * shards // len(local_rows(mesh, shards))
    rows, sharding = local_rows(mesh, total), batch_sharding(mesh)
    return {
        name: jax.make_array_from_callback((total, *value.shape[1:]), sharding, pick_rows(value, rows))
        for name, value in local_batch.items()
    }


def pick_rows(value: np.ndarray, rows: np.ndarray) -> Callable[[tuple[slice, ...]], np.ndarray]:
    """value [b, ...], the ascending rows of a global array it consists of -> (index of the global array) -> that part.

    The part must consist of `rows`; then they follow each other in `value`, too.
    """

    def pick(index: tuple[slice, ...]) -> np.ndarray:
        first, last, _ = index[0].indices(rows[-1] + 1)
        start = np.searchsorted(rows, first)
        return value[start : start + last - first]

    return pick


def broadcast(value: Any) -> Any:
    """The first host's value on every host, so that decisions by the clock agree. All hosts must call it."""
    if jax.process_count() == 1:
        return value
    return multihost_utils.broadcast_one_to_all(value)
