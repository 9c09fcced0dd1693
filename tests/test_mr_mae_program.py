"""MR-MAE as a user runs it: a teacher's file that is missing, moved or changed, and what the run remembers of it."""

import hashlib
import shutil

import numpy as np
import pytest
import tower_cases
from parity_rules import draw_weights
from program_runs import ROOT, arguments, call, copy_run, fail, read_losses, read_summary, share_compilations, snapshot

from mim_jax.training.checkpoint import read_params
from mim_jax.weights.files import read_weights

CONFIG = f'{ROOT / "configs" / "mr_mae.py"}:smoke,fused'
STEPS, EVERY = 8, 4


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    share_compilations(tmp_path_factory)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A small CLIP tower as transformers saves it."""
    case = tower_cases.Case('clip', 16, 64, width=64, depth=1)
    weights = draw_weights(tower_cases.shapes_of(case))
    return tower_cases.write_folder(case, tmp_path_factory.mktemp('teacher') / 'clip', weights)


def line_of(workdir, weights, **settings):
    own = {'steps': STEPS, 'checkpoint.every_steps': EVERY, 'mr_mae.teachers': 'clip', 'mr_mae.clip_weights': weights}
    return arguments(workdir, own | settings, CONFIG)


@pytest.mark.parametrize('kind', ['clip', 'dino'])
@pytest.mark.parametrize('variant', ['', 'digits'])
def test_a_missing_file_ends_in_a_sentence_before_any_device_is_used(kind, variant, tmp_path, capsys, monkeypatch):
    """The key, the repository, the file and the place; with the file's own settings too, whose images are not here."""

    def use(*args, **kwargs):
        raise AssertionError('a device was used')

    monkeypatch.setattr('mim_jax.train.make_mesh', use)
    images = [] if variant else ['--config.data.source=synthetic', '--config.data.name=']
    spec = f'{ROOT / "configs" / "mr_mae.py"}:{",".join(filter(None, [variant, kind]))}'
    line = ['--config', spec, '--workdir', str(tmp_path / 'run'), *images]
    words = {
        'clip': (
            'mr_mae.clip_weights',
            'openai/clip-vit-base-patch16',
            "save_pretrained('weights/clip-vit-base-patch16')",
        ),
        'dino': ('mr_mae.dino_weights', 'facebook/dino-vitb16', "save_pretrained('weights/dino-vitb16')"),
    }[kind]
    said = fail(capsys, line, f'A {kind} teacher needs a file', 'model.safetensors', 'huggingface.co', *words)
    assert said.count('\n') == 1
    said = fail(
        capsys, [*line, f'--config.mr_mae.{kind}_weights={tmp_path / "nowhere"}'], str(tmp_path / 'nowhere'), *words
    )
    assert said.count('\n') == 1


def test_a_run_is_bound_to_its_teachers_file_not_to_its_place(folder, tmp_path, capsys):
    digest = hashlib.sha256((folder / 'model.safetensors').read_bytes()).hexdigest()
    whole, half = tmp_path / 'whole', tmp_path / 'half'
    ended = call(capsys, line_of(whole, folder))
    assert (ended.status, ended.err) == (0, '')
    (line,) = (line for line in ended.out.splitlines() if line.startswith('Teacher '))
    assert line.startswith(
        f'Teacher mimic_clip: clip teacher of {folder / "model.safetensors"}: width 64, depth 1, heads 1'
    )
    assert line.endswith('patch size 16, 4 x 4 patches, images of 64 x 64.')
    params, extra = read_params(str(whole / 'checkpoints'))
    assert extra['frozen'] == read_summary(whole)['frozen'] == {'mimic_clip': digest}
    assert not any('mimic_clip' in role for role in params)

    copy_run(whole, half, EVERY)
    shutil.copytree(folder, tmp_path / 'moved')
    changed = {'visual_projection.weight': read_weights(folder).arrays['visual_projection.weight'] * np.float32(2)}
    other = tower_cases.write_changed(folder, tmp_path / 'other', **changed)
    before = snapshot(half / 'checkpoints')
    other_digest = hashlib.sha256((other / 'model.safetensors').read_bytes()).hexdigest()
    words = 'teacher mimic_clip', f'was {digest}, not {other_digest}', 'Put back the file', 'another --workdir'
    assert fail(capsys, line_of(half, other), *words).count('\n') == 1
    assert snapshot(half / 'checkpoints') == before
    ended = call(capsys, line_of(half, tmp_path / 'moved'))
    assert (ended.status, ended.err) == (0, '')
    assert f'Resuming mae+mr_mae at step {EVERY} of {STEPS}' in ended.out
    assert read_losses(half) == read_losses(whole)  # to the bit


def test_the_random_teacher_has_no_file(tmp_path, capsys):
    trial = {'mr_mae.teachers': 'random', 'steps': 2, 'optim.warmup_epochs': 0.0, 'pictures.every_epochs': 1}
    ended = call(capsys, line_of(tmp_path, '', **trial))
    assert (ended.status, ended.err) == (0, '')
    assert 'Teacher mimic_random: random teacher of seed 0.\n' in ended.out
    assert read_summary(tmp_path)['frozen'] == {'mimic_random': ''}
    assert {path.name for path in (tmp_path / 'pictures').iterdir()} > {'curves.png'}
