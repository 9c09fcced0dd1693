"""ConMIM as a recipe: its loss, masks and views, what it refuses, and the same run on eight devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import QUICK, leaves, random_batch, start, tiny_config

from mim_jax.errors import Refused
from mim_jax.forward import Forward, Surroundings
from mim_jax.methods.conmim import conmim
from mim_jax.networks import Networks
from mim_jax.objectives.contrast import denoising_contrast
from mim_jax.photometric import jitter_gray_blur_solarize

SMALL = {'projector_width': 32, 'projector_output': 8}
IMAGES = 16


def tiny_conmim(bn_images=2, accumulate=1, **top):
    return conmim(tiny_config(batch_size=IMAGES, accumulate=accumulate, **top), bn_images=bn_images, **SMALL)


# -- the loss ------------------------------------------------------------------------------------------------------------


def test_the_loss_follows_the_equation():
    """Mean over masked patches i of -log(exp(q_i.k_i / t) / sum over all j of exp(q_i.k_j / t)), of unit vectors."""
    draw = np.random.default_rng(0)
    queries, keys = draw.normal(size=(2, 3, 5, 4))
    masked = np.array([[True, False, True, True, False], [False, True, False, False, False], [True] * 5])
    terms = []
    for b, i in zip(*masked.nonzero(), strict=True):
        unit = queries[b, i] / np.linalg.norm(queries[b, i])
        logits = [unit @ key / np.linalg.norm(key) / 0.2 for key in keys[b]]
        terms.append(np.log(np.sum(np.exp(logits))) - logits[i])
    assert len(terms) == 9
    ours = denoising_contrast(jnp.asarray(queries), jnp.asarray(keys), jnp.asarray(masked), 0.2)
    np.testing.assert_allclose(ours, np.mean(terms), rtol=1e-6)


def test_a_vector_of_zeros_is_divided_by_1e_12_and_no_nan_arises():
    queries = jnp.ones((1, 3, 4)).at[0, 1].set(0.0)
    keys, masked = jnp.arange(12.0).reshape(1, 3, 4), jnp.ones((1, 3), bool)
    loss, gradient = jax.value_and_grad(denoising_contrast)(queries, keys, masked, 0.1)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    assert 1e10 < np.abs(gradient[0, 1]).max() < 1e13


# -- masks and views -----------------------------------------------------------------------------------------------------


def test_masks_are_random_mps32():
    """At 224 pixels: 37 of 49 cells of 32 pixels, whole, every cell as often as any other."""
    recipe = conmim(tiny_config(image_size=224, encoder={'patch_size': 16}), **SMALL)
    count = 2000

    def draw(key):
        around = Surroundings({}, jnp.arange(count), key, jnp.zeros((), int), {}, {})
        return Forward(recipe, Networks(recipe, {}, {}, key, 'train'), around).plan().masked

    masked = np.asarray(jax.jit(draw, compiler_options=QUICK)(jax.random.key(0)))
    np.testing.assert_array_equal(masked.sum(axis=1), 148)
    cells = masked.reshape(count, 7, 2, 7, 2)
    np.testing.assert_array_equal(cells, cells[:, :, :1, :, :1].repeat(2, axis=2).repeat(2, axis=4))
    often = cells[:, :, 0, :, 0].mean(axis=0)
    assert np.abs(often - 37 / 49).max() < 4.5 * (37 / 49 * 12 / 49 / count) ** 0.5


def test_the_teacher_sees_the_same_crop_whole_and_augmented():
    recipe = tiny_conmim()
    batch = {name: jnp.asarray(pixels) for name, pixels in random_batch(recipe).items()}
    assert batch.keys() == {'main'}

    def look(key):
        teachers = {'conmim': {'params': {}, 'batch_stats': {}}}
        around = Surroundings(batch, jnp.arange(IMAGES), key, jnp.zeros((), int), teachers, {})
        forward = Forward(recipe, Networks(recipe, {}, {}, key, 'train'), around)
        teacher = forward.teacher('conmim')
        assert teacher.plan('teacher') is None
        augmented = jitter_gray_blur_solarize(forward.pixels('main'), forward.keys('photometric', 'teacher'))
        return forward.pixels('main'), teacher.pixels('teacher'), augmented

    main, seen, augmented = jax.jit(look, compiler_options=QUICK)(jax.random.key(0))
    np.testing.assert_allclose(main, batch['main'] / np.float32(255), rtol=1e-6)
    np.testing.assert_allclose(seen, augmented, rtol=1e-6)
    changed = np.abs(np.asarray(seen - main)).max((1, 2, 3)) > 0.01
    assert changed.sum() > IMAGES // 2


# -- refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'bn_images': 6}, r'conmim\.bn_images=6 does not divide the 8 images of a micro-batch'),
        ({'bn_images': -1}, r'conmim\.bn_images=-1 must not be negative'),
        ({'temperature': 0.0}, r'conmim\.temperature=0\.0 must be above 0'),
        ({'momentum': 1.5}, r'conmim\.momentum=1\.5 must be at least 0 and at most 1'),
        ({'projector_output': 0}, r'conmim\.projector_output=0 must be at least 1'),
        ({'mask_cell': 3}, r'does not divide into mask cells of 3 x 3'),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(Refused, match=message):
        conmim(tiny_config(batch_size=IMAGES, accumulate=2), **{**SMALL, **options})


@pytest.mark.parametrize('bn_images', [0, 1, 4, 8, 64])
def test_statistics_over_a_divisor_or_all_of_the_images_are_not_refused(bn_images):
    recipe = tiny_conmim(bn_images, accumulate=2)
    assert recipe.objectives['contrast'].heads['projector'].group_images == bn_images


def test_learned_positions_are_refused():
    with pytest.raises(Refused, match='conmim has no absolute positions to learn'):
        conmim(tiny_config(encoder={'positions': 'learned'}))


# -- devices -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def batches():
    return [random_batch(tiny_conmim(), seed, IMAGES) for seed in range(3)]


@pytest.fixture(scope='module')
def single(batches):
    """Three steps on one device: the run, the last state, the logs."""
    run = start(tiny_conmim())
    return run, *run.train(batches)


@pytest.fixture(scope='module')
def eight(single):
    return start(tiny_conmim(), data=2, fsdp=4, first=single[0].first)


def test_eight_devices_with_their_own_statistics_train_as_one(single, eight, batches):
    """Two images share statistics, and a device has two."""
    _, state, logs = single
    found, found_logs = eight.train(batches)
    for ours, expected in zip(found_logs, logs, strict=True):
        for name, value in expected.items():
            np.testing.assert_allclose(ours[name], value, rtol=1e-4, err_msg=name)
    statistics, expected = leaves(found.batch_stats), leaves(state.batch_stats)
    assert len(expected) == 6
    for path, value in expected.items():
        np.testing.assert_allclose(statistics[path], value, rtol=1e-4, atol=1e-5, err_msg=path)


def test_no_activation_travels(eight):
    """Activations have three axes or more. So has the gradient of the attention's biases, which must be summed."""
    program = eight.step.as_text()
    for kind in ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute'):
        results = ' '.join(re.findall(rf'= (.*?) {kind}(?:-start)?\(', program))
        shapes = {shape for shape in re.findall(r'\[([\d,]+)\]', results) if shape.count(',') >= 2}
        assert shapes == ({'2,17,17'} if kind == 'all-reduce' else set()), kind


def test_the_student_learns_and_the_teacher_follows_without_its_statistics(single):
    run, state, logs = single
    assert logs[-1]['loss/total'] < logs[0]['loss/total']
    first, last = leaves(run.first.params), leaves(state.params)
    assert [path for path in first if (first[path] == last[path]).all()] == []
    assert leaves(state.teachers['conmim']['params']).keys() == last.keys()
    for path, value in leaves(state.teachers['conmim']['batch_stats']).items():
        np.testing.assert_array_equal(value, float(path.endswith('var')))
    assert all((value != float(path.endswith('var'))).any() for path, value in leaves(state.batch_stats).items())
