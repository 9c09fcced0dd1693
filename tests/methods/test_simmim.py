"""SimMIM: where mask tokens are, which patches they hide, what the loss is, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import PATCHES, SIDE, init_plain, random_batch, tiny_config, trace_forward

from mim_jax.errors import Refused
from mim_jax.forward import Forward, Surroundings, evaluate
from mim_jax.methods.simmim import simmim
from mim_jax.networks import Networks
from mim_jax.tokens import patchify


@pytest.fixture(scope='module')
def recipe():
    return simmim(tiny_config(encoder={'drop_path': 0.1}))


@pytest.fixture(scope='module')
def state(recipe):
    return init_plain(recipe)


def forward_of(recipe, params, images, mode='evaluate'):
    key = jax.random.key(3)
    around = Surroundings({'main': images}, jnp.arange(len(images)), key, jnp.zeros((), jnp.int32), {}, {})
    return Forward(recipe, Networks(recipe, params, {}, key, mode), around)


def test_mask_tokens_are_in_the_encoder_and_nowhere_else(recipe, state):
    assert recipe.name == 'simmim'
    assert recipe.mixed_places() == ('encoder',)
    assert recipe.encoder.cls
    assert recipe.masking.visible == 4  # of 16 patches in 4 cells, 3 of them masked
    assert recipe.objectives['pixels'].kind == 'reconstruct'
    assert recipe.pictures['pixels'].norm_pix == 'none'
    assert set(state.params) == {'encoder', 'decoder/pixels'}
    encoder = state.params['encoder']
    assert encoder['relative_bias_table'].shape == (7 * 7 + 3, 2)
    assert 'bias' not in encoder['block_00']['attn']['qkv']
    assert set(state.params['decoder/pixels']) == {'linear'}


def test_the_prediction_covers_every_patch(recipe):
    levels = trace_forward(recipe, lambda forward: (forward.latent().patches, forward.prediction('pixels')))
    assert [a.shape for a in levels] == [(2, PATCHES, 16), (2, PATCHES, 48)]


@pytest.mark.parametrize(('side', 'patch', 'masked'), [(224, 16, 120), (32, 4, 40)])
def test_whole_cells_are_masked(side, patch, masked):
    """ViT-B/16's grid of 14 x 14 and CIFAR-10's of 8 x 8; every cell as often as any other."""
    recipe = simmim(tiny_config(encoder={'patch_size': patch}, image_size=side))
    images = np.zeros((400, 1, 1, 3), np.uint8)  # the plan reads no pixels
    plan = np.asarray(forward_of(recipe, {}, images).plan().masked)
    np.testing.assert_array_equal(plan.sum(1), masked)
    half = side // patch // 2
    cells = plan.reshape(-1, half, 2, half, 2)
    assert (cells == cells[:, :, :1, :, :1]).all()
    share, cells = masked / plan.shape[1], cells[:, :, 0, :, 0]
    assert len(np.unique(plan, axis=0)) > 390
    assert np.abs(cells.mean(0) - share).max() < 5 * (share * (1 - share) / 400) ** 0.5


def test_masked_pixels_cannot_be_seen(recipe, state):
    images = random_batch(recipe, count=2)['main']
    forward = forward_of(recipe, state.params, images)
    hidden = np.asarray(forward.plan().masked).reshape(-1, 4, 1, 4, 1, 1).repeat(4, 2).repeat(4, 4)
    hidden = hidden.reshape(2, SIDE, SIDE, 1)
    changed = np.where(hidden, 255 - images, images)
    np.testing.assert_array_equal(
        forward.prediction('pixels'), forward_of(recipe, state.params, changed).prediction('pixels')
    )


def test_the_loss_is_the_released_formula_and_its_epsilon_changes_nothing(recipe, state):
    images = random_batch(recipe, count=4)['main']
    forward = forward_of(recipe, state.params, images)
    loss, logs = evaluate(forward)
    mask = np.asarray(forward.plan().masked)
    error = np.abs(np.asarray(forward.prediction('pixels')) - np.asarray(patchify(forward.images(), 4)))
    pixels = np.float32(mask.sum() * 16)
    assert pixels + np.float32(1e-5) == pixels
    expected = (error.astype(np.float64) * mask[..., None]).sum() / (float(pixels) + 1e-5) / 3
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert set(logs) == {'loss/total', 'loss/pixels'}


def test_drop_path_acts_in_training_only(recipe, state):
    images = random_batch(recipe, count=64)['main']
    off = simmim(tiny_config())
    evaluated, trained, without = (
        np.asarray(forward_of(r, state.params, images, mode).latent().patches)
        for r, mode in ((recipe, 'evaluate'), (recipe, 'train'), (off, 'train'))
    )
    np.testing.assert_array_equal(evaluated, without)
    assert (np.abs(evaluated - trained) > 1e-6).any((1, 2)).all()  # dropped or scaled, nothing is as it was


@pytest.mark.parametrize(
    ('config', 'options', 'sentence'),
    [
        ({'encoder': {'positions': 'learned'}}, {}, r'simmim has no absolute positions .* encoder\.positions=fixed'),
        ({}, {'mask_cell': 0}, r'does not divide into mask cells of 0 x 0'),
        ({}, {'mask_cell': 3}, 'a grid of 4 x 4 patches does not divide into mask cells of 3 x 3'),
        ({}, {'mask_ratio': 0.8}, 'a mask_ratio of 0.8 masks 4 of 4 cells'),
        ({}, {'mask_ratio': 0.0}, 'a mask_ratio of 0.0 masks 0 of 4 cells'),
    ],
)
def test_what_makes_no_sense_is_refused(config, options, sentence):
    with pytest.raises(Refused, match=sentence):
        simmim(tiny_config(**config), **options)
