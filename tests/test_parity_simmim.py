"""SimMIM against the released code of microsoft/SimMIM (golden of golden/make_simmim_golden.py)."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import simmim_cases as cases
from base_ours import check_first_step, check_pass, run_ours, train_ours
from parity_rules import GOLDEN, largest_difference, under
from tiny_runs import QUICK

from mim_jax.forward import create_parameters
from mim_jax.interop.simmim import SIMMIM
from mim_jax.methods.masking import visible_in_cells
from mim_jax.parallel.rules import flatten_with_paths
from mim_jax.training.assemble import make_schedule
from mim_jax.weights.layout import to_ours, to_theirs


@pytest.fixture(scope='module')
def stored():
    with np.load(GOLDEN / 'simmim.npz') as arrays:
        return dict(arrays)


@pytest.mark.parametrize('name', cases.CASES)
def test_agrees_with_the_released_code(name, stored):
    case, golden = cases.CASES[name], under(stored, f'{name}/')
    recipe = cases.make_recipe(case, golden['masks'])
    seen, loss, gradients = run_ours(recipe, cases.make_images(case), cases.make_weights(case))
    np.testing.assert_array_equal(seen.pop('masked'), golden['masks'].reshape(case.batch, -1).astype(bool))
    check_pass((seen, loss, gradients), golden, name)


@pytest.mark.parametrize('clip', cases.CLIPS)
def test_steps_agree_with_the_released_optimizer(clip, stored):
    case, golden = cases.CASES['grid_14'], under(stored, 'grid_14/')
    recipe = cases.make_recipe(case, golden['masks'], clip_norm=cases.CLIPS[clip])
    found = train_ours(recipe, cases.make_images(case), cases.make_weights(case), cases.ADAMW['lr'], cases.STEPS)
    reference = under(golden, f'{clip}/')
    assert (reference['norms'][0] > cases.CLIPS[clip]) == (clip == 'acting')
    np.testing.assert_allclose(found['loss'], reference['losses'], rtol=1e-5)
    np.testing.assert_allclose(found['grad_norm'], reference['norms'], rtol=1e-4)
    worst, name = largest_difference(found['moments'], under(reference, 'moments/'), relative=True)
    assert worst < 1e-3, name
    check_first_step(found['moved'], under(reference, 'moved/'), under(golden, 'gradients/'), 0.9)


def test_drop_path_drops_whole_branches_of_an_image_and_scales_what_it_keeps(stored):
    case, copies = cases.CASES['grid_8'], 128
    masks = stored['grid_8/masks'][:1].repeat(copies, 0)
    recipe = cases.make_recipe(case, masks, drop_path=0.5)
    images = cases.make_images(case)[:1].repeat(copies, 0)
    seen, _, _ = run_ours(recipe, images, cases.make_weights(case))
    first = seen['encoder/block_00']  # its rate is 0
    assert np.abs(first - first[0]).max() < 1e-5
    outcomes = under(stored, 'drop_path/')
    distance = {kept: np.abs(seen['encoder/block_01'][:, ::8] - value).max((1, 2)) for kept, value in outcomes.items()}
    hits = {kept: int((d < 1e-4).sum()) for kept, d in distance.items()}
    assert sum(hits.values()) == copies, hits
    assert min(hits.values()) > copies / 4 - 5 * (copies * 3 / 16) ** 0.5, hits


@pytest.mark.parametrize('index', range(len(cases.MASKS)))
def test_as_many_patches_are_masked(index, stored):
    size, cell, patch, ratio = cases.MASKS[index]
    grid = size // patch
    assert grid**2 - visible_in_cells((grid, grid), cell // patch, ratio) == stored['masks'][index]


def test_the_released_generator_masks_whole_cells(stored):
    for name, case in cases.CASES.items():
        half = case.grid // 2
        cells = stored[f'{name}/masks'].reshape(case.batch, half, 2, half, 2)
        assert (cells == cells[:, :, :1, :, :1]).all()


def test_weights_start_as_theirs(stored):
    recipe = cases.make_recipe(cases.INITIAL)
    params, _, _ = jax.jit(lambda key: create_parameters(recipe, key), compiler_options=QUICK)(jax.random.key(1))
    ours = {path: np.asarray(leaf) for path, leaf in flatten_with_paths(params)}
    theirs = dict(zip(stored['initial/paths'], stored['initial/values'], strict=True))
    assert ours.keys() == theirs.keys()
    for path, (mean, deviation, largest) in theirs.items():
        value = ours[path]
        if deviation == 0:
            np.testing.assert_array_equal(value, np.full_like(value, mean), err_msg=path)
            continue
        noise = 6 / value.size**0.5  # the deviation of a sample's deviation is below 1 / sqrt(2 n) of it
        assert abs(value.std() / deviation - 1) < noise, path
        assert abs(value.mean() - mean) < noise * deviation, path
        assert abs(np.abs(value).max() / largest - 1) < max(noise, 0.02), path


def test_learning_rate_follows_the_released_scheduler(stored):
    config = load_config()
    assert (config.batch_size, config.epochs) == (2048, 800.0)
    config.steps_per_epoch, config.steps = 10.0, 8000
    rate_at = make_schedule(config)
    for update, rate in stored['rates']:
        np.testing.assert_allclose(rate_at(jnp.asarray(update, jnp.int32)), rate, rtol=1e-6, err_msg=str(update))


def load_config():
    spec = importlib.util.spec_from_file_location('config', Path(__file__).parents[1] / 'configs' / 'simmim.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def test_weights_travel_both_ways():
    weights = cases.make_weights(cases.CASES['grid_14'])
    state = to_theirs(weights, SIMMIM)
    assert state['decoder.0.weight'].shape == (192, 32, 1, 1)
    assert state['encoder.rel_pos_bias.relative_position_bias_table'].shape == (732, 4)
    back = to_ours(state, SIMMIM, tuple(weights))
    for path, value in weights.items():
        np.testing.assert_array_equal(back[path], value, err_msg=path)
