"""Mask plans: exact counts, disjoint blocks, and uniform masks that differ between images and steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from tiny_runs import PATCHES, VISIBLE, tiny_mae

from mim_jax.forward import Forward, Surroundings
from mim_jax.networks import Networks, named_key
from mim_jax.tokens import plan_from_scores

IMAGES = 4096


@pytest.fixture(scope='module')
def scores():
    return np.random.default_rng(0).uniform(size=(3, PATCHES)).astype(np.float32)


@pytest.mark.parametrize('block', [0, 1, 3])
def test_a_plan_is_a_partition_and_restore_undoes_it(scores, block):
    plan = plan_from_scores(scores, VISIBLE, block)
    shuffled = np.concatenate([plan.keep, plan.drop], axis=1)
    ids = np.tile(np.arange(PATCHES), (3, 1))
    np.testing.assert_array_equal(np.sort(shuffled, axis=1), ids)
    np.testing.assert_array_equal(np.take_along_axis(shuffled, np.asarray(plan.restore), 1), ids)
    np.testing.assert_array_equal(plan.masked.sum(1), PATCHES - VISIBLE)
    assert not np.take_along_axis(np.asarray(plan.masked), np.asarray(plan.keep), 1).any()
    assert {plan.keep.dtype, plan.drop.dtype, plan.restore.dtype} == {np.dtype('int32')}
    assert plan.masked.dtype == bool


def test_block_k_keeps_the_kth_run_of_the_ascending_order(scores):
    order = np.argsort(scores, axis=1)
    for block in range(4):
        run = order[:, VISIBLE * block : VISIBLE * (block + 1)]
        np.testing.assert_array_equal(plan_from_scores(scores, VISIBLE, block).keep, run)


def test_plans_ignore_monotone_changes_and_break_ties_by_place():
    plan = plan_from_scores(jnp.zeros((1, 6)), 2)
    np.testing.assert_array_equal(plan.keep, [[0, 1]])


def test_a_block_that_does_not_fit_is_named(scores):
    with pytest.raises(ValueError, match='block 4 of 4 visible patches does not fit in 16'):
        plan_from_scores(scores, VISIBLE, 4)
    with pytest.raises(AssertionError):
        plan_from_scores(scores[0], VISIBLE)


@pytest.fixture(scope='module')
def drawn():
    """bool[2 steps, 4096 images, 16]: MAE's masks through the forward pass's own keys."""
    recipe = tiny_mae()

    @jax.jit
    def masked_at(step):
        key = named_key(jax.random.key(0), 'step', step)
        forward = Forward(
            recipe,
            Networks(recipe, {}, {}, key, 'train'),
            Surroundings({}, jnp.arange(IMAGES), key, step, {}, {}),
        )
        return forward.plan().masked, forward.plan().keep

    masked, keep = zip(masked_at(0), masked_at(1), strict=True)
    return np.stack(masked), np.stack(keep)


def test_every_image_has_exactly_v_visible(drawn):
    assert (np.sum(~drawn[0], axis=-1) == VISIBLE).all()


def test_marginal_of_every_patch_is_uniform(drawn):
    """Counts of a fixed-size draw are negatively correlated: the statistic times (N-1)/N is chi-square with N-1."""
    share = VISIBLE / PATCHES
    for masked in drawn[0]:
        counts = (~masked).sum(0)
        terms = (counts - IMAGES * share) ** 2 / (IMAGES * share * (1 - share))
        assert stats.chi2.sf(terms.sum() * (PATCHES - 1) / PATCHES, PATCHES - 1) > 1e-4
        assert stats.chi2.sf(terms, 1).min() > 1e-4


def test_first_visible_place_is_uniform_too(drawn):
    """The kept order is shuffled, not sorted (MAE)."""
    counts = np.bincount(drawn[1][0, :, 0], minlength=PATCHES)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_pairs_of_patches_are_kept_together_as_often_as_chance(drawn):
    kept = (~drawn[0].reshape(-1, PATCHES)).astype(np.float64)
    together = kept.T @ kept
    share = VISIBLE * (VISIBLE - 1) / (PATCHES * (PATCHES - 1))
    pairs = together[np.triu_indices(PATCHES, 1)]
    deviation = np.sqrt(len(kept) * share * (1 - share))
    assert np.abs(pairs - len(kept) * share).max() < 5 * deviation


def test_masks_differ_between_images_and_steps(drawn):
    first, second = drawn[0]
    chance = 1 / 1820  # 16 choose 4
    same_step = (first[1:] == first[:-1]).all(1).mean()
    same_image = (first == second).all(1).mean()
    assert max(same_step, same_image) < chance + 6 * np.sqrt(chance / IMAGES)
