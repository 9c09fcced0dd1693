"""Runs of the train program as a user starts them, tiny: 16 x 16 digits, one block, 48 steps of 16 images, saved every 8.

`call` runs a program in this process (eight fake devices), `start` in a fresh one with as many as are asked for.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from mim_jax import train
from mim_jax.command import run_program
from mim_jax.training.checkpoint import read_params
from mim_jax.training.journal import read_events

ROOT = Path(__file__).parents[1]
SMOKE = f'{ROOT / "configs" / "mae.py"}:smoke'
STEPS, EVERY = 48, 8
QUICK_XLA = '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'  # tiny_runs.QUICK, as XLA_FLAGS
TINY = {
    'image_size': 16,
    'batch_size': 16,
    'encoder.width': 16,
    'encoder.depth': 1,
    'mae.decoder_width': 16,
    'mae.decoder_depth': 1,
    'mae.decoder_heads': 2,
    'steps': STEPS,
    'checkpoint.every_steps': EVERY,
    'checkpoint.keep': 10,
    'log.every_steps': 1,
    'log.tensorboard': False,
    'data.threads': 1,
}


class Ended(NamedTuple):
    """How a program ended: exit status, standard output, standard error."""

    status: int
    out: str
    err: str


def arguments(workdir: Path | str, settings: Mapping[str, Any] = {}, config: str = SMOKE) -> list[str]:
    """The command line of a tiny run; `settings` on top of TINY."""
    flags = [f'--config.{key}={value}' for key, value in (TINY | dict(settings)).items()]
    return ['--config', config, '--workdir', str(workdir), *flags]


def call(capsys: Any, line: Sequence[str], main: Callable = train.main) -> Ended:
    """Run a program in this process, as `python -m` would."""
    capsys.readouterr()
    status = 0
    with mock.patch.object(sys, 'argv', ['program', *line]), contextlib.ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.getsignal(number))
        try:
            run_program(main)
        except SystemExit as end:
            status = end.code
    return Ended(status, *capsys.readouterr())


def fail(capsys: Any, line: Sequence[str], *words: str, status: int = 2) -> str:
    """Run the train program; check that it ends with `status` and one message, which says these words. The message."""
    ended = call(capsys, line)
    assert ended.status == status, ended
    assert ended.err.startswith('error: ')
    assert ended.err.count('error: ') == 1
    assert 'Traceback' not in ended.err + ended.out
    for word in words:
        assert word in ended.err
    return ended.err


def share_compilations(tmp_path_factory: Any) -> None:
    """Let all tests of this session, and their children, compile each program once."""
    cache = tmp_path_factory.getbasetemp() / 'compilations'
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(cache)  # for the children
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    jax.config.update('jax_compilation_cache_dir', str(cache))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    compilation_cache.reset_cache()  # it may have been found switched off already


def start(line: Sequence[str], devices: int = 1, through: Sequence[str] = ()) -> subprocess.Popen:
    """Start the train program in a process, and a process group, of its own; `through` is a command that runs another."""
    environment = os.environ | {'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'}
    command = [*through, sys.executable, '-m', 'mim_jax.train', *line]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)


def finish(child: subprocess.Popen, seen: str = '', timeout: float = 120.0) -> Ended:
    """Wait for the end."""
    out, err = child.communicate(timeout=timeout)
    return Ended(child.returncode, seen + out, err)


def wait_for_step(child: subprocess.Popen, step: int) -> str:
    """Read the child's output up to the line of a step; what was read."""
    seen = ''
    for line in child.stdout:
        seen += line
        if line.startswith(f'step {step:>2}/'):
            return seen
    raise AssertionError(f'the run ended before step {step}: {seen[-2000:]} {child.stderr.read()}')


def wait_for_save(child: subprocess.Popen, workdir: Path) -> None:
    """Return while the child is halted in the middle of writing a checkpoint."""
    while child.poll() is None:
        if half_written(workdir):
            child.send_signal(signal.SIGSTOP)
            time.sleep(0.02)  # all of its threads come to a halt
            if half_written(workdir):
                return
            child.send_signal(signal.SIGCONT)
        time.sleep(0.0005)
    raise AssertionError('the run ended before it was caught saving')


def kill(child, workdir: Path, moment: str | int, delay: float = 0.0) -> None:
    """SIGKILL while a checkpoint is being written ('save'), `delay` seconds after the start, or after a step's line."""
    if moment == 'save':
        wait_for_save(child, workdir)
    elif moment != 'start':
        wait_for_step(child, moment)
    time.sleep(delay)
    child.kill()
    finish(child)
    assert child.returncode == -signal.SIGKILL
    assert moment != 'save' or half_written(workdir)


def half_written(workdir: Path) -> list[Path]:
    """Checkpoints that are there, but not committed."""
    with contextlib.suppress(FileNotFoundError):  # renamed or made while being looked at
        folders = [path for path in (workdir / 'checkpoints').iterdir() if path.is_dir()]
        return [path for path in folders if not (path / 'commit_success.txt').exists()]
    return []


def read_summary(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / 'summary.json').read_text())


def read_losses(workdir: Path) -> dict[int, float]:
    """{step: loss}; every step is there at most once."""
    events = [event for event in read_events(workdir / 'metrics.jsonl') if 'loss/total' in event]
    losses = {event['step']: event['loss/total'] for event in events}
    assert len(losses) == len(events), 'a step is in the journal twice'
    return losses


def saved_steps(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit())


def read_fingerprints(workdir: Path, step: int = STEPS) -> dict[str, list]:
    """{path: [shape, dtype, 64-bit fingerprint]} of every array of a checkpoint: the whole state."""
    seal = json.loads((workdir / 'checkpoints' / str(step) / 'seal' / 'metadata').read_text())
    return json.loads(seal['text'])['arrays']


def check_same_end(workdir: Path, whole: Path) -> None:
    """Bit-identical parameters, optimizer and losses; every step in the journal once."""
    summary = read_summary(workdir)
    assert (summary['status'], summary['steps']) == ('finished', STEPS)
    assert read_fingerprints(workdir) == read_fingerprints(whole)
    mine, reference = (read_params(folder / 'checkpoints')[0] for folder in (workdir, whole))
    jax.tree.map(np.testing.assert_array_equal, mine, reference)
    assert read_losses(workdir) == read_losses(whole)
    assert list(read_losses(workdir)) == list(range(1, STEPS + 1))


def copy_run(workdir: Path, target: Path, upto: int = STEPS) -> Path:
    """A copy of a run as it was when it had saved step `upto`; the journal is longer, as after a kill."""
    shutil.copytree(workdir, target)
    for step in saved_steps(target):
        if step > upto:
            shutil.rmtree(target / 'checkpoints' / str(step))
    if upto < STEPS:
        (target / 'summary.json').unlink()
    return target


def snapshot(folder: Path) -> dict[str, bytes]:
    """{file: content} of everything in a folder but its lock."""
    files = [path for path in folder.rglob('*') if path.is_file() and path.name != '.lock']
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
