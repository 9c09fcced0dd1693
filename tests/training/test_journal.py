"""The journal survives kill -9 and a resume, and is standard JSON; a summary is replaced whole."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import WorkdirError
from mim_jax.training import journal


def journal_lines(workdir):
    return (workdir / 'metrics.jsonl').read_text().splitlines()


def test_journal_writes_one_whole_line_per_event(tmp_path):
    written = journal.Journal(tmp_path / 'new')
    written.write(1, {'loss/total': np.float32(0.5), 'lr': jnp.float32(0.25)})
    # Read before close: the line is out as soon as write returns.
    assert [json.loads(line) for line in journal_lines(tmp_path / 'new')] == [
        {'step': 1, 'loss/total': 0.5, 'lr': 0.25}
    ]


def test_resume_drops_later_events_and_a_torn_line(tmp_path):
    written = journal.Journal(tmp_path)
    for step in (10, 20, 30):
        written.write(step, {'loss/total': float(step)})
    written.write(20, {'probe/knn': 61.0})
    written.close()
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 40, "loss/to')  # kill -9 in the middle of a write
    resumed = journal.Journal(tmp_path, resume_step=20)
    assert [json.loads(line)['step'] for line in journal_lines(tmp_path)] == [10, 20, 20]
    assert resumed.last('loss/total') == 20.0
    resumed.write(30, {'loss/total': 3.0})
    assert resumed.last_values() == {'step': 30, 'loss/total': 3.0, 'probe/knn': 61.0}
    assert resumed.last('absent') is None
    assert [event['step'] for event in journal.read_events(tmp_path / 'metrics.jsonl')] == [10, 20, 20, 30]
    assert not list(tmp_path.glob('*.tmp'))


def test_without_a_resume_step_every_whole_event_stays(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n{"step": 2}\n{"st')
    written = journal.Journal(tmp_path)
    written.write(3, {})
    assert [json.loads(line)['step'] for line in journal_lines(tmp_path)] == [1, 2, 3]


def test_damage_in_the_middle_is_reported(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(WorkdirError, match='line 2'):
        journal.Journal(tmp_path)


def test_non_finite_values_are_strings_in_standard_json(tmp_path):
    written = journal.Journal(tmp_path)
    written.write(1, {'a': math.nan, 'b': -math.inf, 'c': np.float32(np.inf)})

    def refuse(constant):
        raise AssertionError(f'{constant} is not JSON')

    event = json.loads(journal_lines(tmp_path)[0], parse_constant=refuse)
    assert event == {'step': 1, 'a': 'nan', 'b': '-inf', 'c': 'inf'}
    assert math.isnan(float(event['a']))


def test_summary_is_replaced_whole(tmp_path):
    path = tmp_path / 'summary.json'
    path.write_text('old')
    journal.write_summary(path, status='finished', metrics={'probe/knn': np.float64(61.5), 'lr': math.nan}, mesh=(2, 1))
    assert json.loads(path.read_text()) == {
        'status': 'finished',
        'metrics': {'probe/knn': 61.5, 'lr': 'nan'},
        'mesh': [2, 1],
    }
    with pytest.raises(TypeError):  # what cannot be written leaves the old summary alone
        journal.write_summary(path, bad=object())
    assert json.loads(path.read_text())['status'] == 'finished'
