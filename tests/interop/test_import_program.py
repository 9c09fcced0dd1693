"""`python -m mim_jax.import_weights`: a run that begins with weights from elsewhere, and goes on from them."""

import json

import numpy as np
import pytest
from program_runs import read_losses, share_compilations
from trained_runs import STEPS, refuse, run_export, run_import, settings_of, train_run

from mim_jax import import_weights
from mim_jax.errors import WorkdirError
from mim_jax.training.checkpoint import read_arrays
from mim_jax.weights.files import read_weights, write_safetensors


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A trained run of MAE."""
    share_compilations(tmp_path_factory)
    folder = tmp_path_factory.mktemp('source') / 'run'
    train_run(folder, 'mae')
    return folder


def params_of(run, step=None, part='params'):
    arrays, step, extra = read_arrays(str(run / 'checkpoints'), step, (part,))
    return arrays, step, extra


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


@pytest.mark.parametrize('kind', ['safetensors', 'hf'])
def test_a_run_goes_on_from_what_another_exported(source, kind, tmp_path, capsys):
    file = tmp_path / f'w.{kind}'
    run_export(capsys, source, kind, file, '--part', 'full')
    said = run_import(capsys, file, tmp_path / 'run', 'mae')
    assert 'loaded      36 arrays: ' in said
    assert 'python -m mim_jax.train --config' in said
    found, step, extra = params_of(tmp_path / 'run')
    assert (step, extra['dataset']) == (0, None)
    assert_equal(found, params_of(source)[0])

    told = train_run(tmp_path / 'run', 'mae')
    assert 'Resuming mae at step 0' in told
    losses, before = read_losses(tmp_path / 'run'), read_losses(source)
    assert len(losses) == STEPS
    assert np.mean(list(losses.values())) < np.mean(list(before.values()))  # it did not begin anew
    assert params_of(tmp_path / 'run')[2]['dataset'] == params_of(source)[2]['dataset']


def test_an_imported_run_is_bound_to_its_first_dataset(source, tmp_path, capsys):
    run_export(capsys, source, 'safetensors', tmp_path / 'w.safetensors', '--part', 'full')
    images = np.random.default_rng(0).integers(0, 256, (1437, 16, 16, 3), dtype=np.uint8)  # as many as there are digits
    settings = {'data__source': 'npz', 'data__dir': tmp_path / 'images.npz'}
    run_import(capsys, tmp_path / 'w.safetensors', tmp_path / 'run', 'mae', **settings)  # there is no dataset yet
    np.savez(tmp_path / 'images.npz', train_images=images)
    train_run(tmp_path / 'run', 'mae', **settings)
    np.savez(tmp_path / 'images.npz', train_images=images[:-1])
    with pytest.raises(WorkdirError, match=f'at step {STEPS} of a run on .* but the dataset is now'):
        train_run(tmp_path / 'run', 'mae', **settings)


def test_an_encoder_alone_leaves_the_decoder_as_initialised(source, tmp_path, capsys):
    run_export(capsys, source, 'timm', tmp_path / 'w.safetensors')
    said = run_import(capsys, tmp_path / 'w.safetensors', tmp_path / 'run', 'mae')
    assert 'missing     all of decoder/pixels (19 arrays): kept as initialised' in said
    found, expected = params_of(tmp_path / 'run')[0], params_of(source)[0]
    for path, array in found.items():
        assert (array == expected[path]).all() or not path.startswith('params/encoder/'), path
    assert (found['params/decoder/pixels/head/kernel'] != expected['params/decoder/pixels/head/kernel']).any()
    assert found['params/decoder/pixels/norm/scale'].min() == 1.0


def test_part_encoder_leaves_aside_a_decoder_that_is_there(source, tmp_path, capsys):
    run_export(capsys, source, 'hf', tmp_path / 'w', '--part', 'full')
    said = run_import(capsys, tmp_path / 'w', tmp_path / 'run', 'mae', '--part', 'encoder')
    assert 'not part of what is imported' in said
    assert 'loaded      17 arrays: encoder 17\n' in said
    found, expected = params_of(tmp_path / 'run')[0], params_of(source)[0]
    assert (found['params/encoder/cls_token'] == expected['params/encoder/cls_token']).all()
    assert (found['params/decoder/pixels/mask_token'] != expected['params/decoder/pixels/mask_token']).any()


def test_blocks_are_stacked_for_a_scanned_encoder(source, tmp_path, capsys):
    run_export(capsys, source, 'timm', tmp_path / 'w.safetensors')
    run_import(capsys, tmp_path / 'w.safetensors', tmp_path / 'run', 'mae', encoder__scan='true')
    found, expected = params_of(tmp_path / 'run')[0], params_of(source)[0]
    stacked = found['params/encoder/blocks/mlp/fc1/kernel']
    np.testing.assert_array_equal(stacked[0], expected['params/encoder/block_00/mlp/fc1/kernel'])
    run_export(capsys, tmp_path / 'run', 'timm', tmp_path / 'back.safetensors')
    assert_equal(read_weights(tmp_path / 'back.safetensors').arrays, read_weights(tmp_path / 'w.safetensors').arrays)


def test_teachers_become_copies_of_the_student(source, tmp_path, capsys):
    """An encoder of MAE, its keys' biases taken away, as the student and the teacher of BootMAE."""
    run_export(capsys, source, 'timm', tmp_path / 'w.safetensors')
    state = dict(read_weights(tmp_path / 'w.safetensors').arrays)
    rows = state['pos_embed'].reshape(1, 17, 2, 8)[:, :, ::-1].reshape(1, 17, 16)  # rows first
    bias = np.array(state['blocks.0.attn.qkv.bias'])
    bias[16:32] = 0
    write_safetensors(tmp_path / 'b', state | {'pos_embed': rows, 'blocks.0.attn.qkv.bias': bias}, {})
    run_import(capsys, tmp_path / 'b', tmp_path / 'run', 'bootmae')
    params, _, _ = params_of(tmp_path / 'run')
    teacher, _, _ = params_of(tmp_path / 'run', part='teachers')
    assert any(path.endswith('mlp/fc1/kernel') for path in teacher)
    for path, array in teacher.items():
        np.testing.assert_array_equal(array, params[path.replace('teachers/bootmae/', '')], err_msg=path)
    np.testing.assert_array_equal(params['params/encoder/block_00/attn/v_bias'], bias[32:])


