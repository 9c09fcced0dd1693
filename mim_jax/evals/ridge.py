"""A quick probe: ridge regression on frozen features, in closed form.

It takes seconds and follows a run well. It is not the linear probe of the MAE paper (90 epochs of SGD on augmented
images), and its numbers must not be reported as one.
"""

from collections.abc import Sequence

import numpy as np

from mim_jax.errors import ConfigError

PENALTIES = tuple(10.0**power for power in range(-4, 3))
FEW_SHOT_PENALTY = 1.0


def standardise(train_x: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Zero mean and unit deviation by the training features' statistics, in fp64; a constant feature becomes 0."""
    train_x = np.asarray(train_x, np.float64)
    mean, deviation = train_x.mean(axis=0), train_x.std(axis=0)
    deviation[deviation < 1e-12] = 1.0
    return [(np.asarray(x, np.float64) - mean) / deviation for x in (train_x, *others)]


def solve_ridge(
    x: np.ndarray, y: np.ndarray, num_classes: int, penalties: Sequence[float]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Centred features f64[n,D], labels i[n] -> weights f64[D,C] for every penalty, and the intercept f64[C].

    Minimises |x W + b - targets|^2 + penalty * n * |W|^2 for targets of +1 (the class) and -1 (the others). One
    eigendecomposition, of the smaller of x'x and xx', serves all penalties.
    """
    targets = np.where(y[:, None] == np.arange(num_classes), 1.0, -1.0)
    intercept = targets.mean(axis=0)  # exact, as x is centred; the intercept is not penalised
    targets = targets - intercept
    few = len(x) < x.shape[1]
    values, vectors = np.linalg.eigh(x @ x.T if few else x.T @ x)
    projected = vectors.T @ (targets if few else x.T @ targets)
    solutions = [vectors @ (projected / (values + penalty * len(x))[:, None]) for penalty in penalties]
    return [x.T @ solution if few else solution for solution in solutions], intercept


def percent_correct(x: np.ndarray, y: np.ndarray, weights: np.ndarray, intercept: np.ndarray) -> float:
    return float(100.0 * np.mean((x @ weights + intercept).argmax(axis=1) == y))


def ridge_accuracy(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    num_classes: int,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> dict[str, float]:
    """Features f[n,D], labels i[n] -> {'ridge': percent}, a quick probe (see the module's docstring).

    The penalty (per training image) is the one that is best on a random tenth of the training images, the largest of
    equals; the probe is then fitted on all of them. The test images play no part in the choice.
    """
    if len(penalties) > 1:
        order = np.random.default_rng(seed).permutation(len(train_x))
        held, fitted = order[: len(order) // 10], order[len(order) // 10 :]
        fit_x, held_x = standardise(train_x[fitted], train_x[held])
        weights, intercept = solve_ridge(fit_x, train_y[fitted], num_classes, penalties)
        scores = [percent_correct(held_x, train_y[held], w, intercept) for w in weights]
        penalties = [max(zip(scores, penalties, strict=True))[1]]
    fit_x, score_x = standardise(train_x, test_x)
    (weights,), intercept = solve_ridge(fit_x, train_y, num_classes, penalties)
    return {'ridge': percent_correct(score_x, test_y, weights, intercept)}


def few_shot(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    num_classes: int,
    shots: int,
    seeds: int = 5,
) -> dict[str, float]:
    """Mean accuracy of ridge on `shots` random training images per class -> {'ridge_5shot': percent} for shots = 5.

    The draws are seeded 0 .. seeds-1; the penalty is fixed, as there are too few images to choose it on.
    Raises ConfigError when a class that occurs has fewer than `shots` training images.
    """
    counts = np.bincount(train_y, minlength=num_classes)
    scarce = int(np.where(counts > 0, counts, shots).argmin())
    if counts[scarce] < shots:
        raise ConfigError(
            f'Class {scarce} has {counts[scarce]} training images and probe.few_shot={shots} asks for more: '
            'lower probe.few_shot or raise probe.train_images.'
        )
    percents = []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(train_x))
        chosen = np.concatenate([order[train_y[order] == label][:shots] for label in range(num_classes)])
        fit_x, score_x = standardise(train_x[chosen], test_x)
        (weights,), intercept = solve_ridge(fit_x, train_y[chosen], num_classes, [FEW_SHOT_PENALTY])
        percents.append(percent_correct(score_x, test_y, weights, intercept))
    return {f'ridge_{shots}shot': float(np.mean(percents))}
