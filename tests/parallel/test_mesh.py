"""Meshes: their shape, the slices of devices in them, and what does not fit, on eight fake devices."""

from dataclasses import dataclass

import jax
import numpy as np
import pytest
from jax.experimental import mesh_utils
from jax.sharding import AxisType, PartitionSpec

from mim_jax.errors import ConfigError
from mim_jax.parallel import mesh as mesh_module
from mim_jax.parallel.mesh import AXES, batch_sharding, batch_shards, make_mesh, replicated


@pytest.mark.parametrize(
    ('sizes', 'shape'),
    [
        ((-1, 1), (8, 1, 1)),
        ((-1, 4), (2, 4, 1)),
        ((2, -1), (2, 4, 1)),
        ((8, 1), (8, 1, 1)),
        ((1, 8), (1, 8, 1)),
        ((-1, 2, 2), (2, 2, 2)),
        ((1, 2, 4), (1, 2, 4)),
        ((2, 1, -1), (2, 1, 4)),
    ],
)
def test_mesh_shape(sizes, shape):
    mesh = make_mesh(*sizes)
    assert tuple(mesh.shape.items()) == tuple(zip(AXES, shape, strict=True))
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert sorted(d.id for d in mesh.devices.flat) == list(range(8))


def test_mesh_of_given_devices():
    mesh = make_mesh(fsdp=2, devices=jax.devices()[2:6])
    assert sorted(d.id for d in mesh.devices.flat) == [2, 3, 4, 5]
    assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'model': 1}


@pytest.mark.parametrize(
    ('sizes', 'named'),
    [
        ((3, 2), ['mesh.data=3', 'mesh.fsdp=2', '8 devices', '1, 2, 4, 8']),
        ((2, 2), ['mesh.data=2', 'mesh.fsdp=2', '8 devices']),
        ((16, 1), ['mesh.data=16', '8 devices']),
        ((-1, 3), ['mesh.fsdp=3', '8 devices', '1, 2, 4, 8']),
        ((-1, 4, 4), ['mesh.model=4', '8 devices']),
        ((0, 1), ['mesh.data is 0']),
        ((1, -2), ['mesh.fsdp is -2']),
        ((1, 1, 0), ['mesh.model is 0']),
        ((-1, -1), ['mesh.data and mesh.fsdp are both -1']),
        ((-1, 4, 1, 4), ['mesh.data=2 does not divide over 4 slices', 'can be 1, 2, or set mesh.slices=1']),
    ],
)
def test_mesh_that_does_not_fit(sizes, named):
    with pytest.raises(ConfigError) as error:
        make_mesh(*sizes)
    assert all(words in str(error.value) for words in named), str(error.value)


def test_a_batch_is_split_over_the_first_two_axes():
    mesh = make_mesh(fsdp=2, model=2)
    assert batch_sharding(mesh).spec == PartitionSpec(('data', 'fsdp'))
    assert batch_shards(mesh) == 4
    assert replicated(mesh).is_fully_replicated


def test_devices_that_know_no_slices_count_in_order():
    assert [d.id for d in make_mesh(4, 2, slices=2).devices.flat] == list(range(8))


@dataclass(frozen=True)
class Chip:
    """As much of a TPU as the arrangement of a mesh reads: 2 x 2 chips a slice."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    platform: str = 'tpu'
    device_kind: str = 'TPU v4'
    core_on_chip: int = 0
    process_index: int = 0


def chips(slices):
    return [Chip(4 * s + i, s, (i % 2, i // 2, 0)) for s in range(slices) for i in range(4)]


@pytest.fixture
def shapes_only(monkeypatch):
    """jax's Mesh takes real devices only: look at their arrangement."""
    monkeypatch.setattr(mesh_module, 'Mesh', lambda placed, axes, axis_types: placed)


@pytest.mark.parametrize('sizes', [(-1, 1, 1), (-1, 4, 1), (-1, 2, 2), (2, 1, 4)])
def test_slices_are_the_outer_part_of_data(sizes, shapes_only):
    """Whatever order the devices come in: fsdp and model stay inside a slice."""
    mixed = [chips(2)[i] for i in np.random.default_rng(0).permutation(8)]
    placed = make_mesh(*sizes, devices=mixed)
    half = len(placed) // 2
    assert {chip.slice_index for chip in placed[:half].flat} == {0}
    assert {chip.slice_index for chip in placed[half:].flat} == {1}


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        ({'fsdp': 8}, ['mesh.data=1 does not divide over 2 slices', 'one slice of 4 devices']),
        ({'slices': 4}, ['mesh.slices=4, but these devices are of 2']),
        ({'devices': chips(2)[:6]}, ['6 devices are not spread evenly over their 2 slices']),
    ],
)
def test_slices_that_do_not_fit(options, named):
    with pytest.raises(ConfigError) as error:
        make_mesh(**({'devices': chips(2)} | options))
    assert all(words in str(error.value) for words in named), str(error.value)


def test_a_ring_is_split_only_where_it_must_be(shapes_only):
    """What jax.make_mesh arranges without splitting is arranged so here."""
    whole = mesh_utils.create_device_mesh((2, 2, 1), chips(1))
    assert (make_mesh(2, 2, 1, devices=chips(1)) == whole).all()
