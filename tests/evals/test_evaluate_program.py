"""`python -m mim_jax.evaluate`, end to end, on tiny runs on the embedded digits: every protocol, resume, suites, refusals."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from evaluate_runs import EVAL, POOLED, QUICK_FINETUNE, STEPS, TINY, as_settings, line, make_runs, refuse, run_protocol
from program_runs import ROOT, finish, half_written, kill, read_fingerprints, read_losses, read_summary, snapshot

from mim_jax import evaluate
from mim_jax.errors import WorkdirError
from mim_jax.interop.origin import begin_from, read_origin
from mim_jax.training.bound import check_random_start
from mim_jax.training.checkpoint import read_arrays
from mim_jax.training.workdir import Workdir
from mim_jax.weights.encoders import save_encoder
from mim_jax.weights.files import read_weights


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    return make_runs(tmp_path_factory)


@pytest.mark.parametrize(
    ('protocol', 'metrics'),
    [
        ('knn.py:small', {'knn', 'knn_best'}),
        ('ridge.py', {'ridge'}),
        ('cached_probe.py:small,pooled', {'cached_probe'}),
    ],
)
@pytest.mark.parametrize('base', ['mae', 'simmim'])
def test_protocols_of_a_frozen_encoder(base, protocol, metrics, runs, tmp_path, capsys):
    """Better than guessing; everything that tells what was tested is in results.json; the same command, the same numbers."""
    short = (
        {'batch_size': 64, 'cached_probe__rates': '(64.0,)', 'epochs': 20.0, 'optim__warmup_epochs': 1.0}
        if 'cached' in protocol
        else {}
    )
    settings = {'dtype': 'float32', 'data__threads': 1, **short}
    arguments = (runs[base], protocol, tmp_path / 'knn')
    results, said = run_protocol(capsys, *arguments, **settings)
    name = protocol.partition('.')[0]
    assert results['protocol'] == name
    assert metrics <= results['metrics'].keys()
    assert all(15 < results['metrics'][key] <= 100 for key in metrics), results['metrics']  # of ten classes
    about = results['checkpoint']
    assert (about['run'], about['recipe'], about['step'], about['teacher']) == (str(runs[base]), base, STEPS, None)
    assert len(about['sha256']) == 64
    assert (results['seed'], results['dataset']['source'], results['dataset']['split']) == (0, 'digits', 'train')
    assert (len(about['digest']), len(results['settings'])) == (64, 64)
    assert results['config'].startswith(f'{EVAL}/{protocol}')
    assert {'seconds', 'versions', 'devices'} <= results.keys()
    assert f'{name} of {base} at step {STEPS}' in said
    assert run_protocol(capsys, *arguments, **settings)[0]['metrics'] == results['metrics']


def test_the_encoder_s_file_is_the_checkpoint(runs, tmp_path, capsys):
    """Of the newest step, or of the one that is asked for; written once."""
    run_protocol(capsys, runs['simmim'], 'ridge.py', tmp_path / 'ridge', '--step', '4', data__threads=1)
    file = runs['simmim'] / 'evals' / 'encoder_step_4.safetensors'
    saved, _, _ = read_arrays(str(runs['simmim'] / 'checkpoints'), 4, ('params',))
    arrays = read_weights(file).arrays
    assert 'encoder/mask_token' not in arrays
    assert set(arrays) == {p.removeprefix('params/') for p in saved if p.startswith('params/encoder/')} - {
        'encoder/mask_token'
    }
    for path, array in arrays.items():
        np.testing.assert_array_equal(array, saved[f'params/{path}'])
    results = json.loads((tmp_path / 'ridge' / 'results.json').read_text())
    assert results['checkpoint']['step'] == 4


def test_fine_tuning_begins_with_the_run_s_encoder_and_ends_with_an_accuracy(runs, tmp_path, capsys):
    """And the same command again does nothing but say so."""
    workdir = tmp_path / 'finetune'
    arguments, settings = (runs['mae'], 'finetune.py:small', workdir), as_settings(QUICK_FINETUNE)
    results, _ = run_protocol(capsys, *arguments, **settings)
    assert results['protocol'] == 'finetune'
    assert results['metrics'].keys() == {'top1', 'top5', 'images'}
    assert 0 <= results['metrics']['top1'] <= results['metrics']['top5'] <= 100
    first, _, _ = read_arrays(str(workdir / 'checkpoints'), 0, ('params',))
    encoder, _, _ = read_arrays(str(runs['mae'] / 'checkpoints'), STEPS, ('params',))
    for path, array in first.items():
        if path.startswith('params/encoder/') and not path.endswith('pos_embed'):
            np.testing.assert_array_equal(array, encoder[path], err_msg=path)
    assert 'params/encoder/pos_embed' in first  # the fixed table of pre-training, from here on trained
    assert not any('decoder' in path or 'mask_token' in path for path in first)
    assert read_summary(workdir)['recipe'] == 'mae+finetune'
    before = snapshot(workdir / 'checkpoints')
    again, said = run_protocol(capsys, *arguments, **settings)
    assert again['metrics'] == results['metrics']
    assert snapshot(workdir / 'checkpoints') == before
    assert 'step  1/' not in said


@pytest.mark.slow
def test_fine_tuning_of_an_encoder_with_relative_positions(runs, tmp_path, capsys):
    """At another image size, so that SimMIM's table is resized; with RandAugment; with the average of the weights."""
    results, _ = run_protocol(
        capsys,
        *(runs['simmim'], 'finetune.py:small', tmp_path / 'finetune'),
        **as_settings({**QUICK_FINETUNE, 'image_size': 32, 'data.rand_augment': 'rand-m9-mstd0.5-inc1'}),
        finetune__average=0.5,
    )
    assert {'top1', 'average/top1', 'images'} <= results['metrics'].keys()
    first, _, _ = read_arrays(str(tmp_path / 'finetune' / 'checkpoints'), 0, ('params', 'teachers'))
    assert first['params/encoder/relative_bias_table'].shape[0] == 15 * 15 + 3
    assert any(path.startswith('teachers/average/params/encoder/') for path in first)


