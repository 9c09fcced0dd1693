"""Damaged checkpoints: every altered value is noticed, the previous checkpoint is used, and nothing is deleted."""

import random
import re
import shutil

import jax.numpy as jnp
import pytest
from checkpoint_cases import abstract, assert_identical, damage, flip, largest_file, make_state, truncate

from mim_jax.errors import CheckpointError
from mim_jax.training.checkpoint import Checkpoints


def test_every_flipped_byte_of_the_data_is_noticed(make_copy):
    """Twelve places in the largest data file, one bit or all eight: the newest is restored exactly, or given up."""
    place = random.Random(0)
    given_up = 0
    for trial in range(12):
        saved, lines = make_copy(), []
        data = largest_file(saved / '20' / 'state')
        damage(data, flip(place.randrange(data.stat().st_size), 0xFF if trial % 2 else 1 << place.randrange(8)))
        tree, step, _ = Checkpoints(saved, report=lines.append).restore(abstract(make_state()))
        assert_identical(tree, make_state(step))
        assert len(lines) == {20: 0, 10: 2}[step], lines
        given_up += step == 10
    assert given_up >= 10


def test_a_silently_altered_array_is_named(checkpoints, saved, lines):
    """A checkpoint whose files are all readable, but hold another value than the seal says."""
    other = Checkpoints(saved.parent / 'other')
    state = make_state(20)
    state['params']['encoder']['cls_token'] = state['params']['encoder']['cls_token'].at[0, 0, 5].add(1e-7)
    other.save(20, state)
    other.close()
    shutil.rmtree(saved / '20' / 'state')
    shutil.copytree(saved.parent / 'other' / '20' / 'state', saved / '20' / 'state')
    assert checkpoints.restore(abstract(state))[1] == 10
    assert 'params/encoder/cls_token was altered' in lines[0]


@pytest.mark.parametrize('kind', ['flip', 'truncate', 'delete'])
def test_any_damaged_file_is_noticed_or_harmless(template, make_copy, kind):
    """Each file of the newest checkpoint in turn: what is restored is exactly one of the two states that were saved."""
    files = sorted(p.relative_to(template) for p in (template / '20').rglob('*') if p.is_file())
    assert len(files) > 8
    outcome = {}
    for file in files:
        saved, lines = make_copy(), []
        if kind == 'delete':
            (saved / file).unlink()
        else:
            half = (saved / file).stat().st_size // 2
            damage(saved / file, flip(half) if kind == 'flip' else truncate(half))
        tree, step, _ = Checkpoints(saved, report=lines.append).restore(abstract(make_state()))
        assert_identical(tree, make_state(step))
        assert len(lines) == {20: 0, 10: 2}[step], lines
        assert not any('\n' in line for line in lines)
        outcome[str(file)] = step
    assert outcome['20/seal/metadata'] == 10
    assert outcome['20/state/_METADATA'] == 10
    assert outcome['20/state/manifest.ocdbt'] == 10
    assert outcome[str(largest_file(template / '20').relative_to(template))] == 10


def test_an_altered_but_valid_seal_is_noticed(checkpoints, saved, lines):
    seal = saved / '20' / 'seal' / 'metadata'
    assert seal.read_text().count('160') == 1
    seal.write_text(seal.read_text().replace('160', '161'))  # images_seen
    assert checkpoints.restore(abstract(make_state()))[1:] == (10, {'images_seen': 80})
    assert 'its list of arrays was altered' in lines[0]


def test_damaged_newest_is_reported_moved_aside_and_saved_again(checkpoints, saved, lines):
    damage(largest_file(saved / '20'), truncate(100))
    assert checkpoints.restore(abstract(make_state()))[1] == 10
    assert len(lines) == 2
    assert f'Checkpoint {saved / "20"} is damaged: its arrays cannot be read' in lines[0]
    assert f'aside as {saved / "damaged_20"}' in lines[1]
    assert checkpoints.steps() == [10]
    checkpoints.save(20, make_state(20))
    checkpoints.wait()
    assert checkpoints.steps() == [10, 20]
    assert (saved / 'damaged_20' / 'seal').exists()
    assert_identical(checkpoints.restore(abstract(make_state()))[0], make_state(20))
    damage(largest_file(saved / '20'), truncate(0))
    assert checkpoints.restore(abstract(make_state()))[1] == 10
    assert (saved / 'damaged_20_2').exists()


def test_all_damaged_is_an_error_that_moves_nothing(checkpoints, saved):
    damage(saved / '20' / 'seal' / 'metadata', flip(200))
    shutil.rmtree(saved / '10' / 'state')
    for _ in range(2):  # the next start must not begin from nothing
        with pytest.raises(CheckpointError, match=r'step 20: its list of arrays.*step 10: its arrays cannot be read'):
            checkpoints.restore(abstract(make_state()))
        assert checkpoints.steps() == [10, 20]


def without(state, *path):
    node = state
    for key in path[:-1]:
        node = node[key]
    del node[path[-1]]
    return state


@pytest.mark.parametrize(
    ('other', 'message'),
    [
        (
            lambda: make_state(width=32),
            'opt_state/0/mu/encoder/block_00/mlp/fc1/kernel is float32[64, 256]; in this run it is',
        ),
        (lambda: make_state() | {'step': jnp.float32(0)}, 'step is int32[]; in this run it is float32[]'),
        (lambda: make_state() | {'teachers': {'ema': jnp.zeros(3)}}, 'lacks teachers/ema, which this run has'),
        (
            lambda: make_state() | {'flags': {'mask': make_state()['flags']['mask']}},
            'holds flags/codes, which this run does not',
        ),
    ],
    ids=['shape', 'dtype', 'missing', 'extra'],
)
def test_another_model_is_refused_and_nothing_is_touched(checkpoints, saved, lines, other, message):
    with pytest.raises(CheckpointError, match=re.escape(message)):
        checkpoints.restore(abstract(other()))
    assert sorted(p.name for p in saved.iterdir()) == ['10', '20']
    assert lines == []
