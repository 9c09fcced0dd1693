"""`python -m mim_jax.export` on trained runs: what is written, what is said, what is refused."""

import json

import numpy as np
import pytest
from program_runs import share_compilations, snapshot
from safetensors import safe_open
from trained_runs import STEPS, refuse, run_export, save_random_run, train_run

from mim_jax import export
from mim_jax.training.checkpoint import read_arrays
from mim_jax.weights.files import read_weights


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """{base: workdir}."""
    share_compilations(tmp_path_factory)
    folders = {base: tmp_path_factory.mktemp(base) / 'run' for base in ('mae', 'bootmae')}
    train_run(folders['mae'], 'mae')
    save_random_run(folders['bootmae'], 'bootmae')  # to compile its step would take longer than all the rest
    return folders


def saved_arrays(run, prefix='params/', step=None):
    arrays, _, _ = read_arrays(str(run / 'checkpoints'), step, ('params', 'teachers'))
    return {path.removeprefix(prefix): array for path, array in arrays.items() if path.startswith(prefix)}


def test_our_own_file(runs, tmp_path, capsys):
    said = run_export(capsys, runs['mae'], 'safetensors', tmp_path / 'all.safetensors', '--part', 'full')
    assert f'mae at step {STEPS}: full, ' in said
    assert 'Read back: arrays differ by 0.0e+00, features differ by at most 0.0e+00' in said
    assert 'on 2 embedded scans.' in said
    expected = saved_arrays(runs['mae'])
    with safe_open(tmp_path / 'all.safetensors', 'np') as file:
        assert set(file.keys()) == set(expected)
        for path, array in expected.items():
            np.testing.assert_array_equal(file.get_tensor(path), array)
        about = file.metadata()
    assert (about['recipe'], about['step'], about['part'], about['format']) == ('mae', str(STEPS), 'full', 'mim_jax')
    assert json.loads(about['config'])['encoder']['width'] == 16
    assert about['commit']


def test_an_encoder_alone_of_an_earlier_step(runs, tmp_path, capsys):
    said = run_export(capsys, runs['bootmae'], 'safetensors', tmp_path / 'e.safetensors', '--step', '4')
    assert 'bootmae at step 4: encoder, ' in said
    assert 'Left out, not part of it: all of decoder/features (' in said
    arrays = read_weights(tmp_path / 'e.safetensors').arrays
    expected = saved_arrays(runs['bootmae'], step=4)
    assert set(arrays) == {path for path in expected if path.startswith('encoder/')}
    for path, array in arrays.items():
        np.testing.assert_array_equal(array, expected[path])


def test_a_teacher_borrows_what_it_does_not_hold(runs, tmp_path, capsys):
    said = run_export(capsys, runs['bootmae'], 'safetensors', tmp_path / 't.safetensors', '--part', 'teacher')
    assert (
        'The teacher holds only what is read through it; from the student: encoder/norm/bias, encoder/norm/scale.'
        in said
    )
    arrays = read_weights(tmp_path / 't.safetensors').arrays
    student = saved_arrays(runs['bootmae'])
    teacher = saved_arrays(runs['bootmae'], 'teachers/bootmae/params/')
    assert set(arrays) == {path for path in student if path.startswith('encoder/')}
    assert teacher
    for path, array in arrays.items():
        np.testing.assert_array_equal(array, teacher.get(path, student[path]))
    assert any((student[path] != array).any() for path, array in teacher.items())


@pytest.mark.parametrize('base', ['mae', 'bootmae'])
def test_a_file_for_timm(base, runs, tmp_path, capsys):
    out = tmp_path / 'timm.safetensors'
    said = run_export(capsys, runs[base], 'timm', out)
    assert "timm.create_model('vit_base_patch16_224', img_size=16, patch_size=4, embed_dim=16, depth=1," in said
    assert f'checkpoint_path={str(out)!r})' in said
    assert 'less the mean (' in said
    state = read_weights(out).arrays
    assert state['pos_embed'].shape == (1, 17, 16)
    assert not state['pos_embed'][0, 0].any()
    expected = saved_arrays(runs[base])
    np.testing.assert_array_equal(state['blocks.0.mlp.fc1.weight'], expected['encoder/block_00/mlp/fc1/kernel'].T)
    if base == 'bootmae':
        query, value = (expected[f'encoder/block_00/attn/{name}_bias'] for name in 'qv')
        np.testing.assert_array_equal(state['blocks.0.attn.qkv.bias'], [*query, *np.zeros(16), *value])


