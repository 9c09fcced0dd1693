"""configs/eval/transfer.py, its first row, on the embedded digits: all points of the grid are run, the table has the best."""

import itertools
import json

import numpy as np
import pytest
from evaluate_runs import EVAL, QUICK_FINETUNE, save_arbitrary
from program_runs import call, share_compilations, snapshot

from mim_jax import evaluate
from mim_jax.config import from_json

SUITE = """
from dataclasses import replace
from runpy import run_path

first = run_path('{eval}/transfer.py')['SUITE'][0]
grid = {{key: values[:{points}] for key, values in first.grid.items()}}
SUITE = (replace(first, config='{eval}/finetune.py', grid=grid),)
"""
DIGITS = {'data.source': 'digits', 'data.name': '', 'dtype': 'float32', 'steps': 40, 'checkpoint.every_steps': 0}
PLAIN = {f'finetune.{key}': 0.0 for key in ('mixup', 'cutmix', 'erase_probability')}  # compiles faster, as does:
PLAIN |= {
    'encoder.drop_path': 0.0,
    'finetune.layer_decay': 1.0,
    'finetune.head_deviation': 0.02,
    'optim.lr_scaling': 'none',
}


@pytest.mark.parametrize('points', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_grid_end_to_end(points, tmp_path_factory, tmp_path, capsys):
    share_compilations(tmp_path_factory)
    run, suite, folder = save_arbitrary('mae', tmp_path / 'run'), tmp_path / 'transfer.py', tmp_path / 'table'
    suite.write_text(SUITE.format(eval=EVAL, points=points))
    settings = QUICK_FINETUNE | DIGITS | PLAIN
    overrides = [f'--config.{key}={value}' for key, value in settings.items()]
    command = ['--checkpoint', str(run), '--suite', str(suite), '--workdir', str(folder), *overrides]
    ended = call(capsys, command, evaluate.main)
    assert (ended.status, ended.err) == (0, ''), ended
    (row,) = json.loads((folder / 'results.json').read_text())
    assert (row['name'], row['metric'], row['paper']) == ('CIFAR-10', 'top1', 'LUT 99.1, MFF 98.6')

    found = {}
    for path in folder.glob('CIFAR-10-*'):
        optim = from_json((path / 'config.json').read_text()).optim
        found[optim.base_lr, optim.weight_decay] = json.loads((path / 'results.json').read_text())['metrics']['top1']
    grid = [*itertools.product((5e-4, 1e-3, 2.5e-3, 5e-3)[:points], (0.05, 0.1, 0.3)[:points])]
    assert found.keys() == {*grid}
    values = [found[point] for point in grid]
    assert row['values'] == values
    assert len({*values}) > 1
    assert row['best'] == max(values) > row['mean'] == pytest.approx(np.mean(values))
    assert row['deviation'] == pytest.approx(np.std(values, ddof=1))
    result = f'{row["mean"]:.2f} ± {row["deviation"]:.2f}, best on test {row["best"]:.2f}'
    assert f'| CIFAR-10 | top1 | {result} | {len(grid)} | LUT' in (folder / 'results.md').read_text()

    before = snapshot(folder)
    assert call(capsys, command, evaluate.main).out.count('Done before.') == len(grid)
    assert snapshot(folder) == before
