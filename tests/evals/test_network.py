"""A run's classifier, read again and tested: it says what the run counted when it ended, to the last image."""

import json

import jax
import numpy as np
import pytest
from program_runs import ROOT, arguments, call, copy_run, share_compilations

from mim_jax import evaluate, train
from mim_jax.errors import DataError, WorkdirError
from mim_jax.evals.classifiers import accuracy, corruptions, ensemble
from mim_jax.evals.ledger import Ledger
from mim_jax.evals.network import Task, read_network
from mim_jax.interop.runs import read_run_config
from mim_jax.parallel.mesh import make_mesh

EVAL = ROOT / 'configs' / 'eval'
CHANCE = 10


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """{'pretrained', 'finetuned', 'probed': folder}: digits, 8, 40 and 10 steps; the probe of two learning rates."""
    share_compilations(tmp_path_factory)
    home = tmp_path_factory.mktemp('runs')
    quiet = ['--config.log.tensorboard=false', '--config.optim.warmup_epochs=0.1']

    def test(config, name, *flags):
        line = ['--checkpoint', str(home / 'pretrained'), '--workdir', str(home / name)]
        assert evaluate.main([*line, '--config', f'{EVAL / config}:small', *quiet, *flags]) == 0

    assert train.main(arguments(home / 'pretrained', {'steps': 8})) == 0
    plain = [f'--config.finetune.{key}=0' for key in ('mixup', 'cutmix', 'erase_probability')]  # compiles faster
    finetune = ['--config.steps=40', '--config.finetune.average=0.9', '--config.finetune.layer_decay=1.0', *plain]
    test('finetune.py', 'finetuned', *finetune, '--config.optim.base_lr=5e-3', '--config.data.rand_augment=')
    probe = ['--config.steps=10', '--config.batch_size=32', '--config.linear_probe.rates=1.0,2.0']
    test('linear_probe.py', 'probed', *probe)
    return {path.name: path for path in home.iterdir()}


def read_metrics(folder):
    return json.loads((folder / 'results.json').read_text())['metrics']


def run_protocol(run, name, workdir, *flags):
    line = ['--checkpoint', str(run), '--config', str(EVAL / f'{name}.py'), '--workdir', str(workdir), *flags]
    assert evaluate.main(line) == 0
    return json.loads((workdir / 'results.json').read_text())


def refuse(capsys, run, name, *flags):
    ended = call(capsys, ['--checkpoint', str(run), '--config', str(EVAL / f'{name}.py'), *flags], evaluate.main)
    assert ended.status == 2
    assert ended.err.count('error: ') == 1
    assert 'Traceback' not in ended.err + ended.out
    return ended.err


@pytest.mark.parametrize('name', ['finetuned', 'probed'])
def test_accuracy_is_what_the_run_counted(runs, tmp_path, name):
    logged = read_metrics(runs[name])
    found = run_protocol(runs[name], 'accuracy', tmp_path, '--predictions')
    logged.pop('best_on_test/top1', None)  # of several rates, in the run's own results alone
    assert found['metrics'] == logged
    assert found['metrics']['images'] == 360
    heads = {'finetuned': {'', 'average/'}, 'probed': {'00/', '01/'}}[name]
    assert set(found['metrics']) == {'images'} | {f'{head}top{k}' for head in heads for k in (1, 5)}
    assert len(found['checkpoint'].pop('digest')) == 64
    assert found['checkpoint'] == {
        'run': str(runs[name]),
        'recipe': {'finetuned': 'mae+finetune', 'probed': 'mae+linear_probe'}[name],
        'step': {'finetuned': 40, 'probed': 10}[name],
        'teacher': None,
    }
    with np.load(tmp_path / 'predictions' / 'test.npz') as saved:
        assert saved['index'].tolist() == list(range(360))
        for head in heads:
            logits = saved[f'logits/{head[:-1]}' if head else 'logits']
            assert logits.shape == (360, 10)
            assert 100 * np.mean(logits.argmax(1) == saved['label']) == pytest.approx(logged[f'{head}top1'])


def test_it_learned_something(runs):
    """Otherwise every test here would compare chance with chance."""
    assert read_metrics(runs['finetuned'])['top1'] > 2 * CHANCE


def make_task(run, workdir, devices):
    config = read_run_config(run)
    mesh, ledger = make_mesh(devices=jax.devices()[:devices]), Ledger(workdir / f'on_{devices}', {}, 0)
    return Task(config, mesh, ledger, lambda line: None, read_run_config)


def test_the_same_on_one_and_eight_devices(runs, tmp_path):
    run = runs['finetuned']
    found = []
    for devices in (1, 8):
        network = read_network(run, read_run_config(run), None, make_task(run, tmp_path, devices))
        errors, notes = corruptions(network, names=('fog', 'contrast'), severities=(1, 5), limit=100)
        found.append((accuracy(network)[0], errors, notes))
    assert found[0] == found[1]
    assert found[0][0] == read_metrics(run)
    assert found[0][1]['images'] == 100


