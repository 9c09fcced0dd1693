"""The state: made in place, the same on any mesh, and back from a plain tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding
from tiny_runs import leaves, tiny_mae

from mim_jax.parallel.mesh import make_mesh
from mim_jax.recipe import EMA, Objective
from mim_jax.training import optim
from mim_jax.training.state import abstract_state, from_tree, init_state, state_shardings, to_tree


class Head(nn.Module):
    """Linear, BatchNorm."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        return nn.BatchNorm(use_running_average=not self.is_mutable_collection('batch_stats'))(x)


@pytest.fixture(scope='module')
def recipe():
    """With everything a state may hold: heads, statistics, a teacher."""

    def loss(forward):
        def project(network):
            return network.head('new/head', network.visible().mean(1))

        return {'': jnp.square(project(forward) - project(forward.teacher('slow'))).mean()}

    return tiny_mae().extend(
        'new', objectives={'new': Objective(loss, heads={'head': Head()})}, teachers={'slow': EMA(lambda step: 0.1)}
    )


@pytest.fixture(scope='module')
def optimizer(recipe):
    return optim.make_optimizer(recipe.config.optim, optim.learning_rate('cosine', 1e-3, 0.0, 2, 20))


@pytest.fixture(scope='module')
def abstract(recipe, optimizer):
    return abstract_state(recipe, optimizer, make_mesh(devices=jax.devices()[:1]))


@pytest.fixture(scope='module')
def single(recipe, optimizer, abstract):
    return init_state(recipe, optimizer, abstract)


def test_abstract_state_allocates_nothing_and_places_every_leaf(recipe, optimizer):
    mesh = make_mesh(2, 4)
    before = {id(array) for array in jax.live_arrays()}
    abstract = abstract_state(recipe, optimizer, mesh)
    assert [a.shape for a in jax.live_arrays() if id(a) not in before and a.size > 1] == []
    for path, leaf in leaves_of(abstract):
        assert isinstance(leaf, jax.ShapeDtypeStruct), path
        assert isinstance(leaf.sharding, NamedSharding), path
        assert leaf.sharding.mesh == mesh, path
    assert jax.tree.structure(state_shardings(abstract)) == jax.tree.structure(abstract)


def leaves_of(state):
    return [(str(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]]


def test_abstract_and_real_state_agree(single, abstract):
    assert jax.tree.structure(abstract) == jax.tree.structure(single)
    for (path, expected), (_, leaf) in zip(leaves_of(abstract), leaves_of(single), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (expected.shape, expected.dtype, expected.sharding), path


def test_everything_but_counters_and_the_key_is_fp32(single):
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(single.replace(root_key=()))}
    assert dtypes == {np.dtype('float32'), np.dtype('int32')}
    assert jnp.issubdtype(single.root_key.dtype, jax.dtypes.prng_key)


def test_initialisation_is_the_same_on_eight_devices_with_fsdp(recipe, optimizer, single):
    split = init_state(recipe, optimizer, abstract_state(recipe, optimizer, make_mesh(2, 4)))
    ours, expected = leaves(split.replace(root_key=())), leaves(single.replace(root_key=()))
    assert ours.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_allclose(ours[path], array, rtol=1e-6, atol=1e-8, err_msg=path)
    np.testing.assert_array_equal(jax.random.key_data(split.root_key), jax.random.key_data(single.root_key))
    kernel = split.params['encoder']['block_00']['mlp']['fc1']['kernel']
    assert {shard.data.nbytes for shard in kernel.addressable_shards} == {kernel.nbytes // 4}


def test_parameters_and_teacher_do_not_share_buffers(single):
    """Both are donated to the step; XLA refuses a buffer that is given twice."""
    student = single.params['encoder']['patch_embed']['kernel']
    teacher = single.teachers['slow']['params']['encoder']['patch_embed']['kernel']
    assert student.unsafe_buffer_pointer() != teacher.unsafe_buffer_pointer()
    np.testing.assert_array_equal(student, teacher)


def test_a_tree_round_trip_gives_the_state_back(single):
    tree = to_tree(single)
    back = from_tree(tree, single)
    assert jax.tree.structure(back) == jax.tree.structure(single)
    for (path, expected), (_, leaf) in zip(leaves_of(single), leaves_of(back), strict=True):
        assert leaf is expected, path


def test_a_tree_is_nested_by_role_and_holds_no_key(single):
    tree = to_tree(single)
    assert set(tree) == {'step', 'params', 'batch_stats', 'opt_state', 'teachers'}
    assert tree['params']['objectives']['new']['head']['Dense_0']['kernel'].shape == (16, 8)
    assert tree['params']['decoder']['pixels']['mask_token'].shape == (1, 1, 16)
    assert set(tree['teachers']['slow']) == {'params', 'batch_stats'}
    paths = [path for path, _ in leaves_of(tree)]
    assert not [path for path in paths if 'key' in path.lower() and 'Key' not in path]
    assert len(paths) == len(leaves_of(single)) - 1


def test_from_tree_takes_an_abstract_structure_and_misses_what_is_not_there(single, abstract):
    tree = to_tree(single)
    restored = from_tree(tree, abstract)
    assert restored.params['encoder']['cls_token'] is single.params['encoder']['cls_token']
    del tree['params']['encoder']['cls_token']
    with pytest.raises(KeyError, match='params/encoder/cls_token'):
        from_tree(tree, single)