def test_what_is_wrong_is_said_before_anything_is_written(source, tmp_path, capsys):
    run_export(capsys, source, 'timm', tmp_path / 'w.safetensors')

    def line(*more, base='mae', weights=tmp_path / 'w.safetensors', workdir=tmp_path / 'run', **settings):
        return [*settings_of(base, **settings), '--weights', str(weights), '--workdir', str(workdir), *more]

    refuse(capsys, import_weights.main, line(weights=tmp_path / 'none'), 'There is no file')
    refuse(
        capsys, import_weights.main, line(encoder__width=32), 'its encoder has width 16 and depth 1', 'wants 32 and 1'
    )
    refuse(capsys, import_weights.main, line('--layout', 'simmim'), '--layout simmim', 'mae, hf, mmselfsup, timm')
    refuse(capsys, import_weights.main, line(image_size=32), 'positions of 4 x 4 patches', 'encoder.positions=learned')
    refuse(capsys, import_weights.main, line(encoder__widht=32), 'encoder.widht')
    refuse(capsys, import_weights.main, line(base='bootmae'), 'its keys have a bias', 'not the fixed positions')
    run_export(capsys, source, 'hf', tmp_path / 'hf')
    config = json.loads((tmp_path / 'hf' / 'config.json').read_text())
    (tmp_path / 'hf' / 'config.json').write_text(json.dumps(config | {'num_attention_heads': 4}))
    refuse(capsys, import_weights.main, line(weights=tmp_path / 'hf'), 'num_attention_heads 4 (here 2)')
    assert not (tmp_path / 'run').exists()
    refuse(capsys, import_weights.main, line(workdir=source), 'holds checkpoints already')


@pytest.mark.slow
def test_untrained_probes_are_not_of_the_imported_encoder(source, tmp_path, capsys):
    probe = {'probe__every_epochs': 0.1, 'probe__train_images': 96, 'probe__test_images': 64}
    state = {path: array for path, array in params_of(source)[0].items() if path.startswith('params/encoder/')}
    noise = {path.removeprefix('params/'): np.ones_like(array) for path, array in state.items()}
    write_safetensors(tmp_path / 'w.safetensors', noise, {})
    run_import(capsys, tmp_path / 'w.safetensors', tmp_path / 'run', 'mae', **probe)
    train_run(tmp_path / 'run', 'mae', **probe)
    train_run(tmp_path / 'fresh', 'mae', **probe)
    values = [json.loads((tmp_path / name / 'summary.json').read_text())['metrics'] for name in ('run', 'fresh')]
    assert values[0]['untrained/knn'] == values[1]['untrained/knn']


def test_positions_are_resized_for_larger_images(source, tmp_path, capsys):
    run_export(capsys, source, 'timm', tmp_path / 'w.safetensors')
    said = run_import(
        capsys, tmp_path / 'w.safetensors', tmp_path / 'run', 'mae', image_size=32, encoder__positions='learned'
    )
    assert 'resized     pos_embed: from 4 x 4 to 8 x 8 patches' in said
    assert params_of(tmp_path / 'run')[0]['params/encoder/pos_embed'].shape == (1, 64, 16)
