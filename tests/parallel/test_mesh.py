"""Meshes, and what the hosts do with them, on eight fake devices."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from mim_jax.errors import ConfigError
from mim_jax.parallel.hosts import to_global
from mim_jax.parallel.mesh import batch_sharding, make_mesh, replicated


@pytest.mark.parametrize(
    ('data', 'fsdp', 'shape'), [(-1, 1, (8, 1)), (-1, 4, (2, 4)), (2, -1, (2, 4)), (8, 1, (8, 1)), (1, 8, (1, 8))]
)
def test_mesh_shape(data, fsdp, shape):
    mesh = make_mesh(data, fsdp)
    assert tuple(mesh.shape.items()) == (('data', shape[0]), ('fsdp', shape[1]))
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert sorted(d.id for d in mesh.devices.flat) == list(range(8))


def test_mesh_of_given_devices():
    mesh = make_mesh(fsdp=2, devices=jax.devices()[2:6])
    assert sorted(d.id for d in mesh.devices.flat) == [2, 3, 4, 5]
    assert dict(mesh.shape) == {'data': 2, 'fsdp': 2}


@pytest.mark.parametrize(
    ('data', 'fsdp', 'named'),
    [
        (3, 2, ['mesh.data=3', 'mesh.fsdp=2', '8 devices', '1, 2, 4, 8']),
        (2, 2, ['mesh.data=2', 'mesh.fsdp=2', '8 devices']),
        (16, 1, ['mesh.data=16', '8 devices']),
        (-1, 3, ['mesh.fsdp=3', '8 devices', '1, 2, 4, 8']),
        (0, 1, ['mesh.data is 0']),
        (1, -2, ['mesh.fsdp is -2']),
        (-1, -1, ['both -1']),
    ],
)
def test_mesh_that_does_not_fit(data, fsdp, named):
    with pytest.raises(ConfigError) as error:
        make_mesh(data, fsdp)
    assert all(words in str(error.value) for words in named), str(error.value)


def test_batch_is_split_over_both_axes():
    mesh = make_mesh(fsdp=2)
    assert batch_sharding(mesh).spec == PartitionSpec(('data', 'fsdp'))
    assert replicated(mesh).is_fully_replicated
    batch = {'image': np.arange(16 * 3, dtype=np.float32).reshape(16, 3), 'index': np.arange(16, dtype=np.int32)}
    placed = to_global(mesh, batch)
    for name, value in placed.items():
        assert {shard.data.shape[0] for shard in value.addressable_shards} == {2}
        assert len({shard.index[0].start for shard in value.addressable_shards}) == 8
        np.testing.assert_array_equal(jax.device_get(value), batch[name])


def test_batch_that_cannot_be_divided():
    with pytest.raises(ConfigError, match=r'12 images .* 8 devices.*multiple of 8'):
        to_global(make_mesh(), {'image': np.zeros((12, 2))})
