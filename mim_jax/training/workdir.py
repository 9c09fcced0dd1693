"""The folder of a run: one writer at a time, one configuration for good, and the files every later tool relies on."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path
from typing import Any

from mim_jax.config import check_same_run, from_json, to_json
from mim_jax.errors import WorkdirError
from mim_jax.training.loggers import JOURNAL, replace_file


class Workdir:
    """Opens (and makes) a work directory for one run.

    Contents: config.json, metrics.jsonl, checkpoints/, pictures/, tensorboard/, summary.json. Raises WorkdirError when it
    cannot be written, when another process is using it, or when it holds a run of other settings; nothing is changed then.
    """

    def __init__(self, path: str | Path, config: Any):
        self.path = Path(path).absolute()
        check_writable(self.path)
        self._lock = (self.path / '.lock').open('w')
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by the system however the process ends
        except BlockingIOError as error:
            raise WorkdirError(
                f'{self.path} is in use by another run; wait for it, or choose another --workdir.'
            ) from error
        saved = self.path / 'config.json'
        if saved.exists():
            try:
                before = from_json(saved.read_text())
            except ValueError as error:
                raise WorkdirError(
                    f'{saved} is not readable as JSON ({error}); restore it, or choose another --workdir.'
                ) from error
            check_same_run(config, before)
        elif (self.path / JOURNAL).exists() or self.checkpoints.exists():
            raise WorkdirError(
                f'{self.path} holds a run without its config.json; restore it, or choose another --workdir.'
            )
        replace_file(saved, to_json(config))

    @property
    def checkpoints(self) -> Path:
        return self.path / 'checkpoints'

    @property
    def summary(self) -> Path:
        return self.path / 'summary.json'

    def picture(self, name: str) -> Path:
        """pictures/<name>.png, its folder made."""
        folder = self.path / 'pictures'
        folder.mkdir(exist_ok=True)
        return folder / f'{name}.png'

    def close(self) -> None:
        """Let another process use the folder."""
        self._lock.close()


def check_writable(path: Path) -> None:
    """Make the folder and write a byte in it. Raises WorkdirError when that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(os.urandom(1))
    except OSError as error:
        raise WorkdirError(
            f'--workdir {path} cannot be written ({error.strerror}); choose a folder you may write to.'
        ) from error
