"""MCMAE against the released code of Alpha-VL/ConvMAE (golden of golden/make_mcmae_golden.py): every block, loss, gradient."""

import mcmae_cases as cases
import numpy as np
import pytest
from base_ours import check_pass, run_ours
from flax import traverse_util
from parity_rules import GOLDEN, largest_difference, under

from mim_jax.interop.mcmae import CONVMAE
from mim_jax.models.conv_vit import ConvBlock, StageEmbed
from mim_jax.weights.layout import to_ours, to_theirs


@pytest.fixture(scope='module')
def stored():
    with np.load(GOLDEN / 'mcmae.npz') as arrays:
        return dict(arrays)


@pytest.fixture(scope='module')
def weights():
    return cases.make_weights(cases.make_recipe())


def read_stages(forward):
    """{place: visible cells} of every embedding and block of the convolution stages, and what the stages add."""
    params, levels = forward.networks.params, forward.levels()
    _, state = forward.recipe.encoder.apply(
        {'params': params['encoder']},
        forward.images(),
        forward.plan(),
        method='levels',
        capture_intermediates=lambda m, method: method == '__call__' and isinstance(m, (ConvBlock, StageEmbed)),
        mutable=['intermediates'],
    )
    captured = traverse_util.flatten_dict(state['intermediates'], sep='/')
    seen = {f'encoder/{name.removesuffix("/__call__")}': outputs[0] for name, outputs in captured.items()}
    for name, layer in params['neck/stages'].items():
        cells = levels.maps[name].reshape(2, cases.VISIBLE, -1)
        seen[f'neck/stages/{name}'] = cells @ layer['kernel'] + layer['bias']
    return seen | {'encoder/embed4': levels.embedding.patches}


@pytest.mark.parametrize('setting', ['norm', 'plain'])
def test_agrees_with_the_released_code(setting, stored, weights):
    recipe = cases.make_recipe(setting == 'norm')
    seen, loss, gradients = run_ours(recipe, cases.make_images(), weights, read_stages)
    np.testing.assert_array_equal(seen.pop('masked'), stored['masked'])
    # The stages' epsilon of 1e-5, were it 1e-6, would make 8e-5 of difference.
    names = {'loss': f'{setting}/loss', 'gradients': f'{setting}/gradients/'}
    check_pass((seen, loss, gradients), stored, setting, **names, seen=2e-5)


def test_weights_travel_both_ways(weights):
    state = to_theirs(weights, CONVMAE)
    assert state['blocks1.0.attn.weight'].shape == (16, 1, 5, 5)
    assert state['stage1_output_decode.weight'].shape == (32, 16, 4, 4)
    back = to_ours(state, CONVMAE, tuple(weights))
    for path, value in weights.items():
        np.testing.assert_array_equal(back[path], value, err_msg=path)


def test_constants_are_theirs(stored):
    recipe = cases.make_recipe()
    constants = {name: value(recipe) for name, value in CONVMAE.constants.items()}
    assert constants['pos_embed'].shape == (1, cases.PATCHES, cases.WIDTH)
    assert largest_difference(constants, under(stored, 'constants/'), relative=False)[0] < 1e-6
