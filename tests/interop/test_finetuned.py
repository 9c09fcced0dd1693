"""Fine-tuned classifiers in and out, by the programs: every array, the number of classes, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop_cases import draw_arrays, shapes_of
from program_runs import share_compilations
from trained_runs import refuse, run_export, run_import, save_random_run, settings_of

from mim_jax import export, import_weights
from mim_jax.command import read_config
from mim_jax.evals.accuracy import make_predict
from mim_jax.interop.compare import nest_under, network_outputs
from mim_jax.interop.formats import formats_of, recognise
from mim_jax.interop.runs import build_recipe, choose_arrays, read_run_config, saved_recipe
from mim_jax.interop.transfer import export_arrays, import_arrays
from mim_jax.training.checkpoint import Checkpoints, read_arrays
from mim_jax.training.state import TrainState
from mim_jax.training.workdir import Workdir
from mim_jax.weights.files import read_weights, write_safetensors

FINETUNE, CLASSES = 'eval/finetune', 7
HEAD = 'objectives/classify/head'
RUNS = {  # name: settings
    'mean': {'finetune__average': 0.9},
    'cls': {'finetune__pool': 'cls'},
    'simmim': {'base': 'simmim', 'encoder__positions': 'fixed'},
}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """{name: folder of a run that never had a dataset, with CLASSES classes}."""
    share_compilations(tmp_path_factory)
    folders = {name: tmp_path_factory.mktemp(name) / 'run' for name in RUNS}
    for name, settings in RUNS.items():
        save_random_run(folders[name], FINETUNE, CLASSES, **settings)
    return folders


def params_of(run, prefix='params/'):
    arrays, _, _ = read_arrays(str(run / 'checkpoints'), None, ('params', 'teachers'))
    return {path.removeprefix(prefix): array for path, array in arrays.items() if path.startswith(prefix)}


def assert_equal(found, expected):
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


# -- out -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(('name', 'norm', 'other'), [('mean', 'fc_norm', 'norm'), ('cls', 'norm', 'fc_norm')])
def test_a_classifier_for_timm(name, norm, other, runs, tmp_path, capsys):
    out = tmp_path / 'm.safetensors'
    said = run_export(capsys, runs[name], 'timm', out, '--part', 'full')
    assert 'VisionTransformer with its classifier' in said
    assert 'Read back: arrays differ by 0.0e+00, logits differ by at most 0.0e+00' in said
    assert 'no place in' not in said
    assert f'num_classes={CLASSES}' in said
    assert ("global_pool='avg'" in said) == (name == 'mean')
    state, params = read_weights(out).arrays, params_of(runs[name])
    assert {f'{norm}.weight', f'{norm}.bias'} <= state.keys()
    assert f'{other}.weight' not in state
    np.testing.assert_array_equal(state['head.weight'], params[f'{HEAD}/linear/kernel'].T)
    ours = f'{HEAD}/norm' if name == 'mean' else 'encoder/norm'
    np.testing.assert_array_equal(state[f'{norm}.bias'], params[f'{ours}/bias'])
    np.testing.assert_array_equal(state['pos_embed'][:, 1:], params['encoder/pos_embed'])


def test_a_classifier_with_relative_positions_is_a_beit(runs, tmp_path, capsys):
    said = run_export(capsys, runs['simmim'], 'timm', tmp_path / 'm.safetensors', '--part', 'full')
    assert 'timm Beit with its classifier' in said
    assert "init_values=0.1, global_pool='avg'" in said
    state = read_weights(tmp_path / 'm.safetensors').arrays
    assert {'fc_norm.weight', 'head.bias', 'rel_pos_bias.relative_position_bias_table'} <= state.keys()
    assert 'mask_token' not in state


def test_the_averaged_network(runs, tmp_path, capsys):
    run_export(
        capsys, runs['mean'], 'safetensors', tmp_path / 'a.safetensors', '--part', 'full', '--teacher', 'average'
    )
    assert_equal(read_weights(tmp_path / 'a.safetensors').arrays, params_of(runs['mean'], 'teachers/average/params/'))


def test_an_encoder_without_a_norm_goes_out_in_our_names_alone(runs, tmp_path, capsys):
    said = run_export(capsys, runs['mean'], 'safetensors', tmp_path / 'e.safetensors')
    assert 'Read back: arrays differ by 0.0e+00, features differ by at most 0.0e+00' in said
    assert f'Left out, not part of it: all of {HEAD} (4 arrays).' in said
    assert not any('encoder/norm/' in path for path in read_weights(tmp_path / 'e.safetensors').arrays)
    for kind, name in (('timm', 'x.safetensors'), ('hf', 'x')):
        line = ['--checkpoint', str(runs['mean']), '--format', kind, '--out', str(tmp_path / name)]
        words = "The encoder of mae+finetune has no final norm, whose place the classifier's takes", '--part full'
        refuse(capsys, export.main, line, *words)


def test_an_encoder_with_its_norm_goes_anywhere(runs, tmp_path, capsys):
    said = run_export(capsys, runs['cls'], 'timm', tmp_path / 'e.safetensors')
    assert 'num_classes=0' in said
    state = read_weights(tmp_path / 'e.safetensors').arrays
    assert 'norm.weight' in state
    assert 'head.weight' not in state
    run_export(capsys, runs['cls'], 'hf', tmp_path / 'hf')


def test_what_cannot_be_written(runs, tmp_path, capsys):
    line = ['--checkpoint', str(runs['cls']), '--out', str(tmp_path / 'x'), '--format', 'hf', '--part', 'full']
    refuse(capsys, export.main, line, 'no model with the whole of mae+finetune', '--format timm')
    line = ['--checkpoint', str(runs['mean']), '--out', str(tmp_path / 'x.safetensors'), '--format', 'safetensors']
    refuse(capsys, export.main, [*line, '--teacher', 'average'], '--teacher average has no effect on --part encoder')
    weights = tmp_path / 'encoder.safetensors'
    write_safetensors(weights, {'w': np.zeros(1, np.float32)}, {})
    save_random_probe(tmp_path / 'probe', weights)
    for part in ('encoder', 'full'):
        line = ['--checkpoint', str(tmp_path / 'probe'), '--out', str(tmp_path / 'x.safetensors'), '--format', 'timm']
        words = 'This run holds a linear classifier and no encoder', str(weights), 'export the run'
        refuse(capsys, export.main, [*line, '--part', part], *words)
    assert not list(tmp_path.glob('x*'))


@pytest.mark.parametrize('name', ['simmim', 'cls'])
def test_the_logits_compared_are_those_of_the_recipe(name, runs):
    """class_logits pools by itself; here beside the recipe's own forward pass, as evaluations run it."""
    saved, _, _ = read_arrays(str(runs[name] / 'checkpoints'))
    recipe = saved_recipe(read_run_config(runs[name]), saved)
    arrays, _ = choose_arrays(saved, 'full', None)
    params = {role: nest_under(arrays, f'{role}/') for role in ('encoder', HEAD)}
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    images = ((pixels / 255 - np.asarray(recipe.mean)) / np.asarray(recipe.std)).astype(np.float32)
    state = TrainState(jnp.asarray(8), params, {}, (), {}, jax.random.key(0))
    expected = make_predict(recipe)(state, {}, pixels)['']
    assert expected.shape == (3, CLASSES)
    np.testing.assert_allclose(network_outputs(recipe, arrays, images), expected, atol=1e-5)


