"""Metrics against cases worked by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, top_k_accuracy_score

from mim_jax.errors import DataError
from mim_jax.evals.metrics import (
    ALEXNET_ERRORS,
    aupr,
    auroc,
    mean_corruption_error,
    multilabel_correct,
    per_class_accuracy,
    restrict_classes,
    set_correct,
    top_k_correct,
)

LOGITS = np.array([[3.0, 2.0, 1.0, 0.0], [0.0, 5.0, 9.0, 1.0], [1.0, 1.0, 1.0, 0.5]])


def alexnet_errors(factor=1.0):
    return {
        corruption: dict.fromkeys(range(1, 6), 100 * error * factor) for corruption, error in ALEXNET_ERRORS.items()
    }


def test_top_k_counts_images_whose_label_is_among_the_k_largest():
    labels = np.array([1, 2, 0])
    assert [top_k_correct(LOGITS, labels, k) for k in (1, 2, 4)] == [2, 3, 3]


def test_equal_logits_rank_as_argmax_does():
    assert top_k_correct(LOGITS[2:], np.array([0])) == 1
    assert [top_k_correct(LOGITS[2:], np.array([2]), k) for k in (1, 2, 3)] == [0, 0, 1]


@pytest.mark.parametrize('k', [1, 5])
def test_top_k_agrees_with_sklearn(k):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 20)), rng.integers(0, 20, 200)
    expected = top_k_accuracy_score(labels, logits, k=k, labels=np.arange(20), normalize=False)
    assert top_k_correct(logits, labels, k) == expected


def test_a_nan_is_an_error_and_not_a_correct_answer():
    logits = LOGITS.copy()
    logits[1, 3] = np.nan
    with pytest.raises(DataError, match='1 images are not finite'):
        top_k_correct(logits, np.array([0, 0, 0]))


@pytest.mark.parametrize(
    ('labels', 'message'),
    [
        (np.array([0, 1]), 'one row per image'),
        (np.array([0, 1, 4]), 'Label 4 is not one of the 4 classes'),
        (np.array([0, -1, 2]), 'Label -1'),
        (np.array([0.0, 1.0, 2.0]), 'must be integers'),
    ],
)
def test_labels_that_do_not_fit_are_named(labels, message):
    with pytest.raises(DataError, match=message):
        top_k_correct(LOGITS, labels)


def test_restrict_classes_keeps_the_given_columns_in_their_order():
    assert restrict_classes(LOGITS, [3, 1]).tolist() == [[0.0, 2.0], [1.0, 5.0], [0.5, 1.0]]
    with pytest.raises(DataError, match='listed twice'):
        restrict_classes(LOGITS, [1, 1])
    with pytest.raises(DataError, match='Label 4'):
        restrict_classes(LOGITS, [4])


def test_multilabel_skips_images_without_a_valid_label():
    assert multilabel_correct(LOGITS, [[3, 0], [], [1, 2]]) == (1, 2)
    assert multilabel_correct(LOGITS, [[], [2], [0]]) == (2, 2)


def test_set_correct_with_and_without_restriction():
    sets = [[1, 3], [2]]  # column 0 belongs to no class
    labels = np.array([0, 1, 1])
    assert set_correct(LOGITS, labels, sets) == 1  # predicted 0, 2, 0
    assert set_correct(LOGITS, labels, sets, restricted=True) == 2  # predicted 1, 2, 1


def test_per_class_accuracy_leaves_a_class_without_images_out_of_the_mean():
    accuracy = per_class_accuracy(np.array([0, 1, 1, 3]), np.array([0, 0, 1, 1]), 4)
    np.testing.assert_array_equal(accuracy, [0.5, 0.5, np.nan, np.nan])
    assert np.nanmean(accuracy) == 0.5


def test_alexnet_itself_has_an_mce_of_100():
    values = mean_corruption_error(alexnet_errors())
    assert values['mce'] == pytest.approx(100)
    assert values['mean_error'] == pytest.approx(78.8993, abs=1e-4)  # mean of the constants
    assert len(ALEXNET_ERRORS) == 15


def test_mce_averages_severities_first_then_ratios():
    errors = alexnet_errors(0.5)
    errors['fog'] = {1: 10.0, 2: 20.0, 3: 30.0, 4: 40.0, 5: 50.0}
    values = mean_corruption_error(errors)
    assert values['ce/fog'] == pytest.approx(30 / 0.819324)
    assert values['ce/snow'] == pytest.approx(50)
    assert values['mce'] == pytest.approx((14 * 50 + 30 / 0.819324) / 15)


def test_mce_names_what_is_missing_or_strange():
    errors = alexnet_errors()
    del errors['snow'], errors['fog'][4]
    with pytest.raises(DataError, match='snow 1, snow 2, snow 3 and 3 more'):
        mean_corruption_error(errors)
    with pytest.raises(DataError, match="'spatter' does not belong"):
        mean_corruption_error({**alexnet_errors(), 'spatter': dict.fromkeys(range(1, 6), 1.0)})
    with pytest.raises(DataError, match='gaussian_noise 1 is 177'):
        mean_corruption_error(alexnet_errors(2.0))
    broken = alexnet_errors()
    broken['fog'][2] = float('nan')
    with pytest.raises(DataError, match='fog 2 is nan'):
        mean_corruption_error(broken)


def test_aupr_and_auroc_by_hand():
    positive = np.array([True, False, True, False])
    scores = np.array([4.0, 3.0, 2.0, 1.0])
    assert aupr(scores, positive) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert auroc(scores, positive) == pytest.approx(3 / 4)
    assert aupr(np.zeros(4), positive) == 0.5  # all tied: the share of positives
    assert auroc(np.zeros(4), positive) == 0.5


@pytest.mark.parametrize('levels', [3, 40, 10**9])  # many ties, some, none
@pytest.mark.parametrize('seed', range(3))
def test_aupr_and_auroc_agree_with_sklearn(levels, seed):
    rng = np.random.default_rng(seed)
    positive = rng.random(300) < 1 / 6
    scores = rng.integers(0, levels, 300) / levels + 0.3 * positive
    scores = np.round(scores * levels) / levels
    assert aupr(scores, positive) == pytest.approx(average_precision_score(positive, scores), abs=1e-12)
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


def test_one_kind_alone_cannot_be_ranked():
    with pytest.raises(DataError, match='both kinds'):
        auroc(np.arange(3.0), np.ones(3, bool))
    with pytest.raises(DataError, match='not finite'):
        aupr(np.array([1.0, np.nan]), np.array([True, False]))
    with pytest.raises(DataError, match=r'flag bool\[n\]'):
        aupr(np.arange(2.0), np.array([0, 1]))
