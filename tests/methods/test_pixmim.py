"""PixMIM: MAE with another target, which scales with the image, stays on its device and is what pictures borrow from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny_runs import SIDE, init_plain, random_batch, tiny_config, tiny_mae

from mim_jax.errors import Refused
from mim_jax.forward import Forward, Surroundings, evaluate
from mim_jax.methods.pixmim import pixmim
from mim_jax.networks import Networks
from mim_jax.objectives.low_pass import low_pass
from mim_jax.parallel.mesh import make_mesh

DECODER = {'decoder_width': 16, 'decoder_depth': 1, 'decoder_heads': 2}


@pytest.fixture(scope='module')
def recipe():
    return pixmim(tiny_config(), **DECODER)


@pytest.fixture(scope='module')
def state(recipe):
    return init_plain(recipe)


def forward_of(recipe, params, images):
    key = jax.random.key(3)
    around = Surroundings({'main': images}, jnp.arange(len(images)), key, jnp.zeros((), jnp.int32), {}, {})
    return Forward(recipe, Networks(recipe, params, {}, key, 'evaluate'), around)


def test_it_is_mae_with_another_target(recipe, state):
    images = random_batch(recipe, count=4)['main']
    ours, base = (forward_of(r, state.params, images) for r in (recipe, tiny_mae()))
    assert recipe.name == 'pixmim'
    assert recipe.mixed_places() == ('pixels',)
    assert recipe.objectives['pixels'].kind == 'reconstruct'
    np.testing.assert_array_equal(ours.images(), base.images())
    np.testing.assert_array_equal(ours.prediction('pixels'), base.prediction('pixels'))
    assert abs(float(evaluate(ours)[0]) / float(evaluate(base)[0]) - 1) > 1e-3


def test_a_disc_of_every_frequency_is_mae(state):
    everything = pixmim(tiny_config(), low_pass_radius=SIDE, scale_radius=False, **DECODER)
    images = random_batch(everything, count=4)['main']
    ours, base = (evaluate(forward_of(r, state.params, images))[0] for r in (everything, tiny_mae()))
    np.testing.assert_allclose(ours, base, rtol=1e-5)


@pytest.mark.parametrize(('scale', 'radius'), [(True, 40 * SIDE / 224), (False, 40.0)])
def test_the_radius_scales_with_the_image(scale, radius):
    recipe = pixmim(tiny_config(), scale_radius=scale, **DECODER)
    images = random_batch(recipe, count=2)['main']
    forward = forward_of(recipe, {}, images)
    mean, std = np.array(recipe.mean), np.array(recipe.std)
    shown = np.asarray(recipe.pictures['pixels'].target(forward)) * std + mean
    np.testing.assert_allclose(shown, low_pass(jnp.asarray(images / 255.0, jnp.float32), radius), atol=1e-5)


def test_frequencies_outside_the_disc_disappear():
    x = np.arange(32)
    wave = {k: 0.25 * np.cos(2 * np.pi * k * x / 32) for k in (3, 12)}
    image = 0.5 + wave[3][:, None] + wave[12]
    pixels = jnp.asarray(np.broadcast_to(image[None, :, :, None], (1, 32, 32, 3)), jnp.float32)
    np.testing.assert_allclose(low_pass(pixels, 6.0)[0, :, :, 0], 0.5 + wave[3][:, None] + 0 * x, atol=1e-5)


def test_plain_targets_are_filtered_too(state):
    recipe = pixmim(tiny_config(), norm_pix_loss=False, **DECODER)
    assert recipe.pictures['pixels'].norm_pix == 'none'
    images = random_batch(recipe, count=2)['main']
    forward = forward_of(recipe, state.params, images)
    target = np.asarray(recipe.pictures['pixels'].target(forward))
    patches = target.reshape(2, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 16, 48)
    error = ((np.asarray(forward.prediction('pixels')) - patches) ** 2).mean(-1)
    np.testing.assert_allclose(evaluate(forward)[0], error[np.asarray(forward.plan().masked)].mean(), rtol=1e-5)


def test_every_device_filters_its_own_images():
    """An FFT would not: XLA gathers the batch for it."""
    rows = NamedSharding(make_mesh(), PartitionSpec(('data', 'fsdp')))
    program = jax.jit(lambda pixels: low_pass(pixels, 4.0), in_shardings=rows, out_shardings=rows)
    text = program.lower(jax.ShapeDtypeStruct((16, 32, 32, 3), jnp.float32)).compile().as_text()
    assert 'f32[2,32,32,3]' in text
    assert not any(collective in text for collective in ('all-gather', 'all-to-all', 'all-reduce', 'permute('))


def test_a_filter_that_keeps_nothing_is_refused():
    with pytest.raises(Refused, match=r'pixmim\.low_pass_radius=0\.0 keeps no frequency of a 16-pixel image'):
        pixmim(tiny_config(), low_pass_radius=0.0, **DECODER)
