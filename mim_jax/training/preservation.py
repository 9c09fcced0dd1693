"""Which checkpoints are kept: the newest ones, and those with a mark on disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etils import epath

MILESTONE = 'milestone'  # an entry beside 'state' and 'seal': a checkpoint that has it is never deleted


class NewestAndMilestones:
    """Orbax's preservation policy: the newest `keep` steps, and those that are marked on disk."""

    def __init__(self, directory: epath.Path, keep: int):
        self.directory, self.keep = directory, keep

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Oldest first, the one being written last -> which of them to keep."""
        del context
        old = len(checkpoints) - self.keep
        return [i >= old or is_milestone(self.directory / str(saved.step)) for i, saved in enumerate(checkpoints)]


def mark_milestone(path: epath.Path) -> None:
    """Keep the checkpoint in this folder for good."""
    if not is_milestone(path):
        (path / MILESTONE).mkdir()
        (path / MILESTONE / 'metadata').write_text('{}')


def is_milestone(path: epath.Path) -> bool:
    """Whether the checkpoint in this folder has the mark."""
    # Listed, because exists() takes a folder that cannot be read now for one without a mark.
    return any(entry.name == MILESTONE for entry in path.iterdir())
