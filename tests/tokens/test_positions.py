"""Fixed positions against a formula written separately, and that nothing can train or decay them."""

import math

import jax
import numpy as np
import pytest
from tiny_runs import tiny_config, tiny_mae

from mim_jax.forward import create_parameters
from mim_jax.parallel.rules import flatten_with_paths
from mim_jax.tokens import sincos_positions


def written_out(rows: int, columns: int, width: int, row_first: bool) -> np.ndarray:
    """One number at a time, from methods.md section 1."""
    table = np.zeros((rows * columns, width))
    quarter = width // 4
    for row in range(rows):
        for column in range(columns):
            first, second = (row, column) if row_first else (column, row)
            for k in range(quarter):
                omega = 1.0 / 10000.0 ** (4.0 * k / width)
                values = (
                    math.sin(first * omega),
                    math.cos(first * omega),
                    math.sin(second * omega),
                    math.cos(second * omega),
                )
                for part, value in enumerate(values):
                    table[row * columns + column, part * quarter + k] = value
    return table


@pytest.mark.parametrize('row_first', [False, True])
def test_table_is_the_formula_on_a_grid_that_is_not_square(row_first):
    table = sincos_positions(3, 5, 16, row_first)
    assert table.dtype == np.float32
    np.testing.assert_allclose(table, written_out(3, 5, 16, row_first), atol=1e-7)


def test_mae_layout_puts_the_column_first():
    """Patch (row 0, column 1) differs from patch (0, 0) only in the first half."""
    table = sincos_positions(4, 4, 16)
    np.testing.assert_array_equal(table[1, 8:], table[0, 8:])
    assert (table[1, :8] != table[0, :8]).any()
    np.testing.assert_array_equal(table[4, :8], table[0, :8])
    np.testing.assert_allclose(table[1, [0, 4]], [np.sin(1.0), np.cos(1.0)], rtol=1e-6)


def test_row_first_is_the_transpose_of_a_square_grid():
    table = sincos_positions(4, 4, 16).reshape(4, 4, 16)
    np.testing.assert_array_equal(sincos_positions(4, 4, 16, True).reshape(4, 4, 16), table.transpose(1, 0, 2))


def test_width_must_be_divisible_by_four():
    with pytest.raises(ValueError, match='divisible by 4, not 18'):
        sincos_positions(2, 2, 18)


def test_the_shared_table_cannot_be_written_to():
    table = sincos_positions(2, 2, 8)
    assert table is sincos_positions(2, 2, 8)
    with pytest.raises(ValueError, match='read-only'):
        table[0, 0] = 1.0


@pytest.mark.parametrize('scan', [False, True])
def test_positions_are_nobody_s_parameter(scan):
    """So they have no gradient, no decay, no moment and no place in a checkpoint."""
    recipe = tiny_mae(tiny_config(encoder={'scan': scan}))
    stores = jax.eval_shape(lambda key: create_parameters(recipe, key), jax.random.key(0))
    paths = [path for path, _ in flatten_with_paths(stores)]
    assert any('patch_embed' in path for path in paths)
    assert not [path for path in paths if 'pos' in path.lower()]