# -- in --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', RUNS)
def test_a_classifier_comes_back_whole(name, runs, tmp_path, capsys):
    """Of any number of classes; the dataset of the run to be is not asked."""
    run_export(capsys, runs[name], 'timm', tmp_path / 'm.safetensors', '--part', 'full')
    said = run_import(capsys, tmp_path / 'm.safetensors', tmp_path / 'run', FINETUNE, **RUNS[name])
    assert f'{HEAD} {2 if name == "cls" else 4}\n' in said
    assert 'missing' not in said
    assert_equal(params_of(tmp_path / 'run'), params_of(runs[name]))


def test_a_released_file_s_position_of_cls_becomes_part_of_its_token(runs, tmp_path, capsys):
    run_export(capsys, runs['mean'], 'timm', tmp_path / 'm.safetensors', '--part', 'full')
    state = dict(read_weights(tmp_path / 'm.safetensors').arrays)
    state['pos_embed'] = state['pos_embed'] + np.float32(0.5)
    write_safetensors(tmp_path / 'w.safetensors', state, {})
    said = run_import(capsys, tmp_path / 'w.safetensors', tmp_path / 'run', FINETUNE)
    assert 'the position of CLS: added to the CLS token' in said
    found, expected = params_of(tmp_path / 'run'), params_of(runs['mean'])
    np.testing.assert_allclose(found['encoder/cls_token'], expected['encoder/cls_token'] + 0.5, atol=1e-6)


