"""What a test found so far: taken over after a kill, by the same test of the same checkpoint and by no other."""

import json
import zlib

import numpy as np
import pytest
from classifier_cases import make_network

from mim_jax.evals.classifiers import corruptions
from mim_jax.evals.ledger import Ledger, read_parts, watch_batches
from mim_jax.evals.network import Network
from mim_jax.training.journal import JOURNAL, read_events

SEAL = {'checkpoint': {'digest': 'a'}, 'settings': 'b'}
OPTIONS = {'names': ('fog', 'contrast'), 'severities': (1, 5)}
DATA = {'source': 'digits', 'eval_split': 'test[:25]'}


def count_of(ledger, part):
    """(value, whether it was counted now)."""
    counted = []

    def count():
        counted.append(part)
        return {'error': len(part) / 3}, {'logits': np.full((2, 3), len(part))}

    return ledger.measure(part, count)['error'], bool(counted)


def test_a_killed_test_goes_on_behind_its_last_part(tmp_path):
    ledger = Ledger(tmp_path, SEAL, 5)
    assert count_of(ledger, 'fog 1') == (5 / 3, True)
    with (tmp_path / JOURNAL).open('a') as file:
        file.write('{"step": 5, "part": "fog 2", "err')  # killed while it was writing
    again = Ledger(tmp_path, SEAL, 5)
    assert count_of(again, 'fog 1') == (5 / 3, False)
    assert count_of(again, 'fog 2') == (5 / 3, True)
    events = read_events(tmp_path / JOURNAL)
    assert [event.get('part') for event in events] == [None, 'fog 1', 'fog 2']
    assert {event['step'] for event in events} == {5}
    assert not (tmp_path / 'predictions').exists()


@pytest.mark.parametrize('change', [{'settings': 'c'}, {'checkpoint': {'digest': 'c'}}, None])
def test_another_test_begins_anew_and_so_does_one_that_ended(change, tmp_path):
    ledger = Ledger(tmp_path, SEAL, 5)
    count_of(ledger, 'fog 1')
    if change is None:
        ledger.end({'top1': 50.0})
    again = Ledger(tmp_path, SEAL | (change or {}), 5)
    assert count_of(again, 'fog 1') == (5 / 3, True)
    if change:  # the first is then no longer the last one
        assert read_parts(tmp_path / JOURNAL, SEAL) is None
    assert len(read_events(tmp_path / JOURNAL)) == (4 if change else 5)


def test_a_part_without_its_predictions_is_counted_again_where_they_are_asked_for(tmp_path):
    count_of(Ledger(tmp_path, SEAL, 5), 'fog 1')
    for counted in (True, False):
        assert count_of(Ledger(tmp_path, SEAL, 5, predictions=True), 'fog 1') == (5 / 3, counted)
    with np.load(tmp_path / 'predictions' / 'fog_1.npz') as saved:
        assert saved['logits'].tolist() == [[5.0] * 3] * 2
        assert 'digest' in str(saved['test'])
    (tmp_path / 'predictions' / 'fog_1.npz').unlink()
    assert count_of(Ledger(tmp_path, SEAL, 5, predictions=True), 'fog 1') == (5 / 3, True)


def test_corruptions_go_on_where_they_were_killed(tmp_path, monkeypatch):
    seen = []

    def draw_logits(network, source, *args, **kwargs):
        if len(seen) == stop:
            raise KeyboardInterrupt
        seen.append(source.description)
        rng = np.random.default_rng(zlib.crc32(source.description.encode()))
        return rng.normal(size=(25, 10)), {'label': np.arange(25) % 10, 'index': np.arange(25)}

    def test(folder):
        return corruptions(make_network(tmp_path / folder, 10, DATA)[0], **OPTIONS)

    monkeypatch.setattr(Network, 'logits', draw_logits)
    stop = 5
    whole = test('whole')
    seen, stop = [], 3
    with pytest.raises(KeyboardInterrupt):
        test('killed')
    stop = 5
    assert test('killed') == whole
    assert len(seen) == len(set(seen)) == 5  # clean and four corrupted ones, none of them twice
    parts = read_parts(tmp_path / 'killed' / JOURNAL, {'test': 'of tests'})
    assert [*parts] == ['clean', 'fog 1', 'fog 5', 'contrast 1', 'contrast 5']
    assert parts['fog 5']['error'] == whole[1]['errors']['fog'][5]


def test_predictions_of_corrupted_images(tmp_path):
    network, _ = make_network(tmp_path, 10, DATA, predictions=True)
    _, notes = corruptions(network, **OPTIONS)
    for name, errors in notes['errors'].items():
        for severity, error in errors.items():
            with np.load(tmp_path / 'predictions' / f'{name}_{severity}.npz') as saved:
                wrong = saved['logits'].argmax(1) != saved['label']
                assert 100 * wrong.mean() == pytest.approx(error)
                assert saved['index'].tolist() == list(range(25))


def test_a_long_count_says_how_far_it_is():
    batches = [{'weight': np.array([1.0, 1.0])}, {'weight': np.array([1.0, 1.0])}, {'weight': np.array([1.0, 0.0])}]
    lines: list[str] = []
    assert [*watch_batches(batches, 5, lines.append, every=0.0)] == batches
    assert lines == ['2 of 5 images', '4 of 5 images']
    del lines[:]
    assert [*watch_batches(batches, 5, lines.append)] == batches
    assert not lines  # within half a minute


def test_the_journal_is_plain_json(tmp_path):
    count_of(Ledger(tmp_path, SEAL, 5), 'fog 1')
    lines = (tmp_path / JOURNAL).read_text().splitlines()
    assert json.loads(lines[0]) == {'step': 5, 'test': SEAL}
    assert json.loads(lines[1]) == {'step': 5, 'part': 'fog 1', 'error': 5 / 3, 'predictions': False}
