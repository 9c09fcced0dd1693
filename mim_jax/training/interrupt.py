"""Ctrl-C and SIGTERM ask a run to save and stop; a second one insists."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_early: list[str] = []  # signals that came while no Interrupt was open


def stop_early() -> None:
    """From now on both signals end the program by KeyboardInterrupt, until an Interrupt is open.

    Python drops an exception that arises in a callback of the garbage collector, as jax has one. A signal that is lost so is
    remembered, and the next Interrupt begins with it.
    """
    _early.clear()
    for number in SIGNALS:
        signal.signal(number, _remember_and_raise)


def _remember_and_raise(number: int, frame: FrameType | None) -> None:
    _early.append(signal.Signals(number).name)
    raise KeyboardInterrupt


class Interrupt:
    """While open, `requested` names the first signal that arrived, or is None. The second raises KeyboardInterrupt."""

    def __init__(self):
        self.requested: str | None = None

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        self.requested = _early[0] if _early else None
        _early.clear()
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
