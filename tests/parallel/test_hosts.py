"""Which host holds which rows of a global batch, and that row r is row r wherever the devices are."""

import jax
import numpy as np
import pytest

from mim_jax.errors import ConfigError
from mim_jax.evals.features import own_rows
from mim_jax.parallel.hosts import broadcast, local_rows, pick_rows, rows_by_host, to_global
from mim_jax.parallel.mesh import batch_sharding, make_mesh

ORDERS = {'in order': range(8), 'a ring': [0, 1, 3, 2, 6, 7, 5, 4], 'interleaved': [0, 4, 1, 5, 2, 6, 3, 7]}
SIZES = [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 2, 4), (1, 1, 8)]


def mesh_of(order, sizes):
    return make_mesh(*sizes, devices=[jax.devices()[i] for i in ORDERS[order]])


def hosts_of_two(device):
    """Four hosts with two devices each."""
    return device.id // 2


def test_rows_of_hosts_in_order_are_their_shares():
    found = rows_by_host(mesh_of('in order', (2, 4, 1)), 16, hosts_of_two)
    assert {host: rows.tolist() for host, rows in found.items()} == {
        host: list(range(4 * host, 4 * host + 4)) for host in range(4)
    }


def test_rows_follow_the_mesh_and_not_the_hosts():
    found = rows_by_host(mesh_of('interleaved', (8, 1, 1)), 16, hosts_of_two)
    assert found[0].tolist() == [0, 1, 4, 5]  # devices 0 and 1 are first and third
    assert found[3].tolist() == [10, 11, 14, 15]


def test_a_model_group_on_two_hosts_gives_both_its_rows():
    found = rows_by_host(mesh_of('in order', (1, 2, 4)), 16, hosts_of_two)
    assert found[0].tolist() == found[1].tolist() == list(range(8))
    assert found[2].tolist() == found[3].tolist() == list(range(8, 16))


@pytest.mark.parametrize('sizes', SIZES)
@pytest.mark.parametrize('order', ORDERS)
def test_every_device_gets_its_rows_from_its_host(order, sizes):
    """What each of four hosts would put on its devices, from its own rows alone, are the rows the sharding wants there."""
    mesh, batch = mesh_of(order, sizes), np.arange(16 * 3).reshape(16, 3)
    held = rows_by_host(mesh, 16, hosts_of_two)
    assert set(np.concatenate(list(held.values()))) == set(range(16))
    assert all((np.diff(rows) > 0).all() for rows in held.values())
    for device, index in batch_sharding(mesh).devices_indices_map(batch.shape).items():
        rows = held[hosts_of_two(device)]
        np.testing.assert_array_equal(pick_rows(batch[rows], rows)(index), batch[index])


@pytest.mark.parametrize('sizes', SIZES)
@pytest.mark.parametrize('order', ORDERS)
def test_a_global_batch_is_the_batch(order, sizes):
    mesh = mesh_of(order, sizes)
    batch = {'image': np.arange(16 * 3, dtype=np.uint8).reshape(16, 3), 'label': np.arange(16, dtype=np.int32)}
    placed = to_global(mesh, batch)
    for name, value in placed.items():
        assert value.sharding == batch_sharding(mesh)
        assert value.dtype == batch[name].dtype
        assert len({shard.index[0].start for shard in value.addressable_shards}) == sizes[0] * sizes[1]
        np.testing.assert_array_equal(jax.device_get(value), batch[name])


def test_one_host_reads_everything():
    mesh, images = make_mesh(), np.zeros((16, 2))
    np.testing.assert_array_equal(local_rows(mesh, 16), np.arange(16))
    assert own_rows(images, mesh) is images
    assert broadcast(True) is True


def test_a_batch_that_cannot_be_divided():
    with pytest.raises(ConfigError, match=r'12 images .* 8 devices.*multiple of 8'):
        to_global(make_mesh(), {'image': np.zeros((12, 2))})
    with pytest.raises(ConfigError, match=r'7 images .* 4 groups of 2 devices.*multiple of 4'):
        local_rows(make_mesh(model=2), 7)


def test_only_groups_of_devices_must_divide_a_batch():
    assert to_global(make_mesh(model=2), {'image': np.zeros((12, 2))})['image'].shape == (12, 2)
