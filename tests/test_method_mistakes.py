"""Mistakes an author of a method makes are named when the recipe is built."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from tiny_runs import tiny_mae

from mim_jax.errors import Refused
from mim_jax.forward import create_parameters
from mim_jax.recipe import EMA, Objective, View


def with_loss(loss, **parts):
    return tiny_mae().extend('new', objectives={'new': Objective(loss)}, **parts)


@pytest.mark.parametrize(
    ('loss', 'message'),
    [
        (
            lambda forward: {'': forward.prediction('pixels').mean((1, 2))},
            r"objective 'new', term '': a loss is a scalar",
        ),
        (lambda forward: {}, "objective 'new' returned no terms"),
        (lambda forward: {'': forward.head('new/missing', jnp.ones(1))}, "no module 'objectives/new/missing'"),
        (
            lambda forward: {'': forward.teacher('t').teacher('t').levels().last.patches.mean()},
            'a teacher has no teachers',
        ),
        (lambda forward: {'': forward.prediction('pixels', 'whole').mean()}, "view 'whole' is not masked"),
    ],
)
def test_mistakes_in_a_loss_are_named_when_the_recipe_is_built(loss, message):
    recipe = with_loss(loss, views={'whole': View('main', block=None)}, teachers={'t': EMA(lambda step: 0.1)})
    with pytest.raises((ValueError, KeyError), match=message):
        jax.eval_shape(lambda key: create_parameters(recipe, key), jax.random.key(0))


def test_an_objective_cannot_take_the_name_of_the_sum():
    with pytest.raises(Refused, match="'total', which is the name of the sum"):
        tiny_mae().extend('new', objectives={'total': Objective(lambda forward: {})})


def test_a_head_is_not_run_inside_an_inner_transformation():
    def loss(forward):
        return {'': jax.checkpoint(lambda x: forward.head('new/head', x).sum())(jnp.ones((2, 4)))}

    recipe = tiny_mae().extend('new', objectives={'new': Objective(loss, heads={'head': nn.Dense(2)})})
    with pytest.raises(RuntimeError, match=r"head\('new/head'\) was read inside an inner jax transformation"):
        jax.eval_shape(lambda key: create_parameters(recipe, key), jax.random.key(0))
