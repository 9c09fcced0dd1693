"""Tests of a run over two processes give what one process gives: frozen encoders, fine-tuning, its classifier."""

import json

import numpy as np
import pytest
from evaluate_runs import QUICK_FINETUNE, STEPS, as_settings, line, make_runs
from pod_runs import run_pod, statuses

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The folder of a tiny MAE."""
    return make_runs(tmp_path_factory)['mae']


def evaluate(folder, command, hosts):
    ended = run_pod(folder, command, hosts, devices=4 // hosts, program='evaluate')
    assert statuses(ended) == [0] * hosts, ended
    return ended


def test_a_frozen_encoder(run, tmp_path):
    """k-NN and the ridge probe: the same numbers, and one encoder's file that both hosts read."""
    for protocol in ('knn.py:small', 'ridge.py'):
        results = {}
        for hosts in (1, 2):
            workdir = tmp_path / f'{protocol[:3]}_{hosts}'
            ended = evaluate(
                tmp_path / f'pod_{protocol[:3]}_{hosts}', line(run, protocol, workdir, data__threads=1), hosts
            )
            results[hosts] = json.loads((workdir / 'results.json').read_text())
            assert results[hosts]['hosts'] == hosts
        assert 'Wrote' not in ended[1].out
        for name, value in results[1]['metrics'].items():
            np.testing.assert_allclose(results[2]['metrics'][name], value, atol=2 * 100 / 360, err_msg=name)
    assert len(list((run / 'evals').glob(f'encoder_step_{STEPS}*'))) == 1


def test_fine_tuning_and_its_classifier(run, tmp_path):
    """Fine-tuning over two hosts begins with the encoder and ends with an accuracy; then accuracy.py tests the classifier."""
    results = {}
    for hosts in (1, 2):
        tuned = tmp_path / f'tuned_{hosts}'
        command = line(run, 'finetune.py:small', tuned, **as_settings(QUICK_FINETUNE))
        evaluate(tmp_path / f'pod_{hosts}', command, hosts)
        counted = tmp_path / f'counted_{hosts}'
        evaluate(tmp_path / f'pod_counted_{hosts}', line(tuned, 'accuracy.py', counted, data__threads=1), hosts)
        results[hosts] = [json.loads((folder / 'results.json').read_text())['metrics'] for folder in (tuned, counted)]
        assert results[hosts][0]['top1'] == results[hosts][1]['top1']
    assert abs(results[1][0]['top1'] - results[2][0]['top1']) < 2
