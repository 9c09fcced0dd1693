"""Suites: one table of several protocols and seeds; what was done is done again only where anything has changed."""

import json
import shutil

import numpy as np
import pytest
from evaluate_runs import EVAL, QUICK_FINETUNE, make_runs, refuse
from program_runs import call, snapshot

from mim_jax import evaluate
from mim_jax.evals import suite


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    return make_runs(tmp_path_factory)


SUITE = """
from mim_jax.evals.suite import Row

SUITE = (
    Row('k-NN', '{eval}/knn.py:small', 'knn', ('--config.data.threads=1',), seeds=(0, 1), paper='MAE 11.2'),
    Row('cached', '{eval}/cached_probe.py:small,pooled', 'cached_probe', {quick}, seeds=(0, 1)),
    Row('block 9', '{eval}/linear_probe.py:small,bootmae', 'top1'),
)
"""
SHORT = {'cached_probe.rates': '(8.0,)', 'epochs': 3.0, 'optim.warmup_epochs': 1.0, 'data.threads': 1}
QUICK_CACHED = tuple(f'--config.{key}={value}' for key, value in SHORT.items())


def test_a_suite_is_a_table_and_what_is_done_is_not_done_again(runs, tmp_path, capsys):
    """Two rows of two seeds, and one that this encoder does not allow, which stands there with its reason."""
    file = tmp_path / 'own_suite.py'
    file.write_text(SUITE.format(eval=EVAL, quick=QUICK_CACHED))
    command = ['--checkpoint', str(runs['mae']), '--suite', str(file), '--workdir', str(tmp_path / 'table')]
    ended = call(capsys, command, evaluate.main)
    assert (ended.status, ended.err) == (0, ''), ended
    knn, cached, refused = json.loads((tmp_path / 'table' / 'results.json').read_text())
    assert (knn['name'], knn['metric'], knn['paper']) == ('k-NN', 'knn', 'MAE 11.2')
    for row in (knn, cached):
        assert len(row['values']) == 2
        assert row['mean'] == pytest.approx(np.mean(row['values']))
        assert row['deviation'] == pytest.approx(np.std(row['values'], ddof=1))
    assert knn['deviation'] == 0  # nothing in it is random
    assert 'linear_probe.layer=9 must be a block from 1 to 1' in refused['left_out']
    table = (tmp_path / 'table' / 'results.md').read_text()
    assert f'| k-NN | knn | {knn["mean"]:.2f} ± 0.00 | 2 | MAE 11.2 |' in table
    assert '| block 9 | top1 | not run: linear_probe.layer=9' in table
    assert table in ended.out
    before = snapshot(tmp_path / 'table')
    again = call(capsys, command, evaluate.main)
    assert again.status == 0
    assert again.out.count('Done before.') == 4
    assert snapshot(tmp_path / 'table') == before
    changed = call(
        capsys, [*command, '--config.cached_probe.layer=1', '--config.cached_probe.norm=none'], evaluate.main
    )
    assert changed.status == 2  # a key that one of the protocols has not: nothing runs
    other = call(capsys, [*command, '--step', '4'], evaluate.main)
    assert (other.status, other.out.count('Done before.')) == (0, 0)  # the same settings of another checkpoint
    assert 'step 4.' in (tmp_path / 'table' / 'results.md').read_text()


COMPARED = """
from mim_jax.evals.suite import Row

SUITE = (
    Row('k-NN', '{eval}/knn.py:small', 'knn', ('--config.data.threads=1', '--config.knn.pool=mean')),
    Row('scratch', '{eval}/finetune.py:scratch', 'top1', {quick}, from_scratch=True),
)
"""


def test_several_runs_stand_in_one_table_and_share_their_control(runs, tmp_path, capsys):
    file = tmp_path / 'compared.py'
    quick = tuple(f'--config.{key}={value}' for key, value in QUICK_FINETUNE.items())
    file.write_text(COMPARED.format(eval=EVAL, quick=quick))
    twin = tmp_path / 'twin'
    shutil.copytree(runs['mae'], twin)
    command = ['--checkpoint', str(runs['mae']), str(twin), '--suite', str(file), '--workdir', str(tmp_path / 'both')]
    ended = call(capsys, command, evaluate.main)
    assert (ended.status, ended.err, ended.out.count('Done before.')) == (0, '', 1)
    own = [json.loads((run / 'evals' / 'compared' / 'results.json').read_text()) for run in (runs['mae'], twin)]
    assert own[0][1]['values'] == own[1][1]['values']
    table = (tmp_path / 'both' / 'results.md').read_text()
    knn, scratch = own[0]
    assert f'{runs["mae"]}: mae, step 8 | {twin}: mae, step 8' in table
    assert f'| k-NN | knn | 1 | {knn["mean"]:.2f} | {knn["mean"]:.2f} |' in table
    assert f'| scratch | top1 | 1 | {scratch["mean"]:.2f} | {scratch["mean"]:.2f} |' in table
    assert table in ended.out
    refuse(capsys, command[:-2], 'Several runs are compared by a --suite')


def test_a_reason_of_several_lines_is_one_cell():
    assert suite.describe_result({'left_out': 'Other settings:\n  batch_size: 512 -> 64\nUse another.'}) == (
        'not run: Other settings: batch_size: 512 -> 64 Use another.'
    )


def test_a_suite_with_mistakes(runs, tmp_path, capsys):
    rows = {
        'two rows of one name': "Row('a', '{eval}/knn.py', 'knn'), Row('a', '{eval}/ridge.py', 'ridge')",
        'has no knnn, but knn': "Row('a', '{eval}/knn.py:small', 'knnn', ('--config.data.threads=1',))",
        'must define SUITE': '1, 2',
    }
    for number, (words, text) in enumerate(rows.items()):
        file = tmp_path / f'suite_{number}.py'
        file.write_text(f'from mim_jax.evals.suite import Row\nSUITE = ({text.format(eval=EVAL)},)\n')
        command = ['--checkpoint', str(runs['mae']), '--suite', str(file), '--workdir', str(tmp_path / f'{number}')]
        refuse(capsys, command, words)
