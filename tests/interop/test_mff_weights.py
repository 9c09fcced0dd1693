"""MFF's weights: mmpretrain's files in, our own in and out, an encoder that is a plain ViT; a whole ViTMAE is refused."""

import numpy as np
import pytest
from interop_cases import assert_same, draw_arrays, find_format, make_recipe, make_state, shapes_of
from program_runs import share_compilations
from trained_runs import refuse, run_export, run_import, save_random_run, settings_of

from mim_jax import export, import_weights
from mim_jax.errors import Refused
from mim_jax.interop.formats import export_format, formats_of, recognise
from mim_jax.interop.runs import build_recipe, choose_arrays, read_run_config
from mim_jax.interop.transfer import export_arrays, import_arrays
from mim_jax.methods import BASES
from mim_jax.training.checkpoint import read_arrays
from mim_jax.weights.files import WeightsError, read_weights, write_safetensors

FOUR = 'encoder.depth=4'  # of which 0, 1, 2 and 3 are fused
TWO = {
    'mae__decoder_width': 16,
    'mae__decoder_depth': 1,
    'mae__decoder_heads': 2,
    'encoder__depth': 2,
}  # blocks, both fused


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run of MFF on MAE with arbitrary weights."""
    share_compilations(tmp_path_factory)
    folder = tmp_path_factory.mktemp('mff') / 'run'
    save_random_run(folder, 'mff', **TWO)
    return folder


# -- without running anything ------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', ['mmpretrain', 'mim_jax'])
@pytest.mark.parametrize('base', ['mae', 'pixmim'])
def test_there_and_back(base, name):
    recipe = make_recipe(base, 'papers=mff', FOUR)
    state, form, arrays = make_state(recipe, name)
    assert_same(arrays, draw_arrays(recipe))
    assert {f'neck/last/projection_0{i}/kernel' for i in range(3)} < arrays.keys()
    found, named = recognise(state, formats_of(recipe, shapes_of(recipe)))
    assert found == form
    back, account = import_arrays(named, found, recipe, shapes_of(recipe))
    assert_same(back, arrays)
    assert (account.missing, account.skipped, account.resized) == ([], {}, [])


def test_names_and_shapes_are_those_of_mmpretrain():
    state, _, arrays = make_state(make_recipe('mff', FOUR), 'mmpretrain')
    added = {name: array.shape for name, array in state.items() if 'proj_' in name}
    weights = {f'backbone.proj_layers.{i}.{kind}' for i in range(3) for kind in ('weight', 'bias')}
    assert added.keys() == weights | {'backbone.proj_weights'}
    assert added['backbone.proj_weights'] == (4, 1, 1, 1)
    # The stream's channels have their halves exchanged, on both sides of a projection.
    ours = arrays['neck/last/projection_01/kernel']
    theirs = np.roll(ours, 16, axis=(0, 1)).T
    np.testing.assert_array_equal(state['backbone.proj_layers.1.weight'], theirs)


def test_a_file_without_fusion_leaves_it_as_initialised():
    """Released weights of MAE begin a run of MFF."""
    plain, fused = make_recipe('mae', FOUR), make_recipe('mff', FOUR)
    for name in ('mae', 'mmselfsup', 'timm'):
        state, _, arrays = make_state(plain, name)
        form, named = recognise(state, formats_of(fused, shapes_of(fused)))
        found, account = import_arrays(named, form, fused, shapes_of(fused))
        assert_same(found, arrays)
        assert {path for path in account.missing if path.startswith('neck/')} == {
            path for path in shapes_of(fused) if path.startswith('neck/')
        }


def test_a_file_with_fusion_is_not_silently_a_plain_one():
    fused, plain = make_recipe('mff', FOUR), make_recipe('mae', FOUR)
    state, _, arrays = make_state(fused, 'mmpretrain')
    form, named = recognise(state, formats_of(plain, shapes_of(plain)))
    with pytest.raises(WeightsError, match=r'backbone\.proj_layers\.{0-2}\.weight: unknown; --ignore') as told:
        import_arrays(named, form, plain, shapes_of(plain))
    assert 'backbone.proj_weights: unknown' in str(told.value)
    found, _ = import_arrays(named, form, plain, shapes_of(plain), ['backbone.proj_*'])
    assert_same(found, {path: array for path, array in arrays.items() if not path.startswith('neck/')})


@pytest.mark.parametrize('setting', ['mff.layers=1,3', 'mff.projection=nonlinear', 'mff.fusion=attention'])
def test_another_fusion_is_refused(setting):
    state, _, _ = make_state(make_recipe('mff', FOUR), 'mmpretrain')
    other = make_recipe('mff', FOUR, setting)
    with pytest.raises(WeightsError, match='do not fit mae'):
        import_arrays(state, find_format(other, 'mmpretrain'), other, shapes_of(other))


@pytest.mark.parametrize('base', BASES)
def test_an_exported_encoder_is_the_bases(base):
    """Projections, logits and everything else of the neck are dropped; every name and shape is as without MFF."""
    plain, fused = make_recipe(base), make_recipe(base, 'papers=mff')
    names = []
    for recipe in (plain, fused):
        saved = {f'params/{path}': array for path, array in draw_arrays(recipe).items()}
        arrays, _ = choose_arrays(saved, 'encoder', None)
        written = [arrays]
        for library in ('timm', 'hf') if base != 'mcmae' else ():
            state, left_out = export_arrays(arrays, export_format(recipe, library, 'encoder', arrays), recipe)
            assert left_out == []
            written.append(state)
        names.append([{name: array.shape for name, array in state.items()} for state in written])
    assert names[0] == names[1]
    assert any(path.startswith('neck/last/') for path in shapes_of(fused))


def test_a_whole_vitmae_is_refused():
    for base in ('mae', 'pixmim'):
        assert export_format(make_recipe(base), 'hf', 'full', ()).name == 'hf'
        with pytest.raises(Refused, match=f'reads .* last block, in {base}\\+mff neck/last, which has no place there'):
            export_format(make_recipe(base, 'papers=mff'), 'hf', 'full', ())
    with pytest.raises(Refused, match=r'in supervised\+mff neck/last, which has no place there'):
        export_format(make_recipe('supervised', 'papers=mff'), 'timm', 'full', ())
    with pytest.raises(Refused, match='timm has no model with the whole of mae'):
        export_format(make_recipe('mff'), 'timm', 'full', ())


# -- the programs ------------------------------------------------------------------------------------------------------
def params_of(folder):
    arrays, _, _ = read_arrays(str(folder / 'checkpoints'), None, ('params',))
    return {path.removeprefix('params/'): array for path, array in arrays.items()}


def test_encoder_and_refusal_of_the_export_program(run, tmp_path, capsys):
    out = tmp_path / 'timm.safetensors'
    said = run_export(capsys, run, 'timm', out)
    assert 'all of neck/last (3 arrays)' in said
    assert 'blocks.1.mlp.fc1.weight' in read_weights(out).arrays
    line = ['--checkpoint', str(run), '--format', 'hf', '--part', 'full', '--out', str(tmp_path / 'hf')]
    refuse(capsys, export.main, line, 'mae+mff', 'neck/last', '--format safetensors')
    assert not (tmp_path / 'hf').exists()


def test_everything_travels_in_our_own_file(run, tmp_path, capsys):
    out = tmp_path / 'all.safetensors'
    run_export(capsys, run, 'safetensors', out, '--part', 'full')
    expected = params_of(run)
    assert_same(dict(read_weights(out).arrays), expected)
    run_import(capsys, out, tmp_path / 'run', 'mff', **TWO)
    assert_same(params_of(tmp_path / 'run'), expected)


def test_a_checkpoint_of_mmpretrain_begins_a_run(run, tmp_path, capsys):
    expected = params_of(run)
    recipe = build_recipe(read_run_config(run))
    state, left_out = export_arrays(expected, find_format(recipe, 'mmpretrain'), recipe)
    assert left_out == []
    write_safetensors(tmp_path / 'theirs.safetensors', state, {})
    said = run_import(capsys, tmp_path / 'theirs.safetensors', tmp_path / 'run', 'mff', **TWO)
    assert 'layout mmpretrain (mmpretrain)' in said
    assert 'neck/last 3' in said
    assert_same(params_of(tmp_path / 'run'), expected)
    line = [*settings_of('mff', **TWO, mff__projection='nonlinear'), '--workdir', str(tmp_path / 'no')]
    line += ['--weights', str(tmp_path / 'theirs.safetensors')]
    refuse(capsys, import_weights.main, line, 'do not fit mae+mff', 'projection_00_fc1/kernel: missing')
    assert not (tmp_path / 'no').exists()
