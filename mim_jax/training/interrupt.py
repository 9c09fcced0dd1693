"""Ctrl-C and SIGTERM ask a run to save and stop; a second one insists."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType


class Interrupt:
    """While open, `requested` names the first signal that arrived, or is None. The second raises KeyboardInterrupt."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.requested: str | None = None

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._receive) for number in self.SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
        # Not print: the signal may have come while print was writing, which cannot be entered twice.
        os.write(1, f'\n{self.requested}: saving and stopping; once more to stop without saving.\n'.encode())
