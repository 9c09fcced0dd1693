"""Classification metrics of whole sets, in NumPy: counts are integers, divided once by the caller.

`logits` are f[n,C], a row per image; `labels` i[n]. Everything raises DataError for values that would make a number wrong
in silence: rows that do not match, logits that are not finite, a class that is not a column.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from mim_jax.errors import DataError

SEVERITIES = (1, 2, 3, 4, 5)

# Top-1 error of AlexNet, mean over the five severities, as a fraction (Hendrycks and Dietterich 2019; their order).
ALEXNET_ERRORS = {
    'gaussian_noise': 0.886428,
    'shot_noise': 0.894468,
    'impulse_noise': 0.922640,
    'defocus_blur': 0.819880,
    'glass_blur': 0.826268,
    'motion_blur': 0.785948,
    'zoom_blur': 0.798360,
    'snow': 0.866816,
    'frost': 0.826572,
    'fog': 0.819324,
    'brightness': 0.564592,
    'contrast': 0.853204,
    'elastic_transform': 0.646056,
    'pixelate': 0.717840,
    'jpeg_compression': 0.606500,
}


def check_logits(logits: np.ndarray, rows: int) -> np.ndarray:
    """The logits as f32 (f64 stays), or DataError: a NaN compares as false with everything and would count as correct."""
    logits = np.asarray(logits)
    if logits.ndim != 2 or len(logits) != rows or rows == 0:
        raise DataError(f'Logits of shape {logits.shape} do not belong to {rows} labels; give one row per image.')
    logits = logits if logits.dtype == np.float64 else logits.astype(np.float32)
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise DataError(
            f'The logits of {len(broken)} images are not finite (first: row {broken[0]}); check the checkpoint, or '
            'evaluate it with dtype=float32.'
        )
    return logits


def check_labels(labels: np.ndarray, classes: int) -> np.ndarray:
    """The labels as i64[n], every one of them a column of the logits, or DataError."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in 'iu':
        raise DataError(f'Labels must be integers i[n]; these are {labels.dtype} of shape {labels.shape}.')
    strange = labels[(labels < 0) | (labels >= classes)]
    if len(strange):
        raise DataError(f'Label {strange[0]} is not one of the {classes} classes of the head; check the dataset.')
    return labels.astype(np.int64)


def top_k_correct(logits: np.ndarray, labels: np.ndarray, k: int = 1) -> int:
    """Images whose label is among the k largest logits. Of equal logits the lower class ranks first, as in argmax."""
    logits = check_logits(logits, len(labels))
    labels = check_labels(labels, logits.shape[1])
    if not 1 <= k <= logits.shape[1]:
        raise DataError(f'Top-{k} accuracy has no meaning for {logits.shape[1]} classes.')
    own = logits[np.arange(len(labels)), labels][:, None]
    before = (logits > own) | ((logits == own) & (np.arange(logits.shape[1]) < labels[:, None]))
    return int((before.sum(axis=1) < k).sum())


def restrict_classes(logits: np.ndarray, columns: Sequence[int]) -> np.ndarray:
    """f[n,C] -> f[n,len(columns)]: the chosen classes alone, in the given order."""
    columns = check_labels(columns, np.shape(logits)[1])
    if len(np.unique(columns)) != len(columns):
        raise DataError('A class is listed twice among the columns to keep; correct the class list.')
    return np.asarray(logits)[:, columns]


def multilabel_correct(logits: np.ndarray, valid: Sequence[Collection[int]]) -> tuple[int, int]:
    """Images whose argmax is one of their valid labels, and images counted: an empty list leaves the image out (ReaL)."""
    logits = check_logits(logits, len(valid))
    predicted = logits.argmax(axis=1)
    counted = [row for row, labels in enumerate(valid) if len(labels)]
    correct = sum(predicted[row] in check_labels(np.asarray(valid[row]), logits.shape[1]) for row in counted)
    return int(correct), len(counted)


def set_correct(
    logits: np.ndarray, labels: np.ndarray, sets: Sequence[Collection[int]], restricted: bool = False
) -> int:
    """Images whose argmax lies in the set of columns that their class stands for; label i[n] numbers `sets`.

    The argmax is over all columns, or, restricted, over those that some set contains.
    """
    logits = check_logits(logits, len(labels))
    labels = check_labels(labels, len(sets))
    member = np.zeros((len(sets), logits.shape[1]), bool)
    for row, columns in enumerate(sets):
        member[row, check_labels(np.asarray(columns), logits.shape[1])] = True
    columns = np.flatnonzero(member.any(axis=0)) if restricted else np.arange(logits.shape[1])
    predicted = columns[restrict_classes(logits, columns).argmax(axis=1)]
    return int(member[labels, predicted].sum())


