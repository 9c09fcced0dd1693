"""What the TPU compiler makes of meshes, on a machine without TPUs: gradients scattered, slices apart."""

import importlib.util
import os
import re

import jax
import pytest
from jax.experimental import topologies
from tiny_runs import tiny_config, tiny_mae

from mim_jax.parallel.mesh import batch_sharding, make_mesh
from mim_jax.training import optim
from mim_jax.training.state import abstract_state, state_shardings
from mim_jax.training.step import jit_train_step, make_train_step

WIDTH, DEPTH, IMAGES = 256, 2, 32

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu, the TPU compiler, from PyPI'),
]


def chips(name, **options):
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # there is no cloud machine to ask
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # another process may be compiling
    return topologies.get_topology_desc(platform='tpu', topology_name=name, **options).devices


def compile_step(mesh):
    """HLO of the train step, bf16."""
    config = tiny_config({'width': WIDTH, 'depth': DEPTH, 'heads': 4}, dtype='bfloat16', batch_size=IMAGES)
    recipe, rate = tiny_mae(config), optim.learning_rate('constant', 1e-3, 0.0, 2, 20)
    optimizer = optim.make_optimizer(config.optim, rate, recipe.decay)
    abstract = abstract_state(recipe, optimizer, mesh)
    step = make_train_step(recipe, optimizer, rate, 1, state_shardings(abstract).params)
    image = jax.ShapeDtypeStruct((IMAGES, 16, 16, 3), 'uint8', sharding=batch_sharding(mesh))
    return jit_train_step(step, abstract, {}, mesh).lower(abstract, {}, {'main': image}).compile().as_text()


@pytest.mark.parametrize(
    ('sizes', 'kernels'),
    [
        ((1, 8, 1), {'256,768': '32,768', '256,256': '256,32', '256,1024': '32,1024', '1024,256': '1024,32'}),
        ((1, 4, 2), {'256,3,2,64': '64,3,2,64', '128,256': '128,64', '256,512': '64,512', '512,256': '512,64'}),
    ],
)
def test_gradients_of_every_block_are_scattered(sizes, kernels):
    """Fused into the sum: whole gradients go in, shards come out. {of a device's products: its shard}"""
    text = compile_step(make_mesh(*sizes, devices=chips('v5e:2x4')))
    taken, given = [], []
    for inputs, outputs in re.findall(r'^%all-reduce-scatter[\w.]* \((.*?)\) -> \(?(.*?)\)? \{', text, re.M):
        taken += re.findall(r'\[([\d,]+)\]', inputs)
        given += re.findall(r'\[([\d,]+)\]', outputs)
    for whole, shard in kernels.items():
        assert taken.count(whole) == given.count(shard) == DEPTH, (whole, taken, given)


@pytest.mark.parametrize('sizes', [(-1, 1, 1), (-1, 4, 1), (-1, 2, 2)])
def test_only_data_crosses_slices(sizes):
    mesh = make_mesh(*sizes, devices=chips('v5e:2x2', num_slices=2))
    half = mesh.shape['data'] // 2
    assert {d.slice_index for d in mesh.devices[:half].flat} == {0}
    assert {d.slice_index for d in mesh.devices[half:].flat} == {1}


def test_a_third_axis_may_split_a_ring():
    """4 x 4 chips of v4 in a cube of 4: no arrangement of 2 x 4 x 8 keeps every ring whole."""
    mesh = make_mesh(2, 4, 8, devices=chips('v4:4x4x4', chip_config_name='megacore'))
    assert dict(mesh.shape) == {'data': 2, 'fsdp': 4, 'model': 8}