@pytest.mark.slow
@pytest.mark.parametrize(('base', 'options'), [('mae', ()), ('simmim', POOLED)])
def test_linear_probe(base, options, runs, tmp_path, capsys):
    """A sweep of two rates on a frozen encoder: nothing of it in the checkpoints, its checksum in the summary."""
    workdir = tmp_path / 'probe'
    settings = as_settings({**TINY, 'optim.warmup_epochs': 0.1, 'linear_probe.rates': '(0.5,8.0)'})
    results, _ = run_protocol(capsys, runs[base], 'linear_probe.py:small', workdir, *options, **settings)
    assert {'00/top1', '01/top1', 'images'} <= results['metrics'].keys()
    saved, _, _ = read_arrays(str(workdir / 'checkpoints'), None, ('params',))
    assert {path.rpartition('/')[0] for path in saved} == {f'params/objectives/probe/linear_0{i}' for i in (0, 1)}
    assert read_summary(workdir)['frozen']['encoder'] == results['checkpoint']['sha256']
    refuse(capsys, line(workdir, 'knn.py', tmp_path / 'x'), 'holds no encoder of its own', '--checkpoint')


def test_a_first_checkpoint_that_was_cut_short_is_written_again(runs, tmp_path):
    """kill -9 in the middle of it leaves an unfinished folder; the run must not begin with random weights then."""
    origin = read_origin(runs['mae'])
    overrides = [f'--config.{key}={value}' for key, value in QUICK_FINETUNE.items()]
    config, _, _ = evaluate.read_protocol(origin, f'{EVAL}/finetune.py:small', overrides)
    workdir = Workdir(tmp_path / 'run', config)
    (workdir.checkpoints / '0.orbax-checkpoint-tmp').mkdir(parents=True)
    assert half_written(workdir.path)
    begin_from(origin, config, workdir)
    workdir.close()
    saved, step, _ = read_arrays(str(workdir.checkpoints), None, ('params',))
    expected = read_weights(origin.weights).arrays['encoder/block_00/mlp/fc1/kernel']
    np.testing.assert_array_equal(saved['params/encoder/block_00/mlp/fc1/kernel'], expected)
    assert step == 0


def test_a_fine_tuning_of_another_checkpoint_is_another_run(runs, tmp_path, capsys):
    """Its folder is not gone on with, nor reported, as that of what --checkpoint names now."""
    origin = read_origin(runs['mae'], 4)
    config, _, _ = evaluate.read_protocol(origin, f'{EVAL}/finetune.py:small', [])
    workdir = Workdir(tmp_path / 'run', config)
    begin_from(origin, config, workdir)
    begin_from(origin, config, workdir)  # the same once more
    with pytest.raises(WorkdirError, match=r'holds a fine-tuning that began with .*encoder_step_4'):
        begin_from(read_origin(runs['mae']), config, workdir)
    shutil.rmtree(workdir.checkpoints)
    workdir.close()
    with pytest.raises(WorkdirError, match='began with imported weights, and has no readable checkpoint'):
        check_random_start(tmp_path / 'run')


