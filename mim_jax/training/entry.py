"""The folder of a run as several hosts enter it: the first one opens and locks it, the others find it there."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from mim_jax.errors import WorkdirError
from mim_jax.parallel.agreement import exchange, together
from mim_jax.parallel.hosts import are_several, is_first
from mim_jax.paths import is_bucket, open_path
from mim_jax.training.workdir import Workdir


class Guest(Workdir):
    """A work directory that another host has opened: the same paths, nothing locked, written or checked."""

    def __init__(self, path: str | Path):
        path = open_path(path)
        self.path = path if is_bucket(path) else path.absolute()

    def check(self) -> None:
        """Whose the folder is, the first host asks."""

    def close(self) -> None:
        """There is nothing to release."""


def open_workdir(path: str | Path, config: Any, **options: Any) -> Workdir:
    """The folder of a run on this host; options: Workdir's. Raises WorkdirError, on all hosts, as it does there on the
    first one, and where they do not share the folder."""
    workdir = together('the workdir', lambda: Workdir(path, config, **options) if is_first() else Guest(path))
    try:
        check_shared(workdir)
    except BaseException:
        workdir.close()
        raise
    return workdir


def check_shared(workdir: Workdir) -> None:
    """Raise WorkdirError, on all hosts, unless each sees what the first one writes: a checkpoint is written by all of them."""
    if not are_several():
        return
    mark = workdir.path / exchange('mark', f'.shared_{uuid.uuid4().hex}')[0]
    try:
        if is_first():
            mark.write_text('')
        exchange('marked', None)

        def look() -> None:
            if not mark.exists():
                raise WorkdirError(
                    f'{workdir.path} is another folder here than on the first host; --workdir must be one that all hosts share.'
                )

        together('the shared workdir', look)
    finally:
        if is_first():
            mark.unlink(missing_ok=True)
