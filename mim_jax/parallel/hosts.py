"""What several hosts must do together: assemble global arrays, collect them, and agree. One host is the plain case."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed  # the public API asks the devices
from jax.sharding import Mesh, Sharding

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
