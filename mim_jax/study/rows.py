"""The results of a study: one JSON line for every arm and seed that is done, in a file that only grows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mim_jax.errors import DataError, UserError
from mim_jax.study.plan import Arm, Study
from mim_jax.training.journal import encode_json

Row = dict[str, Any]
PLACES = ('data.dir', 'data.threads', 'data.workers', 'data.cache', 'log.', 'checkpoint.')


def is_place(override: str) -> bool:
    """Whether '--config.key=value' says where things are or how fast they are read, and so changes no row."""
    return override.removeprefix('--config.').startswith(PLACES)


def define(study: Study, arm: Arm, extra: Sequence[str]) -> dict[str, Any]:
    """All that determines a row but its seed: what may not differ among the rows of an arm.

    extra: the command line's overrides, without those that say where things are.
    """
    tests = {test.name: [test.config, test.metric, *test.overrides, *extra] for test in study.tests}
    if arm.from_scratch:
        return {'from_scratch': arm.from_scratch, 'overrides': list(arm.overrides), 'tests': tests}
    settings = [*study.shared, *arm.overrides, *extra]
    return {'config': arm.config, 'overrides': settings, 'teacher': arm.teacher and list(arm.teacher), 'tests': tests}


def read_rows(path: Path, study: str) -> list[Row]:
    """This study's rows, oldest first. Raises DataError."""
    rows: list[Row] = []
    if not path.exists():
        return rows
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f'{path} line {number} is not JSON; delete that line, its row is run again.') from error
        if row['study'] == study:
            rows.append(row)
    return rows


def find_done(rows: Sequence[Row], study: Study, extra: Sequence[str], path: Path) -> set[tuple[str, int]]:
    """(arm, seed) of all that needs not be run again. Raises UserError where a row was made with other settings."""
    arms = {arm.name: encode_json(define(study, arm, extra)) for arm in study.arms}
    for row in rows:
        wanted = arms.get(row['arm'])
        if wanted is not None and row['defined'] != wanted:
            changed = [key for key in wanted if row['defined'].get(key) != wanted[key]] or ['its kind']
            raise UserError(
                f"{path} has a row of arm '{row['arm']}', seed {row['seed']}, that was made with another "
                f'{" and ".join(changed)}; give the arm another name, or another file by --results.'
            )
    return {(row['arm'], row['seed']) for row in rows}


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """One line more, written at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a') as file:
        file.write(json.dumps(encode_json(row), allow_nan=False) + '\n')


def describe_events(events: Sequence[Mapping[str, Any]], kept: Sequence[str]) -> dict[str, Any]:
    """A run's journal -> {'metrics': the last value of every key kept, 'first': the first, 'curves': probes by epoch}."""
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    curves: dict[str, list[list[float]]] = {}
    for event in events:
        for key, value in event.items():
            if not key.startswith(tuple(kept)) or isinstance(value, str):
                continue
            first.setdefault(key, value)
            last[key] = value
            if key.startswith('probe/'):
                curves.setdefault(key, []).append([event['epoch'], value])
    watched = {key: value for key, value in first.items() if key.startswith('watch/')}
    return {'metrics': last, 'first': watched, 'curves': curves}
