"""One writer per run: a lock of the system for a folder, a lease that is kept alive for a bucket."""

from __future__ import annotations

import fcntl
import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorstore as ts

from mim_jax.errors import BucketError, WorkdirError
from mim_jax.paths import explained, is_bucket

PERIOD = 10.0  # seconds from one sign of life to the next
PATIENCE = 3  # periods without one, after which a lease is stale
TIMEOUT = 60.0  # seconds for one request, its retries included
RETRIES = {'max_retries': 4, 'initial_delay': '500ms', 'max_delay': '4s'}


def take_lock(folder: Path, report: Callable[[str], None]) -> FolderLock | Lease:
    """Raises WorkdirError where another run has the folder; BucketError where a bucket cannot be used."""
    return Lease(folder, report) if is_bucket(folder) else FolderLock(folder)


class FolderLock:
    """flock on an open file: the system gives it back however the process ends."""

    def __init__(self, folder: Path):
        self._file = (folder / '.lock').open('w')
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise WorkdirError(
                f'{folder} is in use by another run; wait for it, or choose another --workdir.'
            ) from error

    def check(self) -> None:
        """Nobody can take it from us."""

    def close(self) -> None:
        self._file.close()


class Lease:
    """An object that says who uses a folder of a bucket, written anew every PERIOD by a thread as a sign of life.

    Every write names the version that it replaces, so of two writers one fails. Whoever finds a lease watches it by his own
    clock: a change says that its owner lives, none for PATIENCE periods that he does not. Nobody compares clocks.
    """

    def __init__(self, folder: Path, report: Callable[[str], None]):
        self._folder, self._report, self._path = folder, report, folder / '.lease'
        self._me = {'owner': uuid.uuid4().hex, 'host': socket.gethostname(), 'pid': os.getpid(), 'signs': 0}
        self._taken: str | None = None  # what to say when somebody else has it
        self._alive = -math.inf  # when the last sign of life that was answered was given
        self._closing, self._mutex = threading.Event(), threading.Lock()
        bucket, _, inside = str(folder).removeprefix('gs://').partition('/')
        spec = {'driver': 'gcs', 'bucket': bucket, 'path': f'{inside}/' if inside else ''}
        context = ts.Context({'gcs_request_retries': RETRIES})
        with explained(self._path):
            self._store = ts.KvStore.open(spec, context=context).result(TIMEOUT)
        self._acquire()
        self._thread = threading.Thread(target=self._keep, name='lease', daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise WorkdirError unless nobody can have taken the folder; asks the bucket when the last sign of life is old."""
        if self._taken is None and time.monotonic() - self._alive > 1.5 * PERIOD:  # stopped, or cut off, for a while
            self._renew()
        if self._taken is not None:
            raise WorkdirError(self._taken)

    def close(self) -> None:
        """Give the folder back. Where that cannot be done, the lease is stale after a while."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._thread.join()
        try:
            with explained(self._path):
                self._store.write('.lease', None, if_equal=self._version).result(TIMEOUT)
        except BucketError as error:
            self._report(f'{error} The next run in {self._folder} waits {PATIENCE * PERIOD:.0f} s for this one.')

    def _acquire(self) -> None:
        seen, since = None, 0.0
        while True:
            found = self._read()
            if found.state == 'missing':
                if self._write(found.stamp.generation):
                    return
                continue  # somebody was faster
            if self._adopt(found):
                return
            who = describe(found.value)
            if seen is None:
                seen, since = found.stamp.generation, time.monotonic()
                wait = f'{PATIENCE * PERIOD:.0f} s'
                self._report(f'{self._folder} is held by {who}; watching for {wait} whether that is alive.')
            elif found.stamp.generation != seen:
                raise WorkdirError(f'{self._folder} is in use by {who}; wait for it, or choose another --workdir.')
            elif time.monotonic() - since > PATIENCE * PERIOD and self._write(found.stamp.generation):
                self._report(f'No sign of life from {who}: {self._folder} is taken over.')
                return
            time.sleep(PERIOD / 5)

    def _keep(self) -> None:
        while not self._closing.wait(PERIOD) and self._taken is None:
            try:
                self._renew()
            except BucketError as error:  # an outage; whether it lasted too long is seen when it is over
                self._report(str(error))

    def _renew(self) -> None:
        with self._mutex:
            self._me['signs'] += 1
            if self._write(self._version):
                return
            found = self._read()
            if self._adopt(found):
                return
            who = describe(found.value) if found.state == 'value' else 'a run that has ended since'
            self._taken = (
                f'{self._folder} was taken over by {who}, because this run gave no sign of life for too long. It stops before '
                'it writes anything more; run the same command again when the other one has ended.'
            )

    def _adopt(self, found: Any) -> bool:
        """Whether the lease is ours all the same: a write of ours was done, its answer was lost, and so it was tried twice."""
        mine = found.state == 'value' and json.loads(found.value)['owner'] == self._me['owner']
        if mine:
            self._version = found.stamp.generation
        return mine

    def _read(self) -> Any:
        with explained(self._path):
            return self._store.read('.lease').result(TIMEOUT)

    def _write(self, version: bytes) -> bool:
        """Whether it was the version that is there, and now is ours."""
        asked = time.monotonic()
        with explained(self._path):
            stamp = self._store.write('.lease', json.dumps(self._me), if_equal=version).result(TIMEOUT)
        if stamp.generation:
            self._version, self._alive = stamp.generation, asked
        return bool(stamp.generation)


def describe(content: bytes) -> str:
    """'process 7 on host node-3'."""
    owner = json.loads(content)
    return f'process {owner["pid"]} on host {owner["host"]}'
