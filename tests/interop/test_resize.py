"""Tables for other grids: against microsoft/SimMIM and torch (golden/make_resize_golden.py), and what must stay."""

from pathlib import Path

import numpy as np
import pytest
from parity_rules import uniform

from mim_jax.interop.resize import resize_relative_bias, square_relative_grid
from mim_jax.weights.resize import resize_positions, square_grid

with np.load(Path(__file__).parents[1] / 'golden' / 'resize.npz') as arrays:
    STORED = dict(arrays)


@pytest.mark.parametrize('name', STORED)
def test_agrees_with_the_released_code(name):
    kind, _, sizes = name.partition('/')
    source, target = map(int, sizes.split('_'))
    if kind == 'bias':
        table = uniform(name, ((2 * source - 1) ** 2 + 3, 2)).astype(np.float32)
        found = resize_relative_bias(table, (source, source), (target, target))
        np.testing.assert_array_equal(found[-3:], table[-3:])
    else:
        table = uniform(name, (source, source, 4)).astype(np.float32)
        found = resize_positions(table.reshape(-1, 4), (source, source), (target, target))
    assert found.dtype == np.float32
    # torch computes its positions in fp32; everything else rounds at the end.
    assert np.abs(found - STORED[name]).max() < (5e-6 if kind == 'positions' else 1e-6)


def test_the_same_grid_changes_nothing():
    table = uniform('positions', (20, 3)).astype(np.float32)
    np.testing.assert_allclose(resize_positions(table, (4, 5), (4, 5)), table, rtol=0, atol=1e-7)


def test_rows_and_columns_are_not_mixed_up():
    rows = np.repeat(np.arange(6.0), 4)[:, None]  # a table that depends on the row alone
    found = resize_positions(rows, (6, 4), (6, 8)).reshape(6, 8)
    np.testing.assert_allclose(found, np.repeat(np.arange(6.0)[:, None], 8, axis=1), atol=1e-6)
    bias = np.concatenate([np.repeat(np.arange(11.0), 7), [7.0, 8.0, 9.0]])[:, None]
    found = resize_relative_bias(bias, (6, 4), (6, 8))
    assert found.shape == (11 * 15 + 3, 1)
    assert np.ptp(found[:-3].reshape(11, 15), axis=1).max() < 1e-6
    np.testing.assert_array_equal(found[-3:, 0], [7.0, 8.0, 9.0])


@pytest.mark.parametrize(('entries', 'side'), [(196, 14), (64, 8), (195, None)])
def test_grids_are_found(entries, side):
    assert square_grid(entries) == (None if side is None else (side, side))


@pytest.mark.parametrize(
    ('entries', 'side'), [(732, 14), (27 * 27, None), (732 - 1, None), (4, None), (12, 2), (39, None)]
)
def test_grids_of_relative_tables_are_found(entries, side):
    assert square_relative_grid(entries) == (None if side is None else (side, side))
