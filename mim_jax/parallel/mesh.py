"""The device mesh: axis 'data' copies the model, axis 'fsdp' splits its parameters; both split the batch."""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mim_jax.errors import ConfigError

AXES = ('data', 'fsdp')


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `data` x `fsdp` over all devices (of all hosts), or over those given.

    One of the two may be -1: all devices that the other leaves. The axes are Auto, so the partitioner places every
    array between the annotated inputs and outputs of a jitted function (jax.make_mesh alone gives Explicit axes).
    Raises ConfigError when the two numbers do not fit the devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    count = len(devices)
    sizes = {'data': data, 'fsdp': fsdp}
    for name, size in sizes.items():
        if size < 1 and size != -1:
            raise ConfigError(f'mesh.{name} is {size}: give a number of devices from 1 to {count}, or -1 for the rest.')
    if data == fsdp == -1:
        raise ConfigError('mesh.data and mesh.fsdp are both -1: give one of them a number.')
    remedy = f'set mesh.data to -1 and mesh.fsdp to one of {_divisors(count)}.'
    known = data * fsdp if min(data, fsdp) > 0 else max(data, fsdp)
    if count % known or (known != count and -1 not in (data, fsdp)):
        raise ConfigError(f'mesh.data={data} x mesh.fsdp={fsdp} does not fit the {count} devices: {remedy}')
    sizes = {name: count // known if size == -1 else size for name, size in sizes.items()}
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows (the first axis) over all devices; both axes hold different images."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def _divisors(count: int) -> str:
    return ', '.join(str(n) for n in range(1, count + 1) if count % n == 0)
