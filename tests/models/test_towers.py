"""The tower itself: images of another size, what it refuses, and its place as a frozen teacher in a recipe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tower_cases as cases
from parity_rules import photographs
from PIL import Image
from tiny_runs import SIDE, random_batch, random_state, start, tiny_mae, trace_forward

from mim_jax.errors import Refused
from mim_jax.models.layers import quick_gelu
from mim_jax.models.towers import FEATURES, Tower, resize_images
from mim_jax.parallel.mesh import make_mesh
from mim_jax.parallel.rules import shardings
from mim_jax.recipe import Frozen, Objective
from mim_jax.teachers import load_frozen
from mim_jax.weights.towers import open_teacher


@pytest.mark.parametrize(('side', 'target'), [(64, 56), (56, 64), (64, 32)])
def test_images_are_resized_as_by_pillow(side, target):
    images = cases.normalise(photographs(side), (0.5,) * 3, (0.5,) * 3)
    found = resize_images(images, (target, target))
    assert found.shape == (2, target, target, 3)
    for image, resized in zip(images, np.asarray(found), strict=True):
        for channel in range(3):
            one = Image.fromarray(image[..., channel]).resize((target, target), Image.BICUBIC)
            np.testing.assert_allclose(resized[..., channel], np.asarray(one), atol=2e-5)


def test_a_tower_resizes_what_it_is_given():
    teacher = open_teacher('random', '', SIDE, 4)
    images = jax.random.normal(jax.random.key(0), (2, 24, 24, 3))
    run = jax.jit(lambda x: teacher.tower.apply({'params': teacher.load()}, x).patches)
    np.testing.assert_allclose(run(images), run(resize_images(images, (SIDE, SIDE))), atol=1e-5)
    assert resize_images(images, (24, 24)) is images


def test_quick_gelu():
    x = np.linspace(-8.0, 8.0, 33)
    np.testing.assert_allclose(quick_gelu(jnp.asarray(x, jnp.float32)), x / (1.0 + np.exp(-1.702 * x)), atol=1e-6)
    assert quick_gelu(jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16


def test_levels_hold_what_the_protocol_says():
    teacher = open_teacher('random', '', SIDE, 4)
    images = jax.random.normal(jax.random.key(0), (2, SIDE, SIDE, 3))
    variables = {'params': teacher.load()}
    levels = teacher.tower.apply(variables, images, method='levels')
    assert levels.embedding.prefix.shape == (2, 1, 32)
    assert [tokens.patches.shape for tokens in (levels.placed, *levels.blocks)] == [(2, 16, 32)] * 3
    # What enters the first block is normalised, which is CLIP's form.
    np.testing.assert_allclose(levels.placed.joined().mean(-1), 0.0, atol=1e-5)
    attention = np.asarray(levels.attention(-1))
    assert attention.shape == (2, 2, 17, 17)
    np.testing.assert_allclose(attention.sum(-1), 1.0, rtol=1e-5)
    finished = teacher.tower.apply(variables, levels.last, method='finish')
    projected = teacher.tower.apply(variables, finished, method='project')
    found = {choice: teacher.tower.apply(variables, levels, choice, method='features') for choice in FEATURES}
    expected = {'pre_ln': levels.last, 'ln_post': finished, 'proj': projected}
    for choice, tokens in expected.items():
        np.testing.assert_array_equal(found[choice], tokens.patches)
        assert found[choice].shape[-1] == teacher.width_of(choice)
    np.testing.assert_array_equal(teacher.tower.apply(variables, images).joined(), projected.joined())


def test_a_tower_sees_whole_images_and_has_the_projection_it_has():
    tower, images = Tower(4, width=8, depth=1, heads=1, grid=(4, 4)), jnp.zeros((1, SIDE, SIDE, 3))
    variables = tower.init(jax.random.key(0), images)
    with pytest.raises(ValueError, match='whole images'):
        tower.apply(variables, images, object(), method='levels')
    with pytest.raises(Refused, match='no projection'):
        tower.apply(variables, tower.apply(variables, images), method='project')


def mimic(recipe, teacher, choice):
    """The mean of a teacher's features, times the student's: a loss that reads everything a paper reads."""

    def loss(forward):
        tower = forward.teacher('tower')
        features = tower.networks.run('encoder', tower.levels(), choice, method='features')
        looks = tower.levels().attention(-1)[:, :, 0, 1:].mean()
        return {'': (features.mean() + looks) * forward.visible().mean()}

    frozen = Frozen(teacher.tower, teacher.load, teacher.mean, teacher.std)
    return recipe.extend('mimic', teachers={'tower': frozen}, objectives={'mimic': Objective(loss)})


@pytest.mark.parametrize('choice', FEATURES)
def test_every_choice_traces_as_a_frozen_teacher(choice):
    recipe = mimic(tiny_mae(), open_teacher('random', '', SIDE, 4), choice)
    shape = trace_forward(recipe, lambda forward: forward.teacher('tower').latent().patches).shape
    assert shape == (2, 16, 32)
    loss = trace_forward(recipe, recipe.objectives['mimic'].loss)['']
    assert loss.shape == ()


def test_a_step_with_a_tower_in_bfloat16_leaves_it_alone():
    recipe = mimic(tiny_mae(), open_teacher('random', '', SIDE, 4, jnp.bfloat16), 'proj')
    frozen = jax.device_put(load_frozen(recipe))
    before = jax.tree.map(np.asarray, frozen)
    run = start(recipe, first=random_state(recipe), frozen=frozen)
    assert run.abstract.teachers == {}
    _, (first, second) = run.train([random_batch(recipe)] * 2, frozen)
    assert np.isfinite(first['loss/mimic'])
    assert first['loss/mimic'] != second['loss/mimic']  # the student moved
    jax.tree.map(np.testing.assert_array_equal, frozen, before)


def test_a_large_tower_is_split_over_fsdp():
    tower = Tower(16, width=768, depth=2, heads=12, grid=(14, 14), pre_norm=True, projected=512)
    params = jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))['params']
    placed = cases.flatten(shardings(params, make_mesh(data=4, fsdp=2), whole=False))
    for path, leaf in cases.flatten(params).items():
        assert placed[path].is_fully_replicated == (leaf.size < 2**14), path
