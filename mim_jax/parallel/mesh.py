"""The device mesh. 'data' copies the model, 'fsdp' splits its parameters, 'model' splits its heads and hidden units.

'data' and 'fsdp' hold different images; all devices of a 'model' group hold the same ones.
"""

from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mim_jax.errors import ConfigError

BATCH_AXES = ('data', 'fsdp')
AXES = (*BATCH_AXES, 'model')


def make_mesh(
    data: int = -1, fsdp: int = 1, model: int = 1, slices: int = 0, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of `data` x `fsdp` x `model` over all devices (of all hosts), or over those given, real or of a topology.

    One of the three may be -1: all devices that the others leave. The axes are Auto, so the partitioner places every
    array between the annotated inputs and outputs of a jitted function (jax.make_mesh alone gives Explicit axes).

    slices: groups of devices with a fast network; the slow one between them carries the outer part of `data` alone. 0: as
    the devices say. Those that are no TPUs may be told otherwise, and count in order: 1 is to take no notice of slices.
    Raises ConfigError when the numbers do not fit the devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    count = len(devices)
    sizes = dict(zip(AXES, (data, fsdp, model), strict=True))
    for name, size in sizes.items():
        if size < 1 and size != -1:
            raise ConfigError(f'mesh.{name} is {size}: give a number of devices from 1 to {count}, or -1 for the rest.')
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise ConfigError(
            f'{" and ".join(f"mesh.{name}" for name in open_axes)} are both -1: give one of them a number.'
        )
    known = -data * fsdp * model if open_axes else data * fsdp * model
    if count % known or (known != count and not open_axes):
        asked = ' x '.join(f'mesh.{name}={size}' for name, size in sizes.items())
        raise ConfigError(
            f'{asked} does not fit the {count} devices: set mesh.data to -1 and mesh.fsdp x mesh.model to one of '
            f'{_divisors(count)}.'
        )
    data, fsdp, model = (count // known if size == -1 else size for size in sizes.values())
    slices, apart = _count_slices(devices, slices)
    if data % slices:
        ignore = '' if devices[0].platform == 'tpu' else ', or set mesh.slices=1 to take no notice of them'
        raise ConfigError(
            f'mesh.data={data} does not divide over {slices} slices: a copy of the model must lie in one slice of '
            f'{count // slices} devices, so mesh.fsdp x mesh.model can be {_divisors(count // slices)}{ignore}.'
        )
    # A ring of a torus is split over two axes only where there is no other way.
    if apart:
        inner, outer = (data // slices, fsdp, model), (slices, 1, 1)
        placed = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    else:
        placed = mesh_utils.create_device_mesh((data, fsdp, model), devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _count_slices(devices: Sequence[jax.Device], slices: int) -> tuple[int, bool]:
    """How many slices there are to be, and whether the devices say which of them each belongs to."""
    numbers = [getattr(device, 'slice_index', 0) for device in devices]
    found = len(set(numbers))
    if slices and slices != found and devices[0].platform == 'tpu':
        raise ConfigError(f'mesh.slices={slices}, but these devices are of {found}; set mesh.slices=0.')
    if slices not in (0, found):
        return slices, False
    if len({numbers.count(number) for number in numbers}) > 1:
        raise ConfigError(f'The {len(devices)} devices are not spread evenly over their {found} slices.')
    return found, found > 1


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows (the first axis) over 'data' and 'fsdp'; devices of one 'model' group hold the same rows."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts `batch_sharding` splits a batch: what its size must be a multiple of."""
    return mesh.shape['data'] * mesh.shape['fsdp']


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def _divisors(count: int) -> str:
    """'1, 2, 4, 8' of 8."""
    return ', '.join(str(n) for n in range(1, count + 1) if count % n == 0)
