"""Whole runs in a bucket: trained, stopped, killed, resumed, tested and exported as in a folder, to the last bit."""

import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from program_runs import (
    ROOT,
    STEPS,
    arguments,
    call,
    finish,
    read_fingerprints,
    read_losses,
    share_compilations,
    wait_for_step,
)

from mim_jax import evaluate, export, import_weights
from mim_jax.errors import WorkdirError
from mim_jax.paths import open_path
from mim_jax.training import lock
from mim_jax.training.checkpoint import Checkpoints, read_params
from mim_jax.weights.files import read_weights

RUN, EVERY = 'gs://fake/run', 16
SETTINGS = {'checkpoint.every_steps': EVERY, 'log.tensorboard': True}
PATIENT = 600.0
# A child whose lease is stale after a second and a half.
QUICK = (
    'from mim_jax.training import lock; lock.PERIOD = 0.5\n'
    'from mim_jax import train; from mim_jax.command import run_program; run_program(train.main)'
)


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    share_compilations(tmp_path_factory)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lock, 'PERIOD', 0.5)


def train_whole(folder, capsys):
    """The same run in a folder, undisturbed."""
    ended = call(capsys, arguments(folder, SETTINGS))
    assert (ended.status, ended.err) == (0, '')
    return folder


def check_same(whole):
    """The bucket's run and the folder's: every array, every loss, and what they say about themselves."""
    run = open_path(RUN)
    assert read_fingerprints(run) == read_fingerprints(whole)
    mine, theirs = (read_params(str(folder / 'checkpoints'))[0] for folder in (run, whole))
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)
    assert read_losses(run) == read_losses(whole)
    assert list(read_losses(run)) == list(range(1, STEPS + 1))
    summaries = [json.loads((folder / 'summary.json').read_text()) for folder in (run, whole)]
    assert [(s['status'], s['steps']) for s in summaries] == [('finished', STEPS)] * 2


def list_files(folder):
    """Names in a folder, without what differs from session to session."""
    names = {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()}
    return {name for name in names if 'checkpoints/' not in name and 'tensorboard/' not in name and name != '.lock'}


def test_a_run_that_breaks_off_ends_as_in_a_folder(bucket, tmp_path, capsys, monkeypatch):
    whole = train_whole(tmp_path / 'whole', capsys)
    save = Checkpoints.save

    def fail_once(self, step, *arguments, **options):
        if step == 2 * EVERY:
            raise RuntimeError('cut off')
        save(self, step, *arguments, **options)

    monkeypatch.setattr(Checkpoints, 'save', fail_once)
    with pytest.raises(RuntimeError, match='cut off'):
        call(capsys, arguments(RUN, SETTINGS))
    monkeypatch.setattr(Checkpoints, 'save', save)
    assert json.loads(bucket.text('run/summary.json'))['status'] == 'failed'
    assert 'run/.lease' not in bucket.objects
    ended = call(capsys, arguments(RUN, SETTINGS))
    assert (ended.status, ended.err) == (0, '')
    assert f'Resuming mae at step {EVERY} of {STEPS}, from {RUN}/checkpoints.' in ended.out
    check_same(whole)
    kept = {name.removeprefix('run/') for name in bucket.objects if 'checkpoints/' not in name}
    assert {name for name in kept if not name.startswith('tensorboard/')} == list_files(whole)
    assert sum(name.startswith('tensorboard/') for name in kept) == 2  # one of each session


def start():
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    command = [sys.executable, '-c', QUICK, *arguments(RUN, SETTINGS)]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)


