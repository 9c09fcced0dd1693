"""The folder of a run: one writer at a time, one configuration for good, and the files every later tool relies on."""

from __future__ import annotations

import fcntl
import re
import uuid
from pathlib import Path
from typing import Any

from mim_jax.config import check_same_run, from_json, to_json
from mim_jax.errors import WorkdirError
from mim_jax.training.loggers import JOURNAL, replace_file

CONFIG, CHECKPOINTS, IMPORTED = 'config.json', 'checkpoints', 'imported.json'


class Workdir:
    """Opens (and makes) a work directory for one run.

    Contents: config.json, metrics.jsonl, checkpoints/, pictures/, tensorboard/, summary.json. Raises WorkdirError when it
    cannot be written, when another process is using it, or when it holds a run of other settings; what it holds stays as
    it is then. bound: see check_contents.
    """

    def __init__(self, path: str | Path, config: Any, bound: bool = True):
        check_local(path)
        self.path = Path(path).absolute()
        check_writable(self.path)
        self._lock = (self.path / '.lock').open('w')
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by the system however the process ends
            check_contents(self.path, config, bound)
        except BlockingIOError as error:
            self.close()
            raise WorkdirError(
                f'{self.path} is in use by another run; wait for it, or choose another --workdir.'
            ) from error
        except WorkdirError:
            self.close()
            raise
        replace_file(self.path / CONFIG, to_json(config))

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

    def close(self) -> None:
        """Let another process use the folder."""
        self._lock.close()


def check_local(path: str | Path) -> None:
    """Raise WorkdirError for an address such as gs://bucket/run, which would otherwise become a folder called 'gs:'."""
    if re.match(r'[a-z][a-z0-9+.-]+:/', str(path)):
        raise WorkdirError(
            f'--workdir {path} is not a folder; buckets are not supported yet: give a local or mounted folder.'
        )


def check_contents(path: Path, config: Any, bound: bool = True) -> None:
    """Raise WorkdirError unless a run of `config` may begin, or go on, in this folder. Only reads.

    Settings bind from the first event or checkpoint on: a run that failed before, over a typing mistake, can be mended. Those
    of a test that trains nothing do not (bound=False): in a folder of the same test, other settings begin it anew.
    """
    saved, checkpoints, journal = path / CONFIG, path / CHECKPOINTS, path / JOURNAL
    begun = (journal.exists() and journal.stat().st_size > 0) or (checkpoints.is_dir() and any(checkpoints.iterdir()))
    if saved.exists():
        try:
            before = from_json(saved.read_text())
        except (ValueError, AttributeError) as error:
            raise WorkdirError(f'{saved} is damaged ({error}); restore it, or choose another --workdir.') from error
        if begun and (bound or before.papers != config.papers):
            check_same_run(config, before)
    elif begun:
        raise WorkdirError(f'{path} holds a run without its {CONFIG}; restore it, or choose another --workdir.')


def check_writable(path: Path, name: str = '--workdir') -> None:
    """Make the folder and write a byte in it; `path` may also be an epath.Path. Raises WorkdirError when that fails."""
    if path.exists() and not path.is_dir():
        raise WorkdirError(f'{name} {path} is a file; choose a folder, or a name that is not taken.')
    probe = path / f'.writable_{uuid.uuid4().hex}'  # several hosts may try at once
    try:
        path.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b'0')
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise WorkdirError(
            f'{name} {path} cannot be written ({error.strerror or error}); choose a folder you may write to.'
        ) from error
