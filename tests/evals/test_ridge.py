"""The quick probe against scikit-learn's RidgeClassifier, its choice of penalty, and few-shot."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.preprocessing import StandardScaler

from mim_jax.errors import ConfigError
from mim_jax.evals.ridge import few_shot, ridge_accuracy, solve_ridge, standardise


def make_clusters(count, seed, classes=5, width=20, noise=2.0):
    centres = np.random.default_rng(0).normal(size=(classes, width))
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, count - classes)])
    features = centres[labels] + noise * rng.normal(size=(count, width))
    return (features * rng.uniform(0.1, 10, width) + 3).astype(np.float32), labels.astype(np.int32)


@pytest.mark.parametrize(('count', 'classes'), [(200, 5), (12, 5), (200, 2)])  # 12 < width: the dual form
@pytest.mark.parametrize('penalty', [1e-3, 1.0])
def test_agrees_with_sklearn_at_a_fixed_penalty(count, classes, penalty):
    train, test = make_clusters(count, 1, classes), make_clusters(150, 2, classes)
    scaler = StandardScaler().fit(train[0].astype(np.float64))
    train_x, test_x = scaler.transform(train[0]), scaler.transform(test[0])
    reference = RidgeClassifier(alpha=penalty * count).fit(train_x, train[1])
    assert ridge_accuracy(*train, *test, classes, [penalty]) == {
        'ridge': pytest.approx(100 * reference.score(test_x, test[1]))
    }

    targets = 2.0 * (train[1][:, None] == np.arange(classes)) - 1
    regression = Ridge(alpha=penalty * count).fit(train_x, targets)
    (ours,) = standardise(train[0])
    (weights,), intercept = solve_ridge(ours, train[1], classes, [penalty])
    np.testing.assert_allclose(weights, regression.coef_.T, atol=1e-6)
    np.testing.assert_allclose(intercept, regression.intercept_, atol=1e-6)


def test_the_penalty_is_chosen_on_held_out_training_images():
    # More features than images and much noise: hardly any penalty overfits badly.
    train, test = make_clusters(100, 1, width=90, noise=4.0), make_clusters(400, 2, width=90, noise=4.0)
    grid = (1e-9, 3.0)
    weak, strong = (ridge_accuracy(*train, *test, 5, [penalty])['ridge'] for penalty in grid)
    assert strong > weak + 3
    assert ridge_accuracy(*train, *test, 5, grid)['ridge'] == strong
    # The labels of the test images must not matter to the choice: all wrong, the score is the complement's.
    wrong = (test[1] + 1) % 5
    assert ridge_accuracy(*train, test[0], wrong, 5, grid) == ridge_accuracy(*train, test[0], wrong, 5, [3.0])


def test_a_constant_feature_is_harmless():
    (train_x, train_y), (test_x, test_y) = make_clusters(100, 1), make_clusters(100, 2)
    with_constant = [np.concatenate([x, np.full((100, 1), 7.0, np.float32)], axis=1) for x in (train_x, test_x)]
    assert ridge_accuracy(with_constant[0], train_y, with_constant[1], test_y, 5) == ridge_accuracy(
        train_x, train_y, test_x, test_y, 5
    )


def test_few_shot_is_seeded_and_grows_with_the_shots():
    train, test = make_clusters(400, 1), make_clusters(300, 2)
    one, ten = (few_shot(*train, *test, 5, shots) for shots in (1, 10))
    assert (set(one), set(ten)) == ({'ridge_1shot'}, {'ridge_10shot'})
    assert 20 < one['ridge_1shot'] < ten['ridge_10shot'] <= 100
    assert few_shot(*train, *test, 5, 10) == ten
    assert few_shot(*train, *test, 5, 10, seeds=1) != ten


def test_few_shot_uses_only_the_shots():
    # With all images of every class as the shots, the draw is everything and few-shot is ridge on everything.
    train_x, train_y = make_clusters(100, 1)
    order = np.concatenate([np.flatnonzero(train_y == label)[:8] for label in range(5)])
    train_x, train_y = train_x[order], train_y[order]
    test = make_clusters(300, 2)
    assert few_shot(train_x, train_y, *test, 5, 8)['ridge_8shot'] == pytest.approx(
        ridge_accuracy(train_x, train_y, *test, 5, [1.0])['ridge']
    )


def test_too_few_images_names_the_class_and_the_keys():
    train, test = make_clusters(50, 1), make_clusters(20, 2)
    kept = (train[1] != 3) | (np.cumsum(train[1] == 3) <= 2)
    with pytest.raises(ConfigError, match=r'Class 3 has 2 .*probe\.few_shot=5'):
        few_shot(train[0][kept], train[1][kept], *test, 5, 5)
