"""The folder of a run: one writer at a time, one configuration for good, and the files every later tool relies on."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mim_jax.config import check_same_run, from_json, to_json
from mim_jax.errors import WorkdirError
from mim_jax.paths import explain, is_about_bucket, is_bucket, open_path, replace_file
from mim_jax.training.journal import JOURNAL
from mim_jax.training.lock import take_lock

CONFIG, CHECKPOINTS, IMPORTED = 'config.json', 'checkpoints', 'imported.json'


class Workdir:
    """Opens (and makes) a work directory for one run: a folder, or gs://bucket/folder.

    Contents: config.json, metrics.jsonl, checkpoints/, pictures/, tensorboard/, summary.json. Raises WorkdirError when it
    cannot be written, when another process is using it, or when it holds a run of other settings; what it holds stays as
    it is then. bound: see check_contents. `report` gets a line where a bucket's lease has to be waited for.
    """

    def __init__(
        self,
        path: str | Path,
        config: Any,
        bound: bool = True,
        report: Callable[[str], None] = lambda line: print(line, flush=True),
    ):
        self.path = open_path(path)
        if not is_bucket(self.path):
            self.path = self.path.absolute()
            check_writable(self.path)  # and made, so that there is a place for the lock
        self._lock = take_lock(self.path, report)
        try:
            if is_bucket(self.path):  # which TensorStore can write by now; this asks gcsfs
                check_writable(self.path)
            check_contents(self.path, config, bound)
            replace_file(self.path / CONFIG, to_json(config))
        except BaseException:
            self.close()
            raise

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def summary(self) -> Path:
        return self.path / 'summary.json'

    def picture(self, name: str) -> Path:
        """pictures/<name>.png, its folder made."""
        folder = self.path / 'pictures'
        folder.mkdir(exist_ok=True)
        return folder / f'{name}.png'

    def check(self) -> None:
        """Raise WorkdirError where another run has taken over a bucket's folder; before anything of value is written."""
        self._lock.check()

    def close(self) -> None:
        """Let another process use the folder."""
        self._lock.close()


def check_contents(path: Path, config: Any, bound: bool = True) -> None:
    """Raise WorkdirError unless a run of `config` may begin, or go on, in this folder. Only reads.

    Settings bind from the first event or checkpoint on: a run that failed before, over a typing mistake, can be mended. Those
    of a test that trains nothing do not (bound=False): in a folder of the same test, other settings begin it anew.
    """
    saved, checkpoints, journal = path / CONFIG, path / CHECKPOINTS, path / JOURNAL
    begun = (journal.exists() and not is_empty(journal)) or (checkpoints.is_dir() and any(checkpoints.iterdir()))
    if saved.exists():
        try:
            before = from_json(saved.read_text())
        except (ValueError, AttributeError) as error:
            raise WorkdirError(f'{saved} is damaged ({error}); restore it, or choose another --workdir.') from error
        if begun and (bound or before.papers != config.papers):
            check_same_run(config, before)
    elif begun:
        raise WorkdirError(f'{path} holds a run without its {CONFIG}; restore it, or choose another --workdir.')


def is_empty(file: Path) -> bool:
    """Whether there is nothing in it."""
    with file.open('rb') as opened:
        return not opened.read(1)


def check_writable(path: Path, name: str = '--workdir') -> None:
    """Make the folder and write a byte in it; in a bucket there is nothing to make. Raises WorkdirError when that fails."""
    probe = path / f'.writable_{uuid.uuid4().hex}'  # several hosts may try at once
    try:
        if path.exists() and not path.is_dir():
            raise WorkdirError(f'{name} {path} is a file; choose a folder, or a name that is not taken.')
        path.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b'0')
        finally:
            probe.unlink(missing_ok=True)
    except Exception as error:
        if is_bucket(path) and (isinstance(error, OSError) or is_about_bucket(error)):
            raise WorkdirError(f'{name} {path} cannot be used: {explain(error)}.') from error
        if not isinstance(error, OSError):
            raise
        raise WorkdirError(
            f'{name} {path} cannot be written ({error.strerror or error}); choose a folder you may write to.'
        ) from error
