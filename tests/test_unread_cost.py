"""What no loss reads is never compiled: unread teachers and hidden states cost no FLOPs and no scratch memory."""

import jax
import jax.numpy as jnp
import pytest
from tiny_runs import QUICK, random_batch, tiny_config, tiny_mae

from mim_jax.forward import create_parameters
from mim_jax.models.vit import ViT
from mim_jax.recipe import EMA, Frozen, Objective
from mim_jax.training.state import TrainState
from mim_jax.training.step import compute_loss

TOWER = ViT(patch_size=4, width=8, depth=2, heads=2)


def step_cost(recipe):
    """Compiled (FLOPs, scratch bytes) of loss and gradient, and the teachers of the state."""
    params, _, teachers = jax.eval_shape(lambda key: create_parameters(recipe, key), jax.random.key(0))

    def loss(params, teachers, batch):
        state = TrainState(jnp.int32(0), params, {}, (), teachers, jax.random.key(0))
        return compute_loss(recipe, params, {}, state, {}, batch, jnp.arange(16))[0]

    compiled = jax.jit(jax.grad(loss)).lower(params, teachers, random_batch(recipe)).compile(compiler_options=QUICK)
    return compiled.cost_analysis()['flops'], compiled.memory_analysis().temp_size_in_bytes, teachers


@pytest.mark.parametrize('scan', [False, True])
def test_an_unread_teacher_and_unread_hidden_states_are_free(scan):
    bare = tiny_mae(tiny_config(encoder={'scan': scan}))

    def glance(forward):
        return forward.hidden('encoder'), forward.hidden('pixels'), forward.levels().attention(0)

    glancing = Objective(lambda forward: {'': 0.0 * len(glance(forward))})
    unread = bare.extend(
        'unread',
        objectives={'glancing': glancing},
        teachers={'slow': EMA(lambda step: 0.1), 'tower': Frozen(TOWER, dict, (0.5,) * 3, (0.5,) * 3)},
    )
    (flops, scratch, _), (other_flops, other_scratch, teachers) = step_cost(bare), step_cost(unread)
    assert teachers == {}
    assert flops > 1e6
    assert (other_flops, other_scratch) == (flops, scratch)


def test_the_cost_of_a_teacher_that_is_read_is_noticed():
    def imitate(forward):
        return {'': jnp.square(forward.latent().prefix - forward.teacher('slow').latent().prefix).mean()}

    bare = tiny_mae()
    read = bare.extend('read', objectives={'read': Objective(imitate)}, teachers={'slow': EMA(lambda step: 0.1)})
    assert step_cost(read)[0] > 1.2 * step_cost(bare)[0]
