"""A paper written here whose frozen teacher picks the mask: no gradient, no state, no special case in the core."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from tiny_runs import random_batch, random_parameters, random_state, start, tiny_mae, trace_forward

from mim_jax.forward import create_parameters
from mim_jax.models.vit import ViT
from mim_jax.recipe import Frozen, Masking, View
from mim_jax.teachers import load_frozen

TOWER = ViT(patch_size=4, width=8, depth=2, heads=2)


def focused(recipe, *, load=None):
    """The patches that the teacher's CLS looks at stay visible."""

    def load_tower():
        return random_parameters(TOWER, jnp.zeros((1, 16, 16, 3)))

    def scores(forward, view):
        return -forward.teacher('tower').levels(view).attention(-1)[:, :, 0, 1:].mean(1)

    masked = dataclasses.replace(recipe, masking=Masking(scores, recipe.masking.visible))
    return masked.extend('focused', teachers={'tower': Frozen(TOWER, load or load_tower, (0.5,) * 3, (0.5,) * 3)})


def test_a_frozen_teacher_picks_the_mask_and_stays_outside_the_state():
    recipe = focused(tiny_mae())
    recipe = recipe.extend('watching', watches={'keep': lambda forward: jnp.sort(forward.plan().keep, axis=1)})
    frozen, batch = jax.device_put(load_frozen(recipe)), random_batch(recipe)
    run = start(recipe, first=random_state(recipe), frozen=frozen)
    assert run.abstract.teachers == {}
    _, (first, second) = run.train([batch, batch], frozen)
    np.testing.assert_array_equal(first['watch/keep'], second['watch/keep'])  # the same images, whatever the step

    images = (batch['main'] / 255.0).astype(np.float32) * 2 - 1  # the teacher's own mean and deviation
    levels = TOWER.apply({'params': frozen['tower']}, images, None, method='levels')
    looks = np.asarray(levels.attention(-1))[:, :, 0, 1:].mean(1)
    expected = np.sort(np.argsort(-looks, axis=1)[:, :4], axis=1)
    np.testing.assert_array_equal(first['watch/keep'], expected)
    assert len({tuple(row) for row in expected}) > 1


def test_every_view_is_ranked_by_its_own_crop():
    """LUT over MR-MAE: the second view's mask comes from the second crop's attention."""
    recipe = focused(tiny_mae()).extend('second', views={'second': View('other', block=1)})
    params, _, teachers = jax.eval_shape(lambda key: create_parameters(recipe, key), jax.random.key(0))
    assert sorted(params) == ['decoder/pixels', 'encoder']
    assert teachers == {}
    seen = trace_forward(recipe, lambda forward: (forward.plan('main').keep, forward.plan('second').keep))
    assert [keep.shape for keep in seen] == [(2, 4), (2, 4)]
    memo = trace_memo(recipe)
    assert "levels('second')" in memo
    assert "levels('main')" not in memo


def trace_memo(recipe):
    """What the teacher computed for the second view's plan."""
    memo = []
    trace_forward(recipe, lambda forward: (forward.plan('second').keep, memo.extend(forward.teacher('tower')._memo))[0])
    return memo