def test_an_earlier_step_is_another_network(runs, tmp_path):
    run = runs['finetuned']
    steps = sorted(int(path.name) for path in (run / 'checkpoints').iterdir() if path.name.isdigit())
    assert steps[0] == 0
    first = read_network(run, read_run_config(run), 0, make_task(run, tmp_path, 1))
    last = read_network(run, read_run_config(run), None, make_task(run, tmp_path, 1))
    test = last.open_test()
    assert (first.step, last.step) == (0, 40)
    assert np.abs(first.logits(test, limit=20)[0]).max() < 0.1 < np.abs(last.logits(test, limit=20)[0]).max()


def test_ensemble_of_a_run_with_itself_is_the_run(runs, tmp_path):
    run = runs['finetuned']
    found = run_protocol(run, 'ensemble', tmp_path, f'--config.ensemble.with_run={run}')
    logged = read_metrics(run)
    assert {found['metrics'][f'{name}top1'] for name in ('', 'first/', 'second/')} == {logged['top1']}
    assert {found['metrics'][f'{name}top5'] for name in ('', 'first/', 'second/')} == {logged['top5']}
    assert found['notes']['second'] == {'run': str(run), 'step': 40}


def test_ensemble_averages_probabilities(runs, tmp_path):
    run = runs['finetuned']
    network = read_network(run, read_run_config(run), None, make_task(run, tmp_path, 1))
    test = network.open_test()
    labels = network.logits(test)[1]['label']
    earlier = copy_run(run, tmp_path / 'earlier', 0)
    logits = [network.logits(test)[0], network.another(earlier).logits(test)[0]]
    chances = [np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(1, keepdims=True) for x in logits]
    found, _ = ensemble(network, with_run=str(earlier))
    assert found['top1'] == pytest.approx(100 * np.mean(sum(chances).argmax(1) == labels))
    assert found['first/top1'] == pytest.approx(100 * np.mean(logits[0].argmax(1) == labels))
    assert found['second/top1'] == pytest.approx(100 * np.mean(logits[1].argmax(1) == labels))
    assert found['first/top1'] != found['second/top1']


def test_frozen_protocols_still_read_the_encoder_and_say_so(runs, tmp_path):
    found = run_protocol(runs['pretrained'], 'ridge', tmp_path)
    assert set(found['checkpoint']) == {'run', 'recipe', 'step', 'teacher', 'sha256', 'digest'}
    assert found['metrics']
    assert 'notes' not in found


def test_what_is_no_classifier_is_refused(runs, tmp_path, capsys):
    assert 'holds no classifier' in refuse(capsys, runs['pretrained'], 'accuracy', '--workdir', str(tmp_path / 'a'))
    message = refuse(capsys, runs['probed'], 'knn', '--workdir', str(tmp_path / 'b'))
    assert 'holds no encoder of its own' in message
    message = refuse(capsys, runs['probed'], 'corruptions', '--workdir', str(tmp_path / 'c'))
    assert "no classifier '', but '00', '01'" in message
    message = refuse(capsys, runs['finetuned'], 'robustness', '--workdir', str(tmp_path / 'd'))
    assert '1000 classes of ImageNet' in message
    message = refuse(capsys, runs['pretrained'], 'knn', '--predictions')
    assert 'knn tests none that is there: give it with configs/eval/accuracy.py' in message
    message = refuse(capsys, runs['finetuned'], 'accuracy', '--workdir', str(runs['finetuned']))
    assert 'holds a run with other settings' in message
    message = refuse(capsys, runs['finetuned'], 'ensemble', '--workdir', str(tmp_path / 'e'))
    assert 'ensemble.with_run' in message


@pytest.mark.parametrize(
    ('flags', 'said'),
    [
        (('--config.image_size=32',), 'the encoder was trained at 16'),
        (('--config.data.mean=0.1,0.1,0.1',), 'data.mean was (0.309'),
        (('--config.encoder.width=32',), 'encoder.width is what --checkpoint holds'),
        (('--teacher', 'average'), 'leave out --teacher'),
        (('--step', '3'), 'No checkpoint of step 3'),
        (('--config.data.source=npz', '--config.data.dir=nowhere.npz'), "no file 'nowhere.npz'"),
    ],
)
def test_contradictions_are_named(runs, tmp_path, capsys, flags, said):
    assert said in refuse(capsys, runs['finetuned'], 'accuracy', '--workdir', str(tmp_path), *flags)


def test_labels_that_were_not_trained_are_refused(runs, tmp_path):
    run = runs['finetuned']
    path = tmp_path / 'other.npz'
    np.savez(path, test_images=np.zeros((2, 16, 16, 3), np.uint8), test_labels=np.array([0, 10]))
    task = make_task(run, tmp_path, 1)
    with task.config.unlocked():
        task.config.data.source, task.config.data.dir = 'npz', str(path)
    network = read_network(run, read_run_config(run), None, task)
    with pytest.raises(DataError, match='11 classes, the training split 10'):
        accuracy(network)


def test_a_changed_frozen_encoder_is_refused(runs, tmp_path):
    run = runs['probed']
    config = read_run_config(run)
    other = tmp_path / 'encoder.safetensors'
    other.write_bytes(b'something else')
    config.linear_probe.weights = str(other)
    with pytest.raises(WorkdirError, match='was trained on a frozen encoder of checksum'):
        read_network(run, config, None, make_task(run, tmp_path, 1))