@pytest.mark.parametrize(
    ('part', 'name', 'kind'), [('encoder', 'ViTModel', 'vit'), ('full', 'ViTMAEForPreTraining', 'vit_mae')]
)
def test_a_folder_for_transformers(part, name, kind, runs, tmp_path, capsys):
    out = tmp_path / 'hf'
    said = run_export(capsys, runs['mae'], 'hf', out, '--part', part)
    assert f"transformers.{name}.from_pretrained('{out}'" in said
    config = json.loads((out / 'config.json').read_text())
    assert (config['architectures'], config['model_type'], config['layer_norm_eps']) == ([name], kind, 1e-6)
    assert (config['hidden_size'], config['intermediate_size'], config['image_size']) == (16, 64, 16)
    if part == 'full':
        assert (config['decoder_hidden_size'], config['mask_ratio'], config['norm_pix_loss']) == (16, 0.75, True)
    processor = json.loads((out / 'preprocessor_config.json').read_text())
    assert processor['image_mean'] == pytest.approx([0.309] * 3)
    assert processor['size'] == {'height': 16, 'width': 16}
    weights = read_weights(out)
    assert weights.metadata['format'] == 'pt'
    assert sorted(path.name for path in out.iterdir()) == [
        'config.json',
        'model.safetensors',
        'preprocessor_config.json',
    ]


def test_nothing_is_overwritten_unasked(runs, tmp_path, capsys):
    out = tmp_path / 'e.safetensors'
    out.write_text('precious')
    line = ['--checkpoint', str(runs['mae']), '--format', 'safetensors', '--out', str(out)]
    refuse(capsys, export.main, line, f'--out {out} exists', '--force')
    assert out.read_text() == 'precious'
    run_export(capsys, runs['mae'], 'safetensors', out, '--force')
    assert read_weights(out).arrays
    assert list(tmp_path.iterdir()) == [out]
    (tmp_path / 'folder').mkdir()
    line[-1] = str(tmp_path / 'folder')
    refuse(capsys, export.main, [*line, '--force'], 'a name that ends in .safetensors')
    (tmp_path / 'folder.safetensors').mkdir()
    line[-1] = str(tmp_path / 'folder.safetensors')
    refuse(capsys, export.main, [*line, '--force'], 'is a folder')
    refuse(
        capsys,
        export.main,
        ['--checkpoint', str(runs['mae']), '--format', 'hf', '--out', str(out), '--force'],
        'is a file',
    )


def test_the_run_itself_is_not_touched(runs, tmp_path, capsys):
    before = snapshot(runs['mae'])
    run_export(capsys, runs['mae'], 'hf', tmp_path / 'hf')
    assert snapshot(runs['mae']) == before


def test_an_image_of_ones_own(runs, tmp_path, capsys):
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(tmp_path / 'i.png')
    said = run_export(
        capsys, runs['mae'], 'safetensors', tmp_path / 'o.safetensors', '--image', str(tmp_path / 'i.png')
    )
    assert 'features differ by at most 0.0e+00' in said
    assert f'on {tmp_path / "i.png"}.' in said
    line = ['--checkpoint', str(runs['mae']), '--format', 'timm', '--out', str(tmp_path / 'p.safetensors')]
    refuse(capsys, export.main, [*line, '--image', str(tmp_path / 'none.png')], 'There is no image')


def test_what_cannot_be_written(runs, tmp_path, capsys):
    def line(run, kind, *more):
        out = tmp_path / ('x' if kind == 'hf' else 'x.safetensors')
        return ['--checkpoint', str(run), '--format', kind, '--out', str(out), *more]

    refuse(capsys, export.main, line(tmp_path, 'timm'), 'has no config.json', '--workdir of mim_jax.train')
    refuse(capsys, export.main, line(runs['mae'], 'timm', '--step', '5'), 'No checkpoint of step 5', '[4, 8]')
    refuse(capsys, export.main, line(runs['mae'], 'timm', '--part', 'teacher'), 'mae trains without a momentum teacher')
    refuse(
        capsys,
        export.main,
        line(runs['bootmae'], 'timm', '--part', 'teacher', '--teacher', 'ema'),
        "no teacher 'ema', but bootmae",
    )
    refuse(capsys, export.main, line(runs['bootmae'], 'hf', '--part', 'full'), 'no model with the whole of bootmae')
    refuse(capsys, export.main, line(runs['mae'], 'timm', '--config.seed=1'), '--config.seed=1')
    assert list(tmp_path.iterdir()) == []
