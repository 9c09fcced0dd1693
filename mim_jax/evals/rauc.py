"""RAUC: how far one training curve stays above another, relative to how far the other rises (MTO, Eq. 6).

python -m mim_jax.evals.rauc --baseline RUN/metrics.jsonl --ours RUN/metrics.jsonl --key probe/knn --start 100 --stop 400
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from mim_jax.errors import DataError, UserError
from mim_jax.training.journal import read_events


def rauc(
    epochs1: Sequence[float],
    scores1: Sequence[float],
    epochs2: Sequence[float],
    scores2: Sequence[float],
    start: float,
    stop: float,
    reference: str | float = 'first',
) -> float:
    """Baseline curve 1 and our curve 2, epochs f[n] increasing, scores f[n] -> the ratio of two areas over a constant c.

        RAUC = integral of (S2 - c) / integral of (S1 - c), over epochs start to stop

    The curves are linear between their points, so the trapezoid rule on the union of their epochs is exact. Equal curves
    give 1. As printed, c = S1(start): reference='start'. The paper's tables fit a c that is the same for every range,
    the first point of the baseline's curve: reference='first', our inference. A number is taken as c.

    Raises DataError when a curve does not cover the range, or the baseline's area is not positive (nothing to divide by).
    """
    if not start < stop:
        raise DataError(f'RAUC needs a range of epochs; start={start} is not below stop={stop}.')
    epochs1, scores1 = check_curve(epochs1, scores1, start, stop, "The baseline's curve")
    epochs2, scores2 = check_curve(epochs2, scores2, start, stop, 'Our curve')
    if reference == 'first':
        constant = scores1[0]
    elif reference == 'start':
        constant = np.interp(start, epochs1, scores1)
    elif isinstance(reference, str):
        raise DataError(f"RAUC knows no reference '{reference}'; use first, start or a number.")
    else:
        constant = reference
    grid = np.union1d(np.clip(np.concatenate([epochs1, epochs2]), start, stop), [start, stop])
    ours, baseline = (
        np.trapezoid(np.interp(grid, epochs, scores) - constant, grid)
        for epochs, scores in ((epochs2, scores2), (epochs1, scores1))
    )
    if not baseline > 0:
        raise DataError(
            f'The baseline stays at or below the reference {constant:g} on average between epochs {start:g} and '
            f'{stop:g}, so RAUC is not defined; choose a lower reference or another range.'
        )
    return float(ours / baseline)


def check_curve(epochs: Sequence[float], scores: Sequence[float], start: float, stop: float, name: str) -> tuple:
    """(epochs f64[n], scores f64[n]), increasing, finite and covering [start, stop], or DataError that begins with `name`."""
    epochs, scores = np.asarray(epochs, np.float64), np.asarray(scores, np.float64)
    if epochs.ndim != 1 or epochs.shape != scores.shape or len(epochs) == 0:
        raise DataError(f'{name} has {epochs.size} epochs and {scores.size} scores; give one score per epoch.')
    if not (np.isfinite(epochs).all() and np.isfinite(scores).all()):
        raise DataError(f'{name} holds a value that is not finite.')
    if not (np.diff(epochs) > 0).all():
        raise DataError(f'{name} must have increasing epochs; give one run, in its order.')
    if start < epochs[0] or stop > epochs[-1]:
        raise DataError(
            f'{name} runs from epoch {epochs[0]:g} to {epochs[-1]:g} and does not cover {start:g} to {stop:g}.'
        )
    return epochs, scores


def read_curve(path: str, key: str) -> tuple[list[float], list[float]]:
    """The epochs and values of `key` in a run's metrics.jsonl. Raises DataError when it holds none."""
    events = read_events(path)
    points = [(float(event['epoch']), float(event[key])) for event in events if key in event and 'epoch' in event]
    if not points:
        known = ', '.join(sorted({k for event in events for k in event if k.startswith('probe/')})) or 'none'
        raise DataError(f"{path} has no values of '{key}' with an epoch; its probes: {known}.")
    epochs, values = zip(*points, strict=True)
    return list(epochs), list(values)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print RAUC for both references, with the constant and the epoch it comes from."""
    parser = argparse.ArgumentParser(prog='python -m mim_jax.evals.rauc', description=__doc__.splitlines()[0])
    parser.add_argument('--baseline', required=True, metavar='FILE', help="the baseline's metrics.jsonl")
    parser.add_argument('--ours', required=True, metavar='FILE', help="our run's metrics.jsonl")
    parser.add_argument('--key', required=True, help='the score to compare, for example probe/knn (higher is better)')
    parser.add_argument('--start', required=True, type=float, metavar='E1', help='first epoch of the range')
    parser.add_argument('--stop', required=True, type=float, metavar='E2', help='last epoch of the range')
    options = parser.parse_args(arguments)
    (epochs1, scores1), (epochs2, scores2) = (
        read_curve(path, options.key) for path in (options.baseline, options.ours)
    )
    constants = {
        'first': (scores1[0], epochs1[0]),
        'start': (np.interp(options.start, epochs1, scores1), options.start),
    }
    for reference, (constant, epoch) in constants.items():
        value = rauc(epochs1, scores1, epochs2, scores2, options.start, options.stop, reference)
        print(f'RAUC {value:.4f}  {options.key}, epochs {options.start:g} to {options.stop:g}, ', end='')
        print(f'above the baseline at epoch {epoch:g} ({constant:.4g}; reference={reference})')
    return 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(error.exit_status)
