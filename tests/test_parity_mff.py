"""MFF against mmpretrain's own model, golden of golden/make_mff_golden.py."""

import jax.numpy as jnp
import mff_cases as cases
import numpy as np
import pytest
from base_ours import check_first_step, check_pass, run_ours, train_ours
from flax import linen as nn
from parity_rules import GOLDEN, largest_difference, under

from mim_jax.interop.mff import MFF
from mim_jax.tokens import normalise_patches, patchify
from mim_jax.weights.layout import to_ours, to_theirs


@pytest.fixture(scope='module')
def stored():
    with np.load(GOLDEN / 'mff.npz') as arrays:
        return dict(arrays)


def read_neck(forward):
    """What the fusion is made of, all tokens with CLS, the weights that are logged, and the target."""
    reader, params = forward.recipe.module('neck/last'), forward.networks.params['neck/last']
    fused, made = reader.apply(
        {'params': params},
        forward.levels(),
        mutable=['intermediates'],
        capture_intermediates=lambda module, _: isinstance(module, nn.Dense),
    )
    outputs = [made['intermediates'][name]['__call__'][0] for name in sorted(made['intermediates'])]
    seen = {f'projected/{i}': output for i, output in enumerate(outputs)}
    weights = [forward.networks.watched[f'watch/neck/last/weight_{layer:02d}'] for layer in reader.layers]
    target = normalise_patches(patchify(forward.images(), forward.recipe.encoder.patch_size))
    return seen | {'fused': fused.joined(), 'weights': jnp.stack(weights), 'target': target}


@pytest.mark.parametrize('name', cases.CASES)
def test_agrees_with_the_released_code(name, stored):
    case, golden = cases.CASES[name], under(stored, f'{name}/')
    seen, loss, gradients = run_ours(
        cases.make_recipe(case), cases.make_images(case), cases.make_weights(case), read_neck
    )
    np.testing.assert_array_equal(seen.pop('masked'), golden['masked'])
    np.testing.assert_allclose(seen.pop('weights'), golden['weights'], rtol=1e-6)
    check_pass((seen, loss, gradients), golden, name, key_biases=True)


def test_the_fusion_has_gradients_that_count(stored):
    """Projections and logits are compared above on a scale of their own."""
    for name in cases.CASES:
        gradients = under(stored, f'{name}/gradients/')
        floor = 1e-3 * max(gradient[1] for gradient in gradients.values())
        found = {path: gradient[1] for path, gradient in gradients.items() if path.startswith('neck/last/')}
        assert len(found) == (11 if name == 'released_layers' else 3)
        assert min(found.values()) > floor


def test_steps_agree_with_the_released_optimizer(stored):
    case, golden = cases.CASES[cases.STEPPED], under(stored, f'{cases.STEPPED}/')
    found = train_ours(
        cases.make_recipe(case), cases.make_images(case), cases.make_weights(case), cases.ADAMW['lr'], cases.STEPS
    )
    np.testing.assert_allclose(found['loss'], golden['losses'], rtol=1e-5)
    check_first_step(found['moved'], under(golden, 'moved/'), under(golden, 'gradients/'), 0.5, 0.4)


def test_the_released_optimizer_decays_logits(stored):
    """Adam's first step is a whole lr against the gradient's sign; what is beyond it is decay."""
    golden = under(stored, f'{cases.STEPPED}/')
    moved, gradient = (golden[f'{kind}/neck/last/logits'][2:] for kind in ('moved', 'gradients'))
    logits = cases.make_weights(cases.CASES[cases.STEPPED])['neck/last/logits']
    decay = -cases.ADAMW['lr'] * cases.ADAMW['weight_decay'] * logits
    np.testing.assert_allclose(moved + cases.ADAMW['lr'] * np.sign(gradient), decay, rtol=1e-2)


def test_their_positions_are_ours_with_the_halves_exchanged(stored):
    recipe = cases.make_recipe(cases.CASES['released_layers'])
    constants = {name: compute(recipe) for name, compute in MFF.constants.items()}
    difference, _ = largest_difference(constants, under(stored, 'constants/'), relative=False)
    assert difference < 1e-6


@pytest.mark.parametrize('name', cases.CASES)
def test_layout_is_its_own_inverse(name):
    weights = cases.make_weights(cases.CASES[name])
    back = to_ours(to_theirs(weights, MFF), MFF, tuple(weights))
    for path, value in weights.items():
        np.testing.assert_array_equal(back[path], value)