def complaints(ended):
    """Standard error without what TensorStore and google-auth say of the credentials of a test."""
    known = ('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'Authentication failed using Compute Engine')
    return [line for line in ended.err.splitlines() if not any(words in line for words in known)]


def is_saving(bucket, after):
    """Whether a checkpoint newer than `after` is there in part."""
    with bucket.lock:
        names = [name.split('/') for name in bucket.objects if name.startswith('run/checkpoints/')]
    there = {int(parts[2]) for parts in names if parts[2].isdigit()}
    whole = {int(parts[2]) for parts in names if parts[2].isdigit() and parts[3:] == ['commit_success.txt']}
    return any(step > after for step in there - whole)


@pytest.mark.slow
def test_stopped_then_killed_in_a_save_then_killed_again_ends_to_the_last_bit(bucket, tmp_path, capsys):
    whole = train_whole(tmp_path / 'whole', capsys)
    bucket.latency = 0.002
    child = start()
    seen = wait_for_step(child, 5)
    child.send_signal(signal.SIGTERM)
    ended = finish(child, seen, timeout=PATIENT)
    assert (ended.status, complaints(ended)) == (75, [])
    assert json.loads(bucket.text('run/summary.json'))['status'] == 'interrupted'
    stopped = max(Checkpoints(f'{RUN}/checkpoints').steps())

    child = start()  # its lease was given back: nothing to wait for
    while not is_saving(bucket, stopped):
        assert child.poll() is None
        time.sleep(0.001)
    child.kill()
    finish(child, timeout=PATIENT)
    assert 'run/.lease' in bucket.objects

    child = start()
    seen = wait_for_step(child, 30)
    child.kill()
    ended = finish(child, seen, timeout=PATIENT)
    assert 'No sign of life from process' in ended.out

    ended = finish(start(), timeout=PATIENT)
    assert (ended.status, complaints(ended)) == (0, [])
    assert 'No sign of life from process' in ended.out
    check_same(whole)


@pytest.mark.slow
def test_two_runs_and_one_that_was_stopped_for_too_long(bucket, tmp_path, capsys):
    whole = train_whole(tmp_path / 'whole', capsys)
    first = start()
    seen = wait_for_step(first, 3)
    first.send_signal(signal.SIGSTOP)
    second = start()
    said = wait_for_step(second, 1)
    third = finish(start(), timeout=PATIENT)  # while the second is at work
    assert third.status == 2
    assert 'gs://fake/run is in use by process' in third.err
    ended = finish(second, said, timeout=PATIENT)
    assert (ended.status, complaints(ended)) == (0, [])
    assert 'No sign of life from process' in ended.out
    after = dict(bucket.objects)
    first.send_signal(signal.SIGCONT)
    ended = finish(first, seen, timeout=PATIENT)
    assert ended.status == 2
    assert ended.err.count('error: ') == 1
    assert f'{RUN} was taken over by' in ended.err
    assert bucket.objects == after
    check_same(whole)


@pytest.mark.slow
def test_a_run_is_tested_and_exported_as_from_a_folder(bucket, tmp_path, capsys):
    whole = train_whole(tmp_path / 'whole', capsys)
    assert call(capsys, arguments(RUN, SETTINGS)).status == 0
    shown = []
    for run in (str(whole), RUN):
        line = ['--checkpoint', run, '--config', f'{ROOT}/configs/eval/knn.py']
        assert call(capsys, line, evaluate.main).status == 0
        shown.append(json.loads((open_path(run) / 'evals' / 'knn' / 'results.json').read_text())['metrics'])
    assert shown[0] == shown[1]

    out = tmp_path / 'encoder.safetensors'
    line = ['--checkpoint', RUN, '--format', 'safetensors', '--out', str(out)]
    assert call(capsys, line, export.main).status == 0
    saved = read_params(str(whole / 'checkpoints'))[0]['encoder']
    exported = read_weights(out).arrays
    np.testing.assert_array_equal(exported['encoder/norm/scale'], saved['norm']['scale'])


@pytest.mark.slow
def test_imported_weights_and_a_protocol_that_trains(bucket, tmp_path, capsys):
    """A linear probe reads the encoder's file in the bucket and goes on there; an import begins a run there."""
    assert call(capsys, arguments(RUN, SETTINGS)).status == 0
    settings = {'steps': 6, 'batch_size': 64, 'checkpoint.every_steps': 2, 'log.every_steps': 1, 'data.threads': 1}
    settings |= {
        'optim.warmup_epochs': 0.0,
        'linear_probe.pool': 'mean',
        'linear_probe.norm': 'none',
        'linear_probe.layer': 1,
    }
    flags = [f'--config.{key}={value}' for key, value in settings.items()]
    line = ['--checkpoint', RUN, '--config', f'{ROOT}/configs/eval/linear_probe.py', *flags]
    place = f'{RUN}/evals/probe'
    for _ in range(2):
        ended = call(capsys, [*line, '--workdir', place], evaluate.main)
        assert (ended.status, ended.err) == (0, '')
    assert 'Nothing is left to do' in ended.out
    results = json.loads(bucket.text('run/evals/probe/results.json'))
    assert results['checkpoint']['run'] == RUN
    assert max(value for key, value in results['metrics'].items() if key.endswith('top1')) > 0

    out = tmp_path / 'full.safetensors'
    line = ['--checkpoint', RUN, '--format', 'safetensors', '--part', 'full', '--out', str(out)]
    assert call(capsys, line, export.main).status == 0
    begun = 'gs://fake/begun'
    assert call(capsys, [*arguments(begun, SETTINGS), '--weights', str(out)], import_weights.main).status == 0
    assert 'begun/imported.json' in bucket.objects
    assert call(capsys, arguments(begun, SETTINGS)).status == 0
    with pytest.raises(WorkdirError, match='checkpoints already'):
        import_weights.main([*arguments(begun, SETTINGS), '--weights', str(out)])
