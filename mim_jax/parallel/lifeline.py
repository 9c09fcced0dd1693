"""The hosts' own lines to each other, open as long as a run: who is gone is known within milliseconds.

The kernel closes the connections of a process that dies, however it dies, and its keepalive finds a machine that vanished.
(JAX itself would abort the others, some of them only after its heartbeat, and would not say which host is at fault.)
Host 0 has a line to every other host and passes on what it hears. Messages are lines of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

LOST = 75  # EX_TEMPFAIL: run the same command again
WORDS = 1.0  # seconds in which a host that hears of another's error may end by its own, in its own words
GRACE = 3.0  # seconds for which host 0 waits for the others to end: JAX's service ends with it, and they would abort
AGAIN = 'Start the same command on all hosts again to go on; launch/babysit.py does that by itself.'


class Line:
    """One connection to `host`: whole messages out, whole messages in."""

    def __init__(self, connection: socket.socket, host: int):
        self.socket, self.host = connection, host
        self.orderly = False  # its end is no loss any more
        self._rest = b''

    def send(self, message: dict[str, Any]) -> None:
        """A peer that is gone is noticed where its messages are read."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b'\n')

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that are complete after one more piece has come; None when the other end is closed, or no host."""
        try:
            piece = self.socket.recv(65536)
            *lines, self._rest = (self._rest + piece).split(b'\n')
            messages = [json.loads(line) for line in lines]
        except (OSError, ValueError):
            return None
        return messages if piece and all(isinstance(message, dict) for message in messages) else None


class Lifeline:
    """Watches the lines of host number `host` in a thread: a loss or an error elsewhere ends this process with a sentence.

    names: every host's, by number. heartbeat: seconds after which a machine that vanished is noticed.
    """

    def __init__(self, host: int, lines: Sequence[Line], names: Sequence[str], heartbeat: float):
        self.host, self.lines, self.names = host, lines, names
        self._ending = threading.Lock()  # taken once, by the thread that ends this process
        self._status, self._until = 0, float('inf')
        for line in lines:
            keep_alive(line.socket, heartbeat)
        self._thread = threading.Thread(target=self._watch, name='lifeline', daemon=True)
        self._thread.start()

    def describe(self, host: int) -> str:
        """'host 1 (name)'."""
        return f'host {host} ({self.names[host]})'

    def say_goodbye(self) -> None:
        """This host is about to end in order."""
        for line in self.lines:
            line.send({'bye': True})

    def abandon(self, status: int, theirs: int, why: str) -> NoReturn:
        """End this process with `status`; the others say `why` and end with status `theirs`."""
        self._ending.acquire()  # for good; where the watching thread was faster, it ends the process
        self._tell(self.host, theirs, why, WORDS)
        if self.host == 0:
            self._thread.join(GRACE)
        end_process(status)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for line in self.lines:
                selector.register(line.socket, selectors.EVENT_READ, line)
            while selector.get_map() and time.monotonic() < self._until:
                for key, _ in selector.select(GRACE / 10):
                    messages = key.data.receive()
                    for message in messages or ():
                        self._hear(key.data, message)
                    if messages is None:
                        selector.unregister(key.fileobj)
                        if not key.data.orderly:
                            host = self.describe(key.data.host)
                            self._lose(key.data.host, LOST, f'{host} is gone, so this host stops too. {AGAIN}', 0)
        if self._status:
            end_process(self._status)

    def _hear(self, line: Line, message: dict[str, Any]) -> None:
        if 'bye' in message:
            line.orderly = True
        else:
            time.sleep(message['pause'])
            self._lose(message['host'], message['status'], message['why'], message['pause'])

    def _lose(self, host: int, status: int, why: str, pause: float) -> None:
        """`host` is lost: say so, pass it on, and end."""
        if not self._ending.acquire(blocking=False):
            return
        print(f'\nhost {self.host}: error: {why}', file=sys.stderr, flush=True)
        if self.host == 0:
            self._tell(host, status, why, pause)
        self._status, self._until = status, time.monotonic() + (GRACE if self.host == 0 else 0)

    def _tell(self, host: int, status: int, why: str, pause: float) -> None:
        for line in self.lines:
            if line.host != host:
                line.send({'host': host, 'status': status, 'why': why, 'pause': pause})


def keep_alive(connection: socket.socket, heartbeat: float) -> None:
    """Let the kernel close a connection whose other machine has been silent for about three quarters of `heartbeat` s."""
    quarter = max(1, round(heartbeat / 4))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    wanted = {'TCP_KEEPIDLE': quarter, 'TCP_KEEPINTVL': quarter, 'TCP_KEEPCNT': 2, 'TCP_USER_TIMEOUT': 3000 * quarter}
    for option, value in wanted.items():
        if hasattr(socket, option):  # Linux has them all
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def end_process(status: int) -> NoReturn:
    """Without JAX's shutdown, which waits for the other hosts."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
