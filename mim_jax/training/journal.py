"""The record of a run, `metrics.jsonl`: one JSON object per event, always written.

JSON has no NaN, so a value that is not finite is written as the string 'nan', 'inf' or '-inf'; `float()` reads it back.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mim_jax.errors import BucketError, WorkdirError
from mim_jax.paths import is_bucket, open_path, replace_file

JOURNAL = 'metrics.jsonl'


def encode_json(value: Any) -> Any:
    """Make `value` standard JSON: arrays and NumPy scalars become numbers, non-finite floats become strings."""
    if isinstance(value, Mapping):
        return {str(key): encode_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode_json(item) for item in value]
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return encode_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def write_summary(path: str | Path, **fields: Any) -> None:
    """Write `fields` to `path` as indented JSON, atomically."""
    replace_file(path, json.dumps(encode_json(fields), indent=2, allow_nan=False) + '\n')


def read_events(path: str | Path) -> list[dict[str, Any]]:
    """Read a journal, oldest event first. A torn last line (the run was killed while writing) is left out.

    Raises WorkdirError when any other line is not a JSON object.
    """
    path = open_path(path)
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise WorkdirError(f'{path} line {number} is not JSON; delete that line and run again.') from error
        if not isinstance(event, dict):
            raise WorkdirError(f'{path} line {number} is not a JSON object; delete that line and run again.')
        events.append(event)
    return events


class Uploads:
    """When a bucket gets what a run says about itself: every few seconds, and always when it is asked for.

    upload: one round of writing, which takes PACE times as long as it to be due again. check: raises where another run has
    the folder. An outage between is told and waited out, because nothing is lost by it: the next round writes everything.
    """

    SECONDS, PACE = 5.0, 20.0

    def __init__(self, upload: Callable[[], None], check: Callable[[], None]):
        self._upload, self._check, self._due = upload, check, 0.0

    def changed(self) -> None:
        """Upload if it is time."""
        if time.monotonic() < self._due:
            return
        try:
            self.now()
        except BucketError as error:
            print(f'{error} What is logged meanwhile is kept.', file=sys.stderr, flush=True)

    def now(self) -> None:
        """Upload. Raises BucketError, or WorkdirError."""
        start = time.monotonic()
        try:
            self._check()
            self._upload()
        finally:
            self._due = time.monotonic() + max(self.SECONDS, self.PACE * (time.monotonic() - start))


class Appended:
    """A file of a folder that grows: what was added is on its way to the disk."""

    def __init__(self, path: Path):
        self._file = path.open('a', encoding='utf-8')

    def add(self, line: str) -> None:
        self._file.write(line)
        self._file.flush()

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        self._file.close()


class Rewritten:
    """A bucket's object that grows, by being written anew."""

    def __init__(self, path: Path, lines: list[str], check: Callable[[], None]):
        self._lines = lines
        self._uploads = Uploads(lambda: replace_file(path, ''.join(self._lines)), check)

    def add(self, line: str) -> None:
        self._lines.append(line)
        self._uploads.changed()

    def flush(self) -> None:
        self._uploads.now()

    def close(self) -> None:
        self.flush()


class Memory:
    """In place of a Journal on every host but the first: the latest values of this session, and no file."""

    def __init__(self):
        self._last: dict[str, Any] = {}

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self._last.update(encode_json({'step': int(step), **values}))

    def last(self, key: str) -> Any:
        """The latest value of `key`; None when it was never written."""
        return self._last.get(key)

    def last_values(self) -> dict[str, Any]:
        """The latest value of every key."""
        return dict(self._last)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing is open."""


class Journal(Memory):
    """Append-only `metrics.jsonl`: one event per line, in a folder on its way to the disk before `write` returns.

    `resume_step` is the step the run goes on from. Events of later steps belong to work that was lost and will be done
    again, so they are dropped, and so is a torn last line. None keeps every whole event. In a bucket, a run that is killed
    may lose its last seconds of events, but none from before its last `flush`; `check` is asked first there (Uploads).
    The latest values are those of the whole file, earlier sessions included.
    """

    def __init__(self, workdir: str | Path, resume_step: int | None = None, check: Callable[[], None] = lambda: None):
        super().__init__()
        self.path = open_path(workdir) / JOURNAL
        self.path.parent.mkdir(parents=True, exist_ok=True)
        events = [e for e in read_events(self.path) if resume_step is None or e.get('step', 0) <= resume_step]
        lines = [json.dumps(event) + '\n' for event in events]
        replace_file(self.path, ''.join(lines))
        for event in events:
            self._last.update(event)
        self._file = Rewritten(self.path, lines, check) if is_bucket(self.path) else Appended(self.path)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        event = encode_json({'step': int(step), **values})
        self._file.add(json.dumps(event, allow_nan=False) + '\n')
        self._last.update(event)

    def flush(self) -> None:
        """Return when every event is where others read it. Raises BucketError, or WorkdirError."""
        self._file.flush()

    def close(self) -> None:
        self._file.close()
