"""What a run is bound to besides its config: its dataset, its frozen teachers, the weights it began with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mim_jax.errors import WorkdirError
from mim_jax.training.workdir import IMPORTED


def check_random_start(workdir: Path) -> None:
    """A run that was to begin with imported weights does not begin with random ones. Raises WorkdirError."""
    if (workdir / IMPORTED).exists():
        raise WorkdirError(
            f'{workdir} began with imported weights, and has no readable checkpoint any more. Give the command that imported '
            'them again (for mim_jax.evaluate: the same one), or use another --workdir.'
        )


def check_bound(workdir: Path, step: int, extra: Mapping[str, Any], dataset: str, digests: Mapping[str, str]) -> None:
    """What the checkpoint of a step says of dataset and frozen teachers is what they are now. Raises WorkdirError."""
    check_dataset(workdir, step, extra['dataset'], dataset)
    check_teachers(workdir, step, extra.get('frozen', digests), digests)


def check_dataset(workdir: Path, step: int, before: str | None, now: str) -> None:
    """The order of the data is a function of the dataset: with another one, the run would be another run.

    before: None for a run that has seen no data yet, because it begins with imported weights. Raises WorkdirError.
    """
    if before not in (None, now):
        raise WorkdirError(
            f'{workdir} is at step {step} of a run on {before}, but the dataset is now {now}. '
            'Put back the images it began with, or use another --workdir.'
        )


def check_teachers(workdir: Path, step: int, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """As with the dataset: what a frozen teacher says is a function of its file. Raises WorkdirError."""
    for name, digest in now.items():
        if before[name] != digest:
            raise WorkdirError(
                f'{workdir} is at step {step} of a run with another file for the teacher {name}: its sha256 was '
                f'{before[name]}, not {digest}. Put back the file it began with, or use another --workdir.'
            )