def per_class_accuracy(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """i[n], i[n] -> f64[classes], a fraction per class, NaN for a class without images; `np.nanmean` is the usual mean."""
    labels = check_labels(labels, classes)
    if np.shape(predicted) != labels.shape:
        raise DataError(f'{len(predicted)} predictions do not belong to {len(labels)} labels.')
    total = np.bincount(labels, minlength=classes)
    correct = np.bincount(labels[np.asarray(predicted) == labels], minlength=classes)
    return np.divide(correct, total, out=np.full(classes, np.nan), where=total > 0)


def mean_errors(errors: Mapping[str, Mapping[int, float]], corruptions: Collection[str]) -> dict[str, float]:
    """{corruption: {severity: top-1 error in percent}} -> {corruption: mean over severities 1 to 5}, none missing."""
    missing = [f'{c} {s}' for c in corruptions for s in SEVERITIES if s not in errors.get(c, {})]
    if missing:
        more = f' and {len(missing) - 3} more' if len(missing) > 3 else ''
        raise DataError(f'No error was measured for {", ".join(missing[:3])}{more}; evaluate every severity, 1 to 5.')
    unknown = sorted(set(errors) - set(corruptions))
    if unknown:
        raise DataError(f"Corruption '{unknown[0]}' does not belong to this mean; leave it out.")
    strange = [(c, s) for c in corruptions for s in SEVERITIES if not 0 <= errors[c][s] <= 100]
    if strange:
        corruption, severity = strange[0]
        value = errors[corruption][severity]
        raise DataError(f'The error of {corruption} {severity} is {value}; errors are percents, 0 to 100.')
    return {corruption: float(np.mean([errors[corruption][s] for s in SEVERITIES])) for corruption in corruptions}


def mean_corruption_error(errors: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """Top-1 errors in percent of the 15 corruptions -> 'mce' and every 'ce/<corruption>', in percent of AlexNet's error.

    A corruption's error is averaged over its severities, then divided by AlexNet's; mCE is the mean of the 15 ratios.
    'mean_error' is the same mean without AlexNet. ImageNet-C only: the constants belong to its JPEGs.
    """
    means = mean_errors(errors, ALEXNET_ERRORS)
    relative = {f'ce/{corruption}': error / ALEXNET_ERRORS[corruption] for corruption, error in means.items()}
    return {
        'mce': float(np.mean(list(relative.values()))),
        'mean_error': float(np.mean(list(means.values()))),
        **relative,
    }


def rank_thresholds(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores f[n], bool[n] -> true and false positives at every distinct score taken as threshold, highest first.

    Equal scores enter together: their order in the file must not matter.
    """
    scores, positive = np.asarray(scores, np.float64), np.asarray(positive)
    if positive.dtype != bool or scores.shape != positive.shape or scores.ndim != 1:
        raise DataError(f'Scores f[n] need a flag bool[n] each; these are {scores.shape} and {positive.dtype}.')
    if not np.isfinite(scores).all():
        raise DataError('A score is not finite; check the checkpoint.')
    if positive.all() or not positive.any():
        raise DataError('AUPR and AUROC need images of both kinds, in and out of the distribution.')
    order = np.argsort(-scores, kind='stable')
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of every run of equal scores
    true = np.cumsum(positive[order])[last]
    return true, last + 1 - true


def aupr(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under precision over recall, a fraction: the sum of (R_i - R_{i-1}) P_i, scikit-learn's average precision.

    `positive` marks the images to be found, with high `scores`: those out of the distribution. Chance is their share.
    """
    true, false = rank_thresholds(scores, positive)
    return float(np.sum(np.diff(true, prepend=0) / true[-1] * (true / (true + false))))


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive image scores above a negative one, a fraction; a tie counts one half. Chance level is 0.5."""
    true, false = rank_thresholds(scores, positive)
    heights = (true + np.append(0, true[:-1])) / 2
    return float(np.sum(np.diff(false, prepend=0) * heights) / (true[-1] * false[-1]))
