"""Frozen towers against transformers, golden of golden/make_towers_golden.py: the folders are the same, file by file."""

import numpy as np
import pytest
import tower_cases as cases
from parity_rules import GOLDEN, draw_weights, largest_difference, under

TOLERANCE = 1e-4


@pytest.fixture(scope='module')
def stored():
    with np.load(GOLDEN / 'towers.npz') as arrays:
        return dict(arrays)


@pytest.mark.parametrize('name', cases.CASES)
def test_agrees_with_transformers(name, stored, tmp_path):
    case, golden = cases.CASES[name], under(stored, f'{name}/')
    folder = cases.write_folder(case, tmp_path, draw_weights(cases.shapes_of(case)))
    seen = cases.run_tower(cases.open_case(case, folder), cases.make_images(case))
    looks = np.abs(seen['attention'][:, :, 0, 1:] - golden['looks']).max()
    difference, place = largest_difference(seen, under(golden, 'seen/'), relative=False)
    print(f'{name}: {place} {difference:.1e}, attention from CLS {looks:.1e}')
    assert difference < TOLERANCE
    assert looks < TOLERANCE
    patches = (case.side // case.patch_size) ** 2
    assert seen['ln_post'].shape == (2, patches, case.width)
    assert seen['attention'].shape == (2, case.width // 64, 1 + patches, 1 + patches)


def test_settings_of_the_config_show(stored):
    """The cases with another activation or epsilon would not pass by accident."""
    for one, other in (('clip', 'openclip'), ('dino', 'dino_epsilon')):
        ours, theirs = (stored[f'{name}/seen/ln_post'] for name in (one, other))
        assert np.abs(ours - theirs).max() > 20 * TOLERANCE
