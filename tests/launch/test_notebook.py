"""launch/colab.ipynb, executed cell by cell at its smoke scale."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / 'launch' / 'colab.ipynb'


def read_cells():
    """The code of each cell."""
    cells = json.loads(NOTEBOOK.read_text())['cells']
    return [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code']


def test_it_is_stored_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())['cells']
    assert len({cell['id'] for cell in cells}) == len(cells)
    assert not any(cell.get('outputs') or cell.get('execution_count') for cell in cells)


@pytest.mark.slow
def test_every_cell_runs_at_smoke_scale(tmp_path, monkeypatch):
    monkeypatch.setenv('MIM_JAX_NOTEBOOK', 'smoke')
    monkeypatch.setenv('MIM_JAX_NOTEBOOK_WORK', str(tmp_path))
    monkeypatch.setenv('MPLBACKEND', 'agg')
    monkeypatch.chdir(NOTEBOOK.parent)
    names: dict = {}
    for number, cell in enumerate(read_cells()):
        exec(compile(cell, f'cell {number}', 'exec'), names)
    assert set(names['losses']) == set(names['accuracies']) == {'MAE', 'MAE + MFF'}
    for curve in names['losses'].values():
        assert len(curve) > 1
        assert all(value > 0 for _, value in curve)
    assert all(0 < metrics['knn'] <= 100 for metrics in names['accuracies'].values())
    drawn = {path.stem for path in names['pictures']}
    assert 'fusion_weights' in drawn
    assert any(stem != 'fusion_weights' and 'fusion' not in stem for stem in drawn)
