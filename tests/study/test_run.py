"""Running a study: order, several rows at a time, failures, stops; the commands are pretended but in the last test."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mim_jax.errors import UserError
from mim_jax.study.plan import Arm, Study, Test
from mim_jax.study.rows import read_rows
from mim_jax.study.run import Failed, Interrupted, Runner, split_cores

ARMS = (
    Arm('base', 'configs/mae.py:smoke'),
    Arm('taught', 'configs/mr_mae.py:smoke', teacher=('base', 'mr_mae.dino_weights')),
    Arm('other', 'configs/mff.py:smoke'),
    Arm('scratch', overrides=('--config.finetune.layer_decay=1.0',), from_scratch='base'),
)
STUDY = Study('s', 'About.', ARMS, (0, 1), ('--config.steps=2',), (Test('tuned', 'configs/eval/finetune.py', 'top1'),))
FACTS = {'versions': {'jax': '0'}, 'devices': {'kind': 'cpu'}, 'cpus': 2, 'commit': 'a', 'total_steps': 2}


class Pretended(Runner):
    """Its commands leave what the real ones would, and are kept in `calls` with the cores they had."""

    def __init__(self, folder: Path, extra=(), deadline=math.inf, fail=(), stop_at=math.inf):
        super().__init__(STUDY, folder / 'runs', folder / 'study.jsonl', extra, deadline)
        self.calls, self.fail, self.stop_at, self.said, self.lock = [], fail, stop_at, [], threading.Lock()

    def _call(self, line, folder, cores):
        with self.lock:
            self.calls.append((*line, frozenset(cores)))
            if len(self.calls) > self.stop_at:
                raise Interrupted
        if any(word in line for word in self.fail):
            raise Failed('status 2')
        target = Path(line[line.index('--workdir' if '--workdir' in line else '--out') + 1])
        target.mkdir(parents=True)
        if line[0] == 'mim_jax.train':
            (target / 'summary.json').write_text(json.dumps({'status': 'finished', 'wall_seconds': 1.0, **FACTS}))
            event = {'step': 2, 'epoch': 1.0, 'probe/ridge': 30.0, 'loss/total': 0.5}
            (target / 'metrics.jsonl').write_text(json.dumps(event) + '\n')
        if line[0] == 'mim_jax.evaluate':
            (target / 'results.json').write_text(json.dumps({'metrics': {'top1': 50.0}}))

    def go(self, jobs=1, arms=(), seeds=()):
        return self.run(self.remaining(arms, seeds), jobs, self.said.append)

    def rows(self):
        return [(row['arm'], row['seed']) for row in read_rows(self.results, 's')]


def test_every_row_is_trained_once_tested_and_written(tmp_path: Path):
    runner = Pretended(tmp_path, ['--config.data.dir=/data'])
    assert runner.go() == 0
    assert runner.rows() == [(arm.name, seed) for seed in (0, 1) for arm in ARMS]
    lines = [' '.join(call[:-1]) for call in runner.calls]
    assert sum(line.startswith('mim_jax.train') for line in lines) == 2 * 3, 'one of the four arms trains nothing'
    run = tmp_path / 'runs' / 's'
    assert lines[0] == (
        f'mim_jax.train --config configs/mae.py:smoke --workdir {run}/base/seed_0/run --config.steps=2 '
        '--config.data.dir=/data --config.seed=0'
    )
    taught = next(line for line in lines if 'mr_mae.py' in line)
    assert f'--config.mr_mae.dino_weights={run}/base/seed_0/encoder --config.data.dir=/data --config.seed=0' in taught
    scratch = next(line for line in lines if '--from-scratch' in line)
    assert f'--checkpoint {run}/base/seed_0/run' in scratch
    assert '--config.finetune.layer_decay=1.0' in scratch
    assert sum('--from-scratch' in line for line in lines) == 2
    row = read_rows(runner.results, 's')[0]
    assert row['metrics'] == {'probe/ridge': 30.0, 'loss/total': 0.5, 'tuned': 50.0}
    assert 'probe/ridge' not in read_rows(runner.results, 's')[3]['metrics'], 'nothing is known of what was not trained'

    again = Pretended(tmp_path, ['--config.data.dir=/elsewhere'])
    assert again.go() == 0
    assert again.calls == [], 'where the data is changes no row'
    with pytest.raises(UserError, match='another overrides and tests'):
        Pretended(tmp_path, ['--config.probe.train_images=9']).go()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason='two jobs need two cores')
def test_jobs_have_cores_of_their_own_and_a_teacher_is_there_before_its_student(tmp_path: Path):
    runner = Pretended(tmp_path)
    assert runner.go(jobs=2) == 0
    assert sorted(runner.rows()) == sorted((arm.name, seed) for seed in (0, 1) for arm in ARMS)
    cores = {call[-1] for call in runner.calls}
    assert all(not a & b for a in cores for b in cores if a != b)
    lines = [' '.join(call[:-1]) for call in runner.calls]
    for seed in (0, 1):
        trained = [line for line in lines if line.startswith('mim_jax.train') and line.endswith(f'seed={seed}')]
        assert len(trained) == 3
        places = {
            arm: next(i for i, line in enumerate(lines) if f'/{arm}/seed_{seed}/run ' in line + ' ')
            for arm in ('base', 'taught')
        }
        assert places['base'] < places['taught']


def test_a_teacher_whose_folder_is_gone_is_trained_again_for_a_new_student(tmp_path: Path):
    Pretended(tmp_path).go(arms=['base'], seeds=[0])
    (tmp_path / 'runs').rename(tmp_path / 'gone')
    runner = Pretended(tmp_path)
    assert runner.go(arms=['taught'], seeds=[0]) == 0
    assert [call[0] for call in runner.calls] == [
        'mim_jax.train',
        'mim_jax.export',
        'mim_jax.train',
        'mim_jax.evaluate',
    ]
    assert runner.rows() == [('base', 0), ('taught', 0)]


def test_a_row_that_fails_is_told_and_the_others_are_run(tmp_path: Path):
    runner = Pretended(tmp_path, fail=('configs/mff.py:smoke',))
    assert runner.go(seeds=[0]) == 1
    assert runner.rows() == [('base', 0), ('taught', 0), ('scratch', 0)]
    assert 'other, seed 0: failed, status 2' in runner.said


def test_an_interrupted_study_goes_on_with_the_same_command(tmp_path: Path):
    runner = Pretended(tmp_path, stop_at=3)  # in the export for the second row
    assert runner.go() == 75
    assert runner.rows() == [('base', 0)]
    again = Pretended(tmp_path)
    assert again.go() == 0
    assert len(again.rows()) == 8
    assert len(set(again.rows())) == 8


def test_after_the_deadline_no_row_is_begun(tmp_path: Path):
    runner = Pretended(tmp_path, deadline=time.monotonic() - 1)
    assert runner.go() == 75
    assert runner.calls == []


def test_a_fault_in_a_row_is_not_swallowed(tmp_path: Path):
    runner = Pretended(tmp_path)
    (tmp_path / 'study.jsonl').mkdir()  # no file can be written there
    with pytest.raises(IsADirectoryError):
        runner.run([('base', 0), ('other', 0)], 1, runner.said.append)
    assert len(runner.calls) == 2, 'nothing was begun after it'


def test_jobs_beyond_the_cores_are_refused():
    with pytest.raises(UserError, match='--jobs 1000 must be from 1'):
        split_cores(1000)


SMALL = """
from mim_jax.study.plan import Arm, Claim, Study, Test

