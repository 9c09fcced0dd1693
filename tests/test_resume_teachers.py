"""Killed runs whose teachers or statistics are more than parameters: LUT's momentum teacher, MR-MAE's frozen one."""

import hashlib

import pytest
import tower_cases
from program_runs import (
    EVERY,
    ROOT,
    STEPS,
    arguments,
    call,
    check_same_end,
    finish,
    kill,
    read_fingerprints,
    read_summary,
    saved_steps,
    share_compilations,
    start,
    wait_for_step,
)
from tiny_runs import leaves

from mim_jax import train
from mim_jax.training.checkpoint import read_params

SETTINGS = {'lut': {'lut.head_width': 16}, 'mr_mae': {'mr_mae.teachers': 'dino'}}
VARIANTS = {'lut': 'smoke', 'mr_mae': 'smoke,fused'}
HELD = {'lut': {'params', 'batch_stats', 'opt_state', 'teachers', 'step'}, 'mr_mae': {'params', 'opt_state', 'step'}}


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    share_compilations(tmp_path_factory)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A small DINO tower as transformers saves it."""
    return tower_cases.write_small('dino', tmp_path_factory.mktemp('teacher') / 'dino')


@pytest.fixture
def line_of(folder):
    """(paper, workdir) -> the command line of a tiny run."""

    def line(paper, workdir, **settings):
        own = SETTINGS[paper] | ({'mr_mae.dino_weights': folder} if paper == 'mr_mae' else {})
        return arguments(workdir, own | settings, f'{ROOT / "configs" / paper}.py:{VARIANTS[paper]}')

    return line


def digest_of(folder):
    return hashlib.sha256((folder / 'model.safetensors').read_bytes()).hexdigest()


@pytest.mark.parametrize('paper', [pytest.param('lut', marks=pytest.mark.slow), 'mr_mae'])
def test_kills_after_a_save_and_in_one_leave_no_trace(paper, line_of, folder, tmp_path):
    """The state ends bit-identical: parameters, optimizer, BatchNorm's statistics, the teacher with its own."""
    whole, killed, digest = tmp_path / 'whole', tmp_path / 'killed', digest_of(folder)
    assert finish(start(line_of(paper, whole)))[::2] == (0, '')

    kill(start(line_of(paper, killed)), killed, 2 * EVERY + 3)
    saved = saved_steps(killed)[-1]
    assert saved >= EVERY
    child = start(line_of(paper, killed))
    seen = wait_for_step(child, saved + 2)  # what the first kill left half-written is gone by now
    assert f'at step {saved} of {STEPS}' in seen
    kill(child, killed, 'save')
    assert STEPS > saved_steps(killed)[-1] >= saved
    ended = finish(start(line_of(paper, killed)))
    assert (ended.status, ended.err) == (0, '')
    assert 'Resuming mae' in ended.out

    check_same_end(killed, whole)
    first, last = read_fingerprints(killed, EVERY), read_fingerprints(killed)
    assert {path.partition('/')[0] for path in last} == HELD[paper]
    still = {path for path in last if first[path] == last[path]}
    assert still == set()  # all of it moves, so that all of it had to be restored
    assert not any('mimic_dino' in path for path in last)
    frozen = {'mimic_dino': digest} if paper == 'mr_mae' else {}
    assert read_summary(killed)['frozen'] == read_params(str(killed / 'checkpoints'))[1]['frozen'] == frozen
    assert digest_of(folder) == digest


def test_a_frozen_teacher_comes_out_of_training_as_it_went_in(line_of, folder, tmp_path, capsys, monkeypatch):
    """Split over eight devices, in the precision of a TPU's run: every byte that the program holds, and the file."""
    programs, before, make_program = [], [], train.make_program

    def keep_program(*given):
        programs.append(make_program(*given))
        before.append(leaves(programs[-1].frozen))
        return programs[-1]

    monkeypatch.setattr(train, 'make_program', keep_program)
    digest = digest_of(folder)
    settings = {'steps': EVERY, 'dtype': 'bfloat16', 'mesh.data': 4, 'mesh.fsdp': 2}
    assert call(capsys, line_of('mr_mae', tmp_path, **settings)).status == 0
    (program,), (loaded,) = programs, before
    after = leaves(program.frozen)
    assert after.keys() == loaded.keys()
    assert {str(array.dtype) for array in loaded.values()} == {'bfloat16', 'float32'}
    for path, array in loaded.items():
        assert array.tobytes() == after[path].tobytes(), path
    assert read_summary(tmp_path)['frozen'] == {'mimic_dino': digest_of(folder)} == {'mimic_dino': digest}
    assert {path.partition('/')[0] for path in read_fingerprints(tmp_path, EVERY)} == HELD['mr_mae']
