"""LUT's released checkpoints: the student with both heads and their running statistics in, a plain MAE in as well."""

import numpy as np
import pytest
from interop_cases import assert_same, draw_arrays, make_recipe, make_state, shapes_of

from mim_jax.interop.formats import formats_of, recognise
from mim_jax.interop.transfer import import_arrays

HEADS = 'objectives/lut/'


@pytest.mark.parametrize('base', ['mae', 'pixmim'])
def test_there_and_back(base):
    recipe = make_recipe(base, 'papers=lut', 'lut.head_width=24')
    state, form, arrays = make_state(recipe, 'lut')
    assert_same(arrays, draw_arrays(recipe))
    found, named = recognise(state, formats_of(recipe, shapes_of(recipe)))
    assert found == form
    back, account = import_arrays(named, found, recipe, shapes_of(recipe))
    assert_same(back, arrays)
    assert (account.missing, account.skipped, account.resized) == ([], {}, [])


def test_names_and_shapes_are_those_of_the_released_model():
    """A checkpoint has counters too, which nothing needs."""
    recipe = make_recipe('lut', 'lut.head_width=24')
    state, _, arrays = make_state(recipe, 'lut')
    heads = {name: array.shape for name, array in state.items() if name.startswith(('head', 'predictor'))}
    vectors = {f'1.{name}': (24,) for name in ('weight', 'bias', 'running_mean', 'running_var')}
    one = {'0.weight': (24, 32), '3.weight': (32, 24), **vectors}
    assert heads == {f'{head}.{name}': shape for head in ('head', 'predictor') for name, shape in one.items()}
    np.testing.assert_array_equal(state['head.0.weight'], arrays[f'{HEADS}projector/fc1/kernel'].T)
    state |= {f'{head}.1.num_batches_tracked': np.array(7) for head in ('head', 'predictor')}
    found, named = recognise(state, formats_of(recipe, shapes_of(recipe)))
    back, account = import_arrays(named, found, recipe, shapes_of(recipe))
    assert_same(back, arrays)
    assert account.skipped.keys() == {'head.1.num_batches_tracked', 'predictor.1.num_batches_tracked'}


def test_a_plain_mae_lacks_the_heads():
    recipe = make_recipe('lut', 'lut.head_width=24')
    state, _, arrays = make_state(make_recipe('mae'), 'mae')
    found, named = recognise(state, formats_of(recipe, shapes_of(recipe)))
    back, account = import_arrays(named, found, recipe, shapes_of(recipe))
    assert_same(back, arrays)
    assert account.missing
    assert all(path.startswith(HEADS) for path in account.missing)
