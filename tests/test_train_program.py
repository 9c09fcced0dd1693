"""The workdir of a run that finished, and what the program said meanwhile."""

import contextlib
import io
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image
from program_runs import SMOKE, arguments, call, read_summary, share_compilations
from tensorboardX.proto.event_pb2 import Event

from mim_jax.config import from_json
from mim_jax.train import main
from mim_jax.training.checkpoint import read_params
from mim_jax.training.journal import read_events

STEPS, EVERY, PROBED = 20, 5, (9, 18, 20)
SETTINGS = {
    'steps': STEPS,
    'log.every_steps': EVERY,
    'log.tensorboard': True,
    'probe.every_epochs': 0.1,  # 9 steps
    'probe.train_images': 96,
    'probe.test_images': 64,
    'pictures.every_epochs': 0.1,
    'pictures.count': 2,
}


class Run(NamedTuple):
    """A finished run and its standard output."""

    workdir: Path
    out: str


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Run:
    share_compilations(tmp_path_factory)
    workdir, out = tmp_path_factory.mktemp('train') / 'deep' / 'run', io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(arguments(workdir, SETTINGS)) == 0
    return Run(workdir, out.getvalue())


def test_the_workdir_holds_what_is_promised_and_nothing_else(run):
    names = {'config.json', 'metrics.jsonl', 'summary.json', 'checkpoints', 'pictures', 'tensorboard', '.lock'}
    assert {path.name for path in run.workdir.iterdir()} == names


def test_config_json_is_the_whole_resolved_config(run):
    config = from_json((run.workdir / 'config.json').read_text())
    assert (config.base, config.papers, config.steps, config.batch_size) == ('mae', (), STEPS, 16)
    assert (config.mae.mask_ratio, config.mae.decoder_width, config.data.source) == (0.75, 16, 'digits')
    assert config.data.scale == (0.5, 1.0)


def test_every_event_of_the_journal(run):
    lines = (run.workdir / 'metrics.jsonl').read_text().splitlines()
    events = [json.loads(line) for line in lines]
    trained = [event for event in events if 'loss/total' in event]
    assert [event['step'] for event in trained] == list(range(EVERY, STEPS + 1, EVERY))
    for event in trained:
        assert event['epoch'] == pytest.approx(event['step'] * 16 / 1437)
        assert event['loss/total'] == event['loss/pixels']
        assert {'lr', 'grad_norm', 'images_per_second', 'data_wait_ms', 'step_ms', 'eta_seconds'} <= event.keys()
        assert all(math.isfinite(value) for value in event.values())
    probed = [event for event in events if 'probe/knn' in event]
    assert [event['step'] for event in probed] == list(PROBED)
    assert all({'probe/knn', 'probe/ridge', 'epoch'} <= event.keys() for event in probed)
    untrained = [event for event in events if 'untrained/knn' in event]
    assert [event['step'] for event in untrained] == [0]
    assert 'untrained/ridge' in untrained[0]


def test_summary_json(run):
    summary, events = read_summary(run.workdir), read_events(run.workdir / 'metrics.jsonl')
    assert (summary['status'], summary['steps'], summary['total_steps']) == ('finished', STEPS, STEPS)
    assert summary['images_seen'] == STEPS * 16
    assert summary['recipe'] == 'mae'
    assert summary['config'] == str(run.workdir / 'config.json')
    assert summary['wall_seconds'] > 0
    assert summary['bad_images'] == {}
    assert {'python', 'mim_jax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy'} <= summary['versions'].keys()
    assert summary['devices'] == {'kind': 'cpu', 'platform': 'cpu', 'count': 8}
    last = {key: value for event in events for key, value in event.items()}
    assert summary['metrics'] == last
    for probe in ('knn', 'ridge'):
        assert 0 <= summary['metrics'][f'probe/{probe}'] <= 100
        assert 0 <= summary['metrics'][f'untrained/{probe}'] <= 100


