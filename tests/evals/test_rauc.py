"""RAUC against MTO's Table 2 and against areas worked by hand."""

import json
import subprocess
import sys

import pytest

from mim_jax.errors import DataError
from mim_jax.evals.rauc import main, rauc, read_curve

# Linear probe at 400 and 800 epochs: baseline, ours, printed RAUC, Eq. 6 as printed, the constant that gives the printed.
TABLE_2 = {
    'mae_l': ((68.5, 72.7), (72.8, 74.1), 1.20, 2.36, 56.4),
    'mae_b': ((57.4, 63.9), (63.6, 64.8), 1.23, 2.09, 45.2),
    'bootmae_b': ((63.8, 65.4), (66.1, 66.8), 1.22, 3.31, 56.2),
    'conmim_b': ((32.2, 39.2), (38.7, 40.3), 1.20, 2.09, 16.7),
}
EPOCHS = (400, 800)


@pytest.mark.parametrize('row', TABLE_2)
def test_table_2(row):
    baseline, ours, printed, literal, constant = TABLE_2[row]
    assert rauc(EPOCHS, baseline, EPOCHS, ours, *EPOCHS, 'start') == pytest.approx(literal, abs=0.005)
    assert rauc(EPOCHS, baseline, EPOCHS, ours, *EPOCHS, constant) == pytest.approx(printed, abs=0.005)


def test_equal_curves_give_one():
    epochs, scores = [100, 200, 400, 800], [50.0, 57.0, 61.0, 64.0]
    for reference in ('first', 'start', 12.5):
        assert rauc(epochs, scores, epochs, scores, 200, 700, reference) == pytest.approx(1, abs=1e-12)


def test_curves_with_different_epochs_are_joined_exactly():
    # Baseline: 0 at 0, 10 at 10. Ours: 0 at 0, 8 at 4, 8 at 10. Areas over 2..8: baseline 30, ours (4+8)/2*2 + 8*4 = 44.
    assert rauc([0, 10], [0, 10], [0, 4, 10], [0, 8, 8], 2, 8) == pytest.approx(44 / 30)
    # Reference 'start': c = S1(2) = 2 takes 12 off both areas.
    assert rauc([0, 10], [0, 10], [0, 4, 10], [0, 8, 8], 2, 8, 'start') == pytest.approx(32 / 18)


def test_first_keeps_its_constant_when_the_range_moves():
    epochs, baseline, ours = [100, 200, 400], [40.0, 50.0, 56.0], [45.0, 54.0, 58.0]
    assert rauc(epochs, baseline, epochs, ours, 200, 400) == pytest.approx((14 + 18) / (10 + 16))
    assert rauc(epochs, baseline, epochs, ours, 200, 400, 'start') == pytest.approx((4 + 8) / (0 + 6))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'stop': 900}, "baseline's curve runs from epoch 100 to 400 and does not cover 100 to 900"),
        ({'epochs2': [200, 400], 'scores2': [1.0, 2.0]}, 'Our curve runs from epoch 200'),
        ({'start': 400}, 'start=400 is not below stop=400'),
        ({'scores1': [5.0, 5.0]}, 'stays at or below the reference 5'),
        ({'scores1': [5.0, 4.0]}, 'stays at or below the reference 5'),
        ({'epochs1': [400, 100]}, 'increasing epochs'),
        ({'epochs1': [100, 100]}, 'increasing epochs'),
        ({'scores2': [1.0, float('nan')]}, 'Our curve holds a value that is not finite'),
        ({'scores2': [1.0]}, '2 epochs and 1 scores'),
        ({'reference': 'last'}, "no reference 'last'"),
    ],
)
def test_what_cannot_be_computed_is_named(change, message):
    case = {
        'epochs1': [100, 400],
        'scores1': [1.0, 2.0],
        'epochs2': [100, 400],
        'scores2': [2.0, 3.0],
        'start': 100,
        'stop': 400,
        'reference': 'first',
    }
    with pytest.raises(DataError, match=message):
        rauc(**{**case, **change})


def write_journal(path, scores):
    events = [{'step': 10 * epoch, 'epoch': float(epoch), 'loss/total': 1.0} for epoch, _ in scores]
    events += [{'step': 10 * epoch, 'epoch': float(epoch), 'probe/knn': score} for epoch, score in scores]
    path.write_text(''.join(json.dumps(event) + '\n' for event in sorted(events, key=lambda event: event['step'])))
    return str(path)


def test_program_reads_two_journals(tmp_path, capsys):
    baseline = write_journal(tmp_path / 'a.jsonl', [(100, 40.0), (200, 50.0), (400, 56.0)])
    ours = write_journal(tmp_path / 'b.jsonl', [(100, 45.0), (200, 54.0), (400, 58.0)])
    assert read_curve(baseline, 'probe/knn') == ([100.0, 200.0, 400.0], [40.0, 50.0, 56.0])
    command = ['--baseline', baseline, '--ours', ours, '--key', 'probe/knn', '--start', '200', '--stop', '400']
    assert main(command) == 0
    first, start = capsys.readouterr().out.splitlines()
    assert first.startswith('RAUC 1.2308 ')
    assert 'at epoch 100 (40; reference=first)' in first
    assert start.startswith('RAUC 2.0000 ')
    assert 'at epoch 200 (50; reference=start)' in start


def test_program_ends_with_a_sentence_where_the_key_is_missing(tmp_path):
    journal = write_journal(tmp_path / 'a.jsonl', [(100, 40.0)])
    command = [sys.executable, '-m', 'mim_jax.evals.rauc', '--baseline', journal, '--ours', journal]
    command += ['--key', 'probe/linear', '--start', '100', '--stop', '200']
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 2
    assert answer.stderr == f"error: {journal} has no values of 'probe/linear' with an epoch; its probes: probe/knn.\n"
