"""MAE against its authors' own code, facebookresearch/mae (golden of golden/make_mae_released_golden.py)."""

import mae_released_cases as cases
import numpy as np
import pytest
from base_ours import run_ours
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
    # A key's bias changes no attention: its gradient is 0 but for rounding, so it is compared on the scale of the others.
    floor = 1e-3 * max(gradient[1] for gradient in under(golden, 'gradients/').values())
    differences = {
        'seen': largest_difference(seen, under(golden, 'seen/'), relative=False),
        'loss': (abs(loss / float(golden['loss']) - 1), ''),
        'gradients': largest_difference(gradients, under(golden, 'gradients/'), relative=True, floor=floor),
    }
    print(name, '  '.join(f'{kind} {value:.1e} {place}' for kind, (value, place) in differences.items()))
    assert differences['seen'][0] < 1e-4
    assert differences['loss'][0] < 1e-5
    assert differences['gradients'][0] < 1e-3


@pytest.mark.parametrize('name', cases.CASES)
def test_their_positions_are_ours(name, stored):
    recipe = cases.make_recipe(cases.CASES[name])
    constants = {key: value(recipe) for key, value in MAE.constants.items()}
    assert largest_difference(constants, under(stored, f'{name}/constants/'), relative=False)[0] < 1e-6