def test_pictures_open(run):
    names = {'curves.png', *(f'pixels_step_{step:07d}.png' for step in PROBED)}
    assert {path.name for path in (run.workdir / 'pictures').iterdir()} == names
    for name in names:
        with Image.open(run.workdir / 'pictures' / name) as picture:
            picture.load()
            assert min(picture.size) > 32
            assert len(set(picture.convert('L').tobytes())) > 8  # not blank


def test_the_tensorboard_file_holds_the_journal(run):
    (file,) = (run.workdir / 'tensorboard').iterdir()
    content, values, place = file.read_bytes(), {}, 0
    while place < len(content):  # TFRecord: length u64, its crc u32, the record, its crc u32
        (length,) = struct.unpack_from('<Q', content, place)
        event = Event.FromString(content[place + 12 : place + 12 + length])
        values |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
        place += 16 + length
    assert place == len(content)
    journal = read_events(run.workdir / 'metrics.jsonl')
    expected = {(event['step'], key): value for event in journal for key, value in event.items() if key != 'step'}
    assert values == pytest.approx(expected, rel=1e-6)


def test_the_last_checkpoint_holds_the_parameters(run):
    params, extra = read_params(run.workdir / 'checkpoints')
    assert set(params) == {'encoder', 'decoder'}
    assert params['encoder']['cls_token'].shape == (1, 1, 16)
    assert 0 < extra['wall_seconds'] <= read_summary(run.workdir)['wall_seconds']


@pytest.mark.parametrize(
    'line',
    [
        '  batch_size: 4096 -> 16',
        "  data.source: 'tfds' -> 'digits'",
        'mae on digits:train: 1,437 images; 20 steps of 16 images, peak lr 0.001; 8 x cpu.',
        'Starting mae at step 0 of 20.',
        'encoder: 17 arrays, 0.00 M parameters',
        'Compiled the train step in ',
        'step  5/20  epoch 0.06  loss ',
        ' % (the same encoder untrained: ',
        'Finished: ',
    ],
)
def test_what_is_said(run, line):
    assert line in run.out


def test_the_parameter_table(run):
    rows = {row.split()[0]: row.split()[1:] for row in run.out.splitlines() if row.startswith(('encoder/', 'decoder/'))}
    assert rows['encoder/patch_embed/kernel'] == ['48x16', 'float32', '()', 'yes']
    assert rows['encoder/block_00/attn/qkv/kernel'] == ['16x48', 'float32', "('fsdp',", 'None)', 'yes']
    assert rows['encoder/norm/scale'] == ['16', 'float32', '()', 'no']


def test_both_forms_of_an_override(run, tmp_path, capsys):
    joined = [f'--config.{key}={value}' for key, value in (('steps', 3), ('data.split', 'trian'))]
    spaced = ['--config.steps', '3', '--config.data.split', 'trian']
    saved = []
    for number, overrides in enumerate((joined, spaced)):
        workdir = tmp_path / str(number)
        ended = call(capsys, ['--workdir', str(workdir), *overrides, '--config', SMOKE])
        assert (ended.status, "no split 'trian'" in ended.err) == (2, True)
        saved.append((workdir / 'config.json').read_text())
    assert saved[0] == saved[1]
    assert from_json(saved[0]).steps == 3


def test_the_commit_and_the_help(capsys):
    ended = call(capsys, ['--help'])
    assert ended.status == 0
    assert 'the same command resumes' in ended.out
    ended = call(capsys, ['--config', SMOKE])
    assert (ended.status, '--workdir' in ended.err) == (2, True)


def test_tensorflow_is_never_imported(run, tmp_path):
    """A stand-in that leaves a mark is found before any TensorFlow there may be."""
    package = tmp_path / 'path' / 'tensorflow'
    package.mkdir(parents=True)
    package.joinpath('__init__.py').write_text('import pathlib\npathlib.Path(__file__ + ".mark").touch()\n')
    environment = os.environ | {'PYTHONPATH': str(package.parent)}
    settings = SETTINGS | {'steps': 2, 'optim.warmup_epochs': 0.0}
    command = [sys.executable, '-m', 'mim_jax.train', *arguments(tmp_path / 'run', settings)]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')
    assert not list(package.glob('*.mark'))
