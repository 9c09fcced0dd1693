"""Shared masking strategies: whole cells, exact counts, uniform over cells; refusals say what to change."""

import jax
import numpy as np
import pytest
from tiny_runs import tiny_config, tiny_mae, trace_forward

from mim_jax.errors import Refused
from mim_jax.forward import Forward, Surroundings
from mim_jax.methods.masking import cell_scores, visible_in_cells
from mim_jax.networks import Networks
from mim_jax.tokens import plan_from_scores


def draw_plans(images, cell, ratio):
    """Plans of many images on a grid of 4 x 4."""
    recipe = tiny_mae(tiny_config())
    key = jax.random.key(3)
    around = Surroundings({}, jax.numpy.arange(images), key, 0, {}, {})
    forward = Forward(recipe, Networks(recipe, {}, {}, key, 'evaluate'), around)
    return plan_from_scores(cell_scores(cell)(forward, 'main'), visible_in_cells((4, 4), cell, ratio))


def test_cells_are_masked_whole():
    masked = np.asarray(draw_plans(200, 2, 0.6).masked).reshape(200, 2, 2, 2, 2)  # image, cell row, dy, cell column, dx
    assert (masked == masked[:, :, :1, :, :1]).all()
    assert (masked.sum((1, 2, 3, 4)) == 12).all()  # ceil(4 cells x 0.6) = 3 cells of 4 patches
    rates = 1 - masked[:, :, 0, :, 0].reshape(200, 4).mean(0)  # each cell is the visible one a quarter of the time
    assert (np.abs(rates - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 200)).all()


def test_counts_are_the_papers_at_224_pixels():
    assert 196 - visible_in_cells((14, 14), 2, 0.6) == 120  # SimMIM: ceil(29.4) = 30 cells
    assert 196 - visible_in_cells((14, 14), 2, 0.75) == 148  # ConMIM: ceil(36.75) = 37 cells


def test_impossible_cells_are_refused():
    with pytest.raises(Refused, match=r'7 x 7 patches does not divide into mask cells of 2 x 2'):
        visible_in_cells((7, 7), 2, 0.6)
    with pytest.raises(Refused, match='masks 4 of 4 cells'):
        visible_in_cells((4, 4), 2, 0.9)


def test_scores_are_ranks_shared_by_every_view():
    shapes = trace_forward(tiny_mae(), lambda f: (cell_scores(2)(f, 'main'), cell_scores(2)(f, 'other')))
    assert [s.shape for s in shapes] == [(2, 16)] * 2
