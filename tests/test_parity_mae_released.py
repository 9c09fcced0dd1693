"""MAE against its authors' own code, facebookresearch/mae (golden of golden/make_mae_released_golden.py)."""

import mae_released_cases as cases
import numpy as np
import pytest
from base_ours import check_pass, run_ours
from parity_rules import GOLDEN, largest_difference, under

from mim_jax.interop.mae import MAE


@pytest.fixture(scope='module')
def stored():
    with np.load(GOLDEN / 'mae_released.npz') as arrays:
        return dict(arrays)


@pytest.mark.parametrize('name', cases.CASES)
def test_agrees_with_the_released_code(name, stored):
    case, golden = cases.CASES[name], under(stored, f'{name}/')
    recipe = cases.make_recipe(case)
    seen, loss, gradients = run_ours(recipe, cases.make_images(case), cases.make_weights(case))
    np.testing.assert_array_equal(seen.pop('masked'), golden['masked'])
    check_pass((seen, loss, gradients), golden, name, key_biases=True)


@pytest.mark.parametrize('name', cases.CASES)
def test_their_positions_are_ours(name, stored):
    recipe = cases.make_recipe(cases.CASES[name])
    constants = {key: value(recipe) for key, value in MAE.constants.items()}
    assert largest_difference(constants, under(stored, f'{name}/constants/'), relative=False)[0] < 1e-6