KNN = Test('knn', 'configs/eval/knn.py:small,pooled', 'knn')
STUDY = Study(
    'tiny',
    'Of a test.',
    (
        Arm('mae', 'configs/mae.py:smoke'),
        Arm('taught', 'configs/mr_mae.py:fused,smoke', ('--config.mr_mae.teachers=dino',), ('mae', 'mr_mae.dino_weights')),
    ),
    (3,),
    ('--config.steps=30', '--config.checkpoint.every_steps=2', '--config.probe.every_epochs=0'),
    (KNN,),
    (Claim('mimicry helps', 'table 3', 'knn', 'taught', 'mae', 'no'),),
    shown=('knn',),
)
"""


@pytest.mark.slow
def test_a_real_study_stopped_by_a_signal_ends_as_one_left_in_peace(tmp_path: Path):
    file = tmp_path / 'tiny.py'
    file.write_text(SMALL)

    def command(name: str) -> list[str]:
        where = ['--workdir', str(tmp_path / name), '--results', str(tmp_path / f'{name}.jsonl')]
        return [sys.executable, '-m', 'mim_jax.study', str(file), *where, '--config.data.threads=1']

    peace = subprocess.run(command('peace'), capture_output=True, text=True)
    assert peace.returncode == 0, peace.stdout + peace.stderr

    child = subprocess.Popen(command('stopped'), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / 'stopped' / 'tiny' / 'mae' / 'seed_3' / 'run' / 'metrics.jsonl'
    until = time.monotonic() + 240
    while not journal.exists() and time.monotonic() < until:
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=240)
    assert child.returncode == 75, out + err
    assert not (tmp_path / 'stopped.jsonl').exists(), 'no row was done'
    went_on = subprocess.run(command('stopped'), capture_output=True, text=True)
    assert went_on.returncode == 0, went_on.stdout + went_on.stderr

    first, second = (read_rows(tmp_path / f'{name}.jsonl', 'tiny') for name in ('peace', 'stopped'))
    assert [row['arm'] for row in first] == ['mae', 'taught']
    assert [row['metrics'] for row in first] == [row['metrics'] for row in second]
    assert 'loss/mimic' in second[1]['metrics']