def test_a_pre_trained_file_begins_a_fine_tuned_run(tmp_path, capsys):
    """All of MAE: the norm and the decoder are left aside, the classifier starts afresh."""
    save_random_run(tmp_path / 'mae', 'mae', encoder__positions='learned')
    run_export(capsys, tmp_path / 'mae', 'hf', tmp_path / 'hf', '--part', 'full')
    said = run_import(capsys, tmp_path / 'hf', tmp_path / 'run', FINETUNE, finetune__classes=CLASSES)
    assert "vit.layernorm.bias, vit.layernorm.weight: the classifier's own norm takes its place" in said
    assert f'Made for {CLASSES} classes; set finetune.classes where the dataset has others.' in said
    assert 'decoder.decoder_pos_embed' in said
    assert f'missing     all of {HEAD} (4 arrays): kept as initialised' in said
    found, expected = params_of(tmp_path / 'run'), params_of(tmp_path / 'mae')
    assert found[f'{HEAD}/linear/bias'].shape == (CLASSES,)
    encoder = {path: array for path, array in found.items() if path.startswith('encoder/')}
    assert_equal(encoder, {path: expected[path] for path in encoder})


def test_mcmae_s_classifier_has_its_authors_names():
    """Alpha-VL/ConvMAE models_convvit.py: fc_norm and head, as in MAE."""
    settings = {'base': 'mcmae', 'image_size': 32, 'encoder__patch_size': 16, 'encoder__positions': 'fixed'}
    _, spec, *overrides = settings_of(FINETUNE, **settings)
    recipe = build_recipe(read_config(spec, overrides)[0], CLASSES)
    like = shapes_of(recipe)
    form = next(form for form in formats_of(recipe, like) if form.layout.name == 'Alpha-VL/ConvMAE with its classifier')
    arrays = draw_arrays(recipe)
    state, left_out = export_arrays(arrays, form, recipe)
    assert left_out == []
    assert {'fc_norm.weight', 'head.weight', 'patch_embed1.proj.weight', 'pos_embed'} <= state.keys()
    assert not any('decode' in name for name in state)
    found, named = recognise(state, formats_of(recipe, like))
    back, account = import_arrays(named, found, recipe, like)
    assert (found, account.missing, account.skipped) == (form, [], {})
    assert_equal(back, arrays)


def test_what_does_not_fit(runs, tmp_path, capsys):
    run_export(capsys, runs['mean'], 'timm', tmp_path / 'm.safetensors', '--part', 'full')

    def line(**settings):
        return [
            *settings_of(FINETUNE, **settings), '--weights', str(tmp_path / 'm.safetensors'), '--workdir', str(tmp_path / 'x')
        ]  # fmt: skip

    refuse(capsys, import_weights.main, line(finetune__classes=5), 'head.bias', '(5,), this would be (7,)')
    refuse(capsys, import_weights.main, line(finetune__pool='cls'), 'encoder/norm/scale: missing', 'fc_norm.weight')
    assert not (tmp_path / 'x').exists()


# -- without files -----------------------------------------------------------------------------------------------------------
def test_a_run_with_frozen_teachers_is_written_without_their_files(tmp_path, capsys):
    """Its config names a file that is gone; it is what the exported file says, too."""
    mimic = {'papers': 'mr_mae', 'encoder__depth': 2, 'mr_mae__teachers': 'random', 'mr_mae__clip_weights': ''}
    save_random_run(tmp_path / 'run', 'mae', **mimic)
    file = tmp_path / 'run' / 'config.json'
    text = file.read_text()
    assert '"random"' in text
    file.write_text(text.replace('"random"', '"clip"').replace('"clip_weights": ""', '"clip_weights": "/gone"'))
    assert '/gone' in file.read_text()
    run_export(capsys, tmp_path / 'run', 'timm', tmp_path / 'e.safetensors')
    run_export(capsys, tmp_path / 'run', 'safetensors', tmp_path / 'f.safetensors', '--part', 'full')
    assert_equal(read_weights(tmp_path / 'f.safetensors').arrays, params_of(tmp_path / 'run'))
    assert '/gone' in read_weights(tmp_path / 'f.safetensors').metadata['config']
    line = ['--checkpoint', str(tmp_path / 'run'), '--format', 'hf', '--part', 'full', '--out', str(tmp_path / 'hf')]
    refuse(capsys, export.main, line, 'neck/added', '--part encoder')


def save_random_probe(workdir, weights):
    """The folder of a linear probe of an encoder that is in `weights`: like the real one, but for its one array."""
    _, spec, *overrides = settings_of('eval/linear_probe', linear_probe__weights=weights)
    folder = Workdir(workdir, read_config(spec, overrides)[0])
    checkpoints = Checkpoints(str(folder.checkpoints))
    kernel = np.zeros((16, CLASSES), np.float32)
    checkpoints.save(8, {'params': {'objectives': {'probe': {'linear_00': {'kernel': kernel}}}}}, {'dataset': None})
    checkpoints.close()
    folder.close()
