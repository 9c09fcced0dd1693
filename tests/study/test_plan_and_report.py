"""A study's file, its rows, and what is said of its claims; nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mim_jax.errors import ConfigError, DataError, UserError
from mim_jax.study.__main__ import main
from mim_jax.study.plan import Arm, Claim, Study, Test, check_study, read_study
from mim_jax.study.report import differences, half_width, judge, write_report
from mim_jax.study.rows import append_row, define, describe_events, find_done, read_rows
from mim_jax.study.run import select_rows

ARMS = (Arm('base', 'configs/mae.py:smoke'), Arm('mff', 'configs/mff.py:smoke'), Arm('mto', 'configs/mto.py:smoke'))


def make_study(**changes) -> Study:
    return Study(**{'name': 's', 'about': 'About.', 'arms': ARMS, 'seeds': (0, 1, 2), **changes})


def make_claim(metric='probe/ridge', better='mff', than='base') -> Claim:
    return Claim('helps', 'table 1', metric, better, than, 'yes')


def make_rows(study: Study, values: dict[str, list[float]], metric='probe/ridge') -> list[dict]:
    """One row for each arm and seed, with a curve of three points that ends at the value."""
    return [
        {
            'study': study.name,
            'arm': arm,
            'seed': seed,
            'defined': define(study, study.arm(arm), ()),
            'metrics': {metric: value},
            'curves': {metric: [[1.0, 10.0], [2.0, (10.0 + value) / 2], [3.0, value]]},
            'versions': {'jax': '0.10.2'},
            'devices': {'kind': 'cpu'},
            'commit': 'abcdef0123',
        }
        for arm, found in values.items()
        for seed, value in enumerate(found)
    ]


def test_the_shipped_study_reads_and_every_question_of_it_has_its_arms():
    study = read_study(str(Path(__file__).parents[2] / 'configs' / 'study' / 'cifar10.py'))
    assert len(study.seeds) >= 3
    assert {'mae', 'mae+src', 'mff', 'lut', 'mr_mae', 'simmim', 'mto', 'mff+mto', 'lut+mff'} <= {
        a.name for a in study.arms
    }


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'arms': ()}, 'needs an arm'),
        ({'arms': (ARMS[0], ARMS[0])}, "two arms called 'base'"),
        ({'tests': (Test('t', 'c', 'm'), Test('t', 'c', 'm'))}, "two tests called 't'"),
        ({'arms': (Arm('a'),)}, 'needs a config, or from_scratch'),
        ({'arms': (Arm('a', 'c', teacher=('b', 'k')), Arm('b', 'c'))}, 'must stand above it'),
        ({'arms': (ARMS[0], Arm('s', from_scratch='base'), Arm('t', from_scratch='s'))}, 'nothing is pre-trained'),
        ({'claims': (make_claim(than='nobody'),)}, 'names no arm: nobody'),
        ({'claims': (make_claim('rauc/probe/ridge', than=('base', 'mto')),)}, 'RAUC compares two arms'),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        check_study(make_study(**changes), 'study.py')


def test_files_that_are_no_study(tmp_path: Path):
    with pytest.raises(ConfigError, match='There is no study file'):
        read_study(str(tmp_path / 'none.py'))
    (tmp_path / 'empty.py').write_text('')
    with pytest.raises(ConfigError, match='must define STUDY'):
        read_study(str(tmp_path / 'empty.py'))
    (tmp_path / 'broken.py').write_text('STUDY = 1 / 0')
    with pytest.raises(ConfigError, match='ZeroDivisionError'):
        read_study(str(tmp_path / 'broken.py'))


def test_seeds_come_one_after_another_and_rows_that_are_done_are_left_out():
    study = make_study(seeds=(0, 1))
    rows = select_rows(study, {('base', 0), ('mto', 1)}, [], [])
    assert rows == [('mff', 0), ('mto', 0), ('base', 1), ('mff', 1)]
    assert select_rows(study, set(), ['mto'], [7]) == [('mto', 7)]
    with pytest.raises(UserError, match="no arm 'mfff'"):
        select_rows(study, set(), ['mfff'], [])


def test_a_row_with_other_settings_is_not_taken_for_done(tmp_path: Path):
    study, path = make_study(), tmp_path / 'study.jsonl'
    for row in make_rows(study, {'base': [40.0]}):
        append_row(path, row)
    append_row(path, {'study': 'another', 'arm': 'base', 'seed': 0})
    rows = read_rows(path, 's')
    assert find_done(rows, study, (), path) == {('base', 0)}
    with pytest.raises(UserError, match="arm 'base', seed 0, that was made with another overrides"):
        find_done(rows, make_study(shared=('--config.steps=9',)), (), path)
    with pytest.raises(UserError, match='another overrides'):
        find_done(rows, study, ('--config.steps=9',), path)
    path.write_text(path.read_text() + '{"study": "s", "ar')
    with pytest.raises(DataError, match='line 3 is not JSON'):
        read_rows(path, 's')


def test_a_journal_becomes_last_values_first_weights_and_probe_curves():
    events = [
        {'step': 0, 'epoch': 0.0, 'untrained/ridge': 20.0, 'watch/neck/last/weight_00': 0.25},
        {'step': 5, 'epoch': 0.5, 'probe/ridge': 30.0, 'loss/total': 1.0, 'lr': 0.1, 'loss/pixels': 'nan'},
        {'step': 9, 'epoch': 1.0, 'probe/ridge': 35.0, 'loss/total': 0.5, 'watch/neck/last/weight_00': 0.5},
    ]
    found = describe_events(events, ('loss/', 'probe/', 'untrained/', 'watch/'))
    assert found['metrics'] == {
        'untrained/ridge': 20.0,
        'watch/neck/last/weight_00': 0.5,
        'probe/ridge': 35.0,
        'loss/total': 0.5,
    }
    assert found['first'] == {'watch/neck/last/weight_00': 0.25}
    assert found['curves'] == {'probe/ridge': [[0.5, 30.0], [1.0, 35.0]]}


def test_the_interval_is_students():
    """Table: t of 97.5 % with 2 degrees of freedom is 4.302653."""
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert half_width([1.0]) == float('inf')


@pytest.mark.parametrize(
    ('values', 'said'),
    [
        ([1.0, 1.1, 0.9], 'confirmed'),
        ([-1.0, -1.1, -0.9], 'refuted'),
        ([1.0, -1.0, 0.5], 'not confirmed'),
        ([1.0, 1.0], 'open: 2 of 3 seeds'),
    ],
)
def test_a_claim_is_judged_by_its_interval(values, said):
    assert judge(values) == said


def test_differences_are_paired_by_seed_and_the_best_of_several_is_chosen_by_its_mean():
    study = make_study()
    rows = make_rows(study, {'base': [40.0, 30.0, 50.0], 'mff': [41.0, 32.0], 'mto': [44.0, 31.0, 0.0]})
    assert differences(rows, make_claim()) == ({0: 1.0, 1: 2.0}, 'base')
    # of the seeds that all have, 0 and 1, mto's mean is 37.5 and base's 35
    assert differences(rows, make_claim(than=('base', 'mto'))) == ({0: -3.0, 1: 1.0}, 'mto')
    assert differences(rows, make_claim(than=30.0)) == ({0: 11.0, 1: 2.0}, '30')
    assert differences([], make_claim(than=('base', 'mto'))) == ({}, 'base or mto')


def test_rauc_of_a_claim_is_the_ratio_of_the_areas_above_the_baselines_first_score():
    """Curves from 10 over (10 + v)/2 to v: the area above 10 is proportional to v - 10."""
    rows = make_rows(make_study(), {'base': [30.0], 'mff': [40.0]})
    by_seed, _ = differences(rows, make_claim('rauc/probe/ridge'))
    np.testing.assert_allclose(by_seed[0], (40 - 10) / (30 - 10) - 1)


def test_the_report_says_what_is_open_and_what_is_not(tmp_path: Path, capsys):
    study = make_study(claims=(make_claim(), make_claim(better='mto')))
    rows = make_rows(study, {'base': [40.0, 41.0, 42.0], 'mff': [45.0, 46.1, 46.9], 'mto': [40.0]})
    text = write_report(study, rows)
    assert '| base | 3 | 41.00 ± 2.48 |' in text  # 4.302653 / sqrt(3)
    assert '| mto | 1 | 40.00 |' in text
    assert '| mff above base: helps | table 1 | probe/ridge | 5.000 ± 0.248 | 3 | confirmed | yes |' in text
    assert '| 0.000 | 1 | open: 1 of 3 seeds |' in text

    file = tmp_path / 'study.py'
    file.write_text(
        'from mim_jax.study.plan import Arm, Study\n'
        "STUDY = Study('s', 'About.', (Arm('base', 'configs/mae.py:smoke'), Arm('mff', 'configs/mff.py:smoke')), (0,))\n"
    )
    results = tmp_path / 'study.jsonl'
    line = [str(file), '--results', str(results), '--report', '--out', str(tmp_path)]
    with pytest.raises(UserError, match='has no row of s'):
        main(line)
    results.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    assert main(line) == 0
    assert '| base | 3 |' in capsys.readouterr().out
    assert (tmp_path / 'study_s.md').read_text().startswith('# Study s')
    assert (tmp_path / 'study_s.png').read_bytes().startswith(b'\x89PNG')


def test_mistyped_options_are_told(tmp_path: Path):
    with pytest.raises(ConfigError, match='--reprot is no option'):
        main(['configs/study/cifar10.py', '--reprot'])
    with pytest.raises(UserError, match='--jobs 0 must be'):
        main(['configs/study/cifar10.py', '--jobs', '0'])