def test_an_encoder_s_file_of_another_run_is_written_anew(runs, tmp_path):
    """As when a folder was emptied and trained in again."""
    run = tmp_path / 'run'
    shutil.copytree(runs['mae'], run)
    before = read_origin(run).describe()['sha256']
    file = read_origin(run).weights
    arrays = read_weights(file).arrays
    save_encoder(file, {name: 2 * array for name, array in arrays.items()}, {'checkpoint': 'of another'})
    assert read_origin(run).describe()['sha256'] == before


def start(command):
    """The program in a process of its own, on one device."""
    environment = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=1'}
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    arguments = [sys.executable, '-m', 'mim_jax.evaluate', *command]
    return subprocess.Popen(arguments, cwd=ROOT, env=environment, start_new_session=True, **pipes)


@pytest.mark.slow
@pytest.mark.parametrize('moment', [7, 'save'])
def test_a_killed_fine_tuning_goes_on_as_if_nothing_had_been(moment, runs, tmp_path):
    """kill -9 after a step and while a checkpoint is written; then the same command. Bit-identical to one that was let be."""
    settings = as_settings({**QUICK_FINETUNE, 'steps': 12, 'data.rand_augment': 'rand-m9-mstd0.5-inc1'})
    commands = {
        name: line(runs['mae'], 'finetune.py:small', tmp_path / name, **settings) for name in ('whole', 'killed')
    }
    ended = finish(start(commands['whole']))
    assert ended.status == 0, ended
    kill(start(commands['killed']), tmp_path / 'killed', moment)
    assert not (tmp_path / 'killed' / 'results.json').exists()
    ended = finish(start(commands['killed']))
    assert ended.status == 0, ended
    assert read_fingerprints(tmp_path / 'killed', 0) == read_fingerprints(tmp_path / 'whole', 0)
    assert read_fingerprints(tmp_path / 'killed', 12) == read_fingerprints(tmp_path / 'whole', 12)
    assert read_losses(tmp_path / 'killed') == read_losses(tmp_path / 'whole')
    results = [json.loads((tmp_path / name / 'results.json').read_text()) for name in commands]
    assert results[0]['metrics'] == results[1]['metrics']


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--config', f'{ROOT}/configs/mae.py:smoke'], ['tests nothing: its papers are ()', 'configs/eval']),
        (['--config', f'{EVAL}/knn.py:smal'], ['smal', 'small']),
        (['--config', f'{EVAL}/knn.py', '--config.encoder.width=32'], ['encoder.width is what --checkpoint holds']),
        (['--config', f'{EVAL}/knn.py', '--config.base=simmim'], ['base is what --checkpoint holds']),
        (['--config', f'{EVAL}/knn.py', '--teacher', 'ema'], ["no momentum teacher 'ema'; it has none"]),
        (['--config', f'{EVAL}/knn.py', '--step', '5'], ['5']),
        (
            ['--config', f'{EVAL}/knn.py', '--config.knn.layer=9'],
            ['knn.layer=9 must be a block from 1 to 1'],
        ),
        (['--config', f'{EVAL}/knn.py', '--config.knn.pool=max'], ["knn.pool='max' must be mean or cls"]),
        (['--config', f'{EVAL}/knn.py', '--config.papers=knn,ridge'], ['papers']),
        (['--config', f'{EVAL}/linear_probe.py:small', '--config.linear_probe.layer=9'], ['linear_probe.layer=9']),
        (['--suite', 'nowhere.py'], ["no suite file 'nowhere.py'; configs/eval/suite.py is one"]),
        (['--suite', f'{EVAL}/knn.py'], ['must define SUITE']),
    ],
)
def test_what_makes_no_sense_is_one_sentence(arguments, words, runs, tmp_path, capsys):
    command = ['--checkpoint', str(runs['mae']), *arguments, '--workdir', str(tmp_path / 'out')]
    refuse(capsys, command, *words)
    assert not (tmp_path / 'out' / 'results.json').exists()


@pytest.mark.parametrize('kind', ['nothing', 'empty', 'file'])
def test_a_checkpoint_that_is_none(kind, tmp_path, capsys):
    run = tmp_path / 'run'
    if kind == 'empty':
        run.mkdir()
    elif kind == 'file':
        run.write_text('')
    refuse(capsys, line(run, 'knn.py', tmp_path / 'x'), str(run), '--checkpoint is the folder of a run')
