"""Runs over several processes of this machine, which find each other on loopback; each has fake devices of its own."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from program_runs import QUICK_XLA, ROOT, Ended, read_fingerprints, read_losses

from mim_jax.training.checkpoint import read_arrays
from mim_jax.training.journal import read_events

GRADIENT = 1e-7  # root mean square, of which rounding alone is a tenth
PATIENCE = 300  # seconds for any one thing to happen, on a machine with other work


class Pod:
    """A program on `hosts` processes with `devices` each, as `python -m` would start it. Use as a context: none survives.

    faults: {host: a line of Python that its process runs first}. Output goes to files in `folder`.
    """

    def __init__(
        self,
        folder: Path,
        line: Sequence[str],
        hosts: int = 2,
        devices: int = 2,
        program: str = 'train',
        faults: Mapping[int, str] = {},
    ):
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            address = f'127.0.0.1:{free.getsockname()[1]}'
        flags = f'--xla_force_host_platform_device_count={devices} {QUICK_XLA}'
        environment = os.environ | {'XLA_FLAGS': flags, 'PYTHONPATH': str(ROOT)}
        self.files, self.children = [], []
        for host in range(hosts):
            own = {'MIM_JAX_COORDINATOR': address, 'MIM_JAX_HOSTS': str(hosts), 'MIM_JAX_HOST': str(host)}
            code = (
                f'from mim_jax import {program}\nfrom mim_jax.command import run_program\nrun_program({program}.main)'
            )
            command = [sys.executable, '-c', f'{faults.get(host, "")}\n{code}', *line]
            files = [folder / f'{host}.{kind}' for kind in ('out', 'err')]
            with files[0].open('w') as out, files[1].open('w') as err:
                child = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment | (own if hosts > 1 else {}),
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                )
            self.files.append(files)
            self.children.append(child)

    def __enter__(self) -> 'Pod':
        return self

    def __exit__(self, *error: object) -> None:
        for child in self.children:
            child.kill()
            child.wait()

    def wait_for(self, words: str, host: int = 0) -> None:
        """Return when the output of a host has these words."""
        end = time.monotonic() + PATIENCE
        while words not in self.files[host][0].read_text():
            if self.children[host].poll() is not None or time.monotonic() > end:
                raise AssertionError(f'host {host} never said {words!r}: {self.read(host)}')
            time.sleep(0.02)

    def read(self, host: int) -> Ended:
        out, err = (file.read_text() for file in self.files[host])
        return Ended(self.children[host].poll(), out, err)

    def finish(self) -> list[Ended]:
        """Wait for the end of every host."""
        end = time.monotonic() + PATIENCE
        for child in self.children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.1, end - time.monotonic()))
        return [self.read(host) for host in range(len(self.children))]


def run_pod(folder: Path, line: Sequence[str], hosts: int = 2, devices: int = 2, **options) -> list[Ended]:
    """Start, and wait for the end."""
    with Pod(folder, line, hosts, devices, **options) as pod:
        return pod.finish()


def statuses(ended: Sequence[Ended]) -> list[int | None]:
    """Exit statuses by host; None for one that had to be killed."""
    return [one.status for one in ended]


def compare_runs(workdir: Path, reference: Path, step: int) -> dict[str, float]:
    """How far two runs of the same steps are apart.

    loss: greatest relative difference of any step's loss; parameters: greatest absolute difference at `step` of those that
    have a gradient, no_gradient: of the others, such as the biases of keys, or before a BatchNorm, where Adam divides one
    rounding error by another; bitwise: how many arrays of the whole state are the same bit for bit, of `arrays`.
    """
    mine, theirs = read_losses(workdir), read_losses(reference)
    assert list(mine) == list(theirs)
    losses = [np.array(list(run.values())) for run in (mine, theirs)]
    ours, whole = (read_fingerprints(run, step) for run in (workdir, reference))
    assert ours.keys() == whole.keys()
    parts = ('params', 'opt_state')
    arrays = [read_arrays(str(run / 'checkpoints'), step, parts)[0] for run in (workdir, reference)]
    gaps = {True: 0.0, False: 0.0}
    for path in (path for path in arrays[0] if path.startswith('params/')):
        (squares,) = (name for name in arrays[1] if name.endswith(f'/nu/{path.removeprefix("params/")}'))
        moved, gap = np.sqrt(arrays[1][squares]) > GRADIENT, np.abs(arrays[0][path] - arrays[1][path])
        for side in gaps:
            gaps[side] = max(gaps[side], float(np.max(gap[moved == side], initial=0)))
    return {
        'loss': float(np.max(np.abs(losses[0] - losses[1]) / np.abs(losses[1]))),
        'parameters': gaps[True],
        'no_gradient': gaps[False],
        'bitwise': sum(ours[path] == whole[path] for path in ours),
        'arrays': len(ours),
    }


def read_values(workdir: Path, prefix: str) -> dict[int, dict[str, float]]:
    """{step: {key: value}} of the journal's keys that begin so."""
    found: dict[int, dict[str, float]] = {}
    for event in read_events(workdir / 'metrics.jsonl'):
        values = {key: value for key, value in event.items() if key.startswith(prefix)}
        assert not values.keys() & found.get(event['step'], {}).keys(), 'journalled twice'
        if values:
            found.setdefault(event['step'], {}).update(values)
    return found


def read_seal(workdir: Path, step: int) -> dict:
    """What a checkpoint says beside its arrays."""
    seal = json.loads((workdir / 'checkpoints' / str(step) / 'seal' / 'metadata').read_text())
    return json.loads(seal['text'])['extra']
