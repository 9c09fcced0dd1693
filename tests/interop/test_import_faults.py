"""What does not fit is named, all at once; what fits in another form is fitted, and said."""

import numpy as np
import pytest
from interop_cases import assert_same, draw_arrays, find_format, make_recipe, make_state, shapes_of

from mim_jax.interop.formats import formats_of, recognise
from mim_jax.interop.resize import resize_relative_bias
from mim_jax.interop.transfer import export_arrays, import_arrays
from mim_jax.weights.files import WeightsError
from mim_jax.weights.resize import resize_positions


def change(base='mae', name='mae', part='', overrides=(), **options):
    """A recipe, and a function that imports a changed state of it."""
    recipe = make_recipe(base, *overrides)
    state, form, arrays = make_state(recipe, name, part)

    def run(changes=(), drop=(), **more):
        altered = {key: value for key, value in state.items() if key not in drop} | dict(changes)
        return import_arrays(altered, form, recipe, shapes_of(recipe), **(options | more))

    return recipe, state, arrays, run


def refuse(run, *words, **changes):
    with pytest.raises(WeightsError) as caught:
        run(**changes)
    for word in words:
        assert word in str(caught.value), (word, str(caught.value))
    return str(caught.value)


def test_every_fault_is_listed_at_once():
    _, state, _, run = change()
    changes = {
        'blocks.0.adapter.weight': np.ones(2, np.float32),
        'blocks.1.adapter.weight': np.ones(2, np.float32),
        'norm.weight': np.ones(7, np.float32),
        'blocks.0.mlp.fc1.weight': state['blocks.0.mlp.fc1.weight'][None],
        'norm.bias': np.ones(32, np.int64),
    }
    message = refuse(
        run,
        'blocks.{0,1}.adapter.weight: unknown; --ignore "blocks.*.adapter.weight" leaves it aside',
        'norm.weight (7,): encoder/norm/scale is (32,), this would be (7,)',
        'blocks.0.mlp.fc1.weight (1, 128, 32)',
        'norm.bias: holds int64',
        'encoder/cls_token: missing',
        'decoder/pixels/head/kernel: missing',
        changes=changes,
        drop=('cls_token', 'decoder_pred.weight'),
    )
    assert message.count('\n') == 6


def test_an_array_of_three_of_which_one_is_missing():
    _, _, _, run = change(name='hf')
    key = 'vit.encoder.layer.1.attention.attention.key.bias'
    refuse(run, f'{key}: missing, though encoder/block_01/attn/qkv/bias is there in part', drop=(key,))


@pytest.mark.parametrize('setting', ['width=64', 'depth=3'])
def test_another_architecture_is_one_sentence(setting):
    state, _, _ = make_state(make_recipe('mae', f'encoder.{setting}'), 'mae')
    recipe = make_recipe('mae')
    with pytest.raises(WeightsError) as caught:
        import_arrays(state, find_format(recipe, 'mae'), recipe, shapes_of(recipe))
    message = str(caught.value)
    width, depth = (64, 2) if setting == 'width=64' else (32, 3)
    assert f'its encoder has width {width} and depth {depth}, this config wants 32 and 2' in message
    assert f'encoder.width={width}, encoder.depth={depth}' in message
    assert '\n' not in message


def test_another_decoder_is_one_sentence_and_may_be_left_out():
    other = make_recipe('mae', 'mae.decoder_width=32')
    state, form, arrays = make_state(other, 'mae')
    recipe = make_recipe('mae')
    with pytest.raises(WeightsError, match=r'its decoder/pixels has width 32 .*mae\.decoder_width=32'):
        import_arrays(state, form, recipe, shapes_of(recipe))
    encoder = {path: leaf for path, leaf in shapes_of(recipe).items() if path.startswith('encoder/')}
    found, account = import_arrays(state, form, recipe, encoder, ignore=['decoder_pos_embed'])
    assert_same(found, {path: a for path, a in arrays.items() if path.startswith('encoder/')})
    assert 'decoder_pred.weight' in account.skipped


def test_a_whole_part_may_be_missing_and_keeps_its_values():
    recipe, _, arrays, run = change(name='timm')
    found, account = run()
    assert_same(found, arrays)
    assert set(account.missing) == {path for path in shapes_of(recipe) if path.startswith('decoder/')}
    assert any('all of decoder/pixels (31 arrays): kept as initialised' in line for line in account.lines())


def test_another_method_is_not_recognised_as_this_one():
    state, _, _ = make_state(make_recipe('mcmae'), 'convmae')
    recipe = make_recipe('simmim')
    with pytest.raises(WeightsError, match=r'The names in the file .* are of none of .*: mim_jax, simmim, timm, hf'):
        recognise({f'other.{key}': value for key, value in state.items()}, formats_of(recipe, shapes_of(recipe)))
    with pytest.raises(WeightsError, match=r'--layout mae: .* can be read as mim_jax, simmim, timm, hf'):
        recognise(state, formats_of(recipe, shapes_of(recipe)), 'mae')


def test_named_names_are_left_aside():
    _, _, arrays, run = change()
    found, account = run(changes={'head.weight': np.ones(3, np.float32)}, ignore=['head.*'])
    assert_same(found, arrays)
    assert account.skipped == {'head.weight': 'ignored, as asked for'}


def test_a_bias_of_keys_must_be_zero_where_there_is_none():
    _, state, arrays, run = change('bootmae', 'timm')
    found, _ = run()
    assert_same(found, arrays)
    name = 'blocks.1.attn.qkv.bias'
    width = len(state[name]) // 3
    np.testing.assert_array_equal(state[name][width : 2 * width], 0)
    refuse(run, f'{name} (96,): its keys have a bias', changes={name: np.ones_like(state[name])})


# -- positions ---------------------------------------------------------------------------------------------------------
def test_fixed_positions_are_recomputed_and_a_trained_table_is_not_lost():
    _, state, arrays, run = change()
    nearly = state['pos_embed'] * np.float32(1 + 1e-6)
    found, account = run(changes={'pos_embed': nearly})
    assert_same(found, arrays)
    assert any(line.startswith('pos_embed: the fixed positions (largest') for line in account.recomputed)
    trained = state['pos_embed'] * np.float32(1.01)
    refuse(
        run,
        'pos_embed (1, 65, 32): not the fixed positions',
        'encoder.positions=learned',
        changes={'pos_embed': trained},
    )
    assert_same(run(changes={'pos_embed': trained}, ignore=['pos_embed'])[0], arrays)
    rounded = state['pos_embed'].astype(np.float16).astype(np.float32)
    refuse(run, 'not the fixed positions', changes={'pos_embed': rounded})
    assert_same(run(changes={'pos_embed': rounded}, half=True)[0], arrays)


@pytest.mark.parametrize(('base', 'name'), [('mae', 'mae'), ('mae', 'mmselfsup'), ('mae', 'hf'), ('bootmae', 'timm')])
def test_the_position_of_cls_becomes_part_of_its_token(base, name):
    recipe = make_recipe(base, 'encoder.positions=learned')
    state, form, arrays = make_state(recipe, name)
    key = form.positions.theirs
    table = np.random.default_rng(0).normal(size=(1, 65, 32)).astype(np.float32)
    found, account = import_arrays(state | {key: table}, form, recipe, shapes_of(recipe))
    ours = form.positions.form.to_ours(table)
    np.testing.assert_array_equal(found['encoder/pos_embed'], ours[:, 1:])
    np.testing.assert_array_equal(found['encoder/cls_token'], arrays['encoder/cls_token'] + ours[:, :1])
    assert any('added to the CLS token' in line for line in account.recomputed)


def test_positions_of_another_grid():
    state, form, arrays = make_state(make_recipe('mae'), 'mae')
    table = np.random.default_rng(0).normal(size=(1, 65, 32)).astype(np.float32)
    fixed = make_recipe('mae', 'image_size=48')
    with pytest.raises(
        WeightsError, match=r'positions of 8 x 8 patches, where this config has 12 x 12; set encoder\.pos'
    ):
        import_arrays(state, form, fixed, shapes_of(fixed))
    recipe = make_recipe('mae', 'image_size=48', 'encoder.positions=learned')
    found, account = import_arrays(state | {'pos_embed': table}, form, recipe, shapes_of(recipe))
    np.testing.assert_array_equal(found['encoder/pos_embed'][0], resize_positions(table[0, 1:], (8, 8), (12, 12)))
    np.testing.assert_array_equal(found['encoder/cls_token'], arrays['encoder/cls_token'] + table[:, :1])
    assert account.resized == ['pos_embed: from 8 x 8 to 12 x 12 patches']
    assert 'decoder_pos_embed: a constant, for 12 x 12 patches in place of 8 x 8' in account.recomputed
    wrong = state | {'decoder_pos_embed': state['decoder_pos_embed'] + 1}
    with pytest.raises(WeightsError, match=r'decoder_pos_embed .*wanted \(1, 145, 64\); --ignore decoder_pos_embed'):
        import_arrays(wrong, form, recipe, shapes_of(recipe))


@pytest.mark.parametrize(
    ('base', 'name'), [('simmim', 'simmim'), ('conmim', 'conmim'), ('simmim', 'timm'), ('conmim', 'hf')]
)
def test_relative_biases_of_another_grid(base, name):
    state, form, arrays = make_state(make_recipe(base), name)
    recipe = make_recipe(base, 'image_size=48')
    found, account = import_arrays(state, form, recipe, shapes_of(recipe))
    expected = resize_relative_bias(arrays['encoder/relative_bias_table'], (8, 8), (12, 12))
    assert_same(found, arrays | {'encoder/relative_bias_table': expected})
    assert len(account.resized) == 1
    assert account.resized[0].endswith('from 8 x 8 to 12 x 12 patches')


def test_constants_that_differ_are_named():
    _, state, _, run = change('simmim', 'simmim')
    name = 'encoder.rel_pos_bias.relative_position_index'
    refuse(run, f'{name} (65, 65): differs by up to 1', changes={name: state[name] + 1})


def test_export_says_what_has_no_place():
    recipe = make_recipe('conmim')
    _, left_out = export_arrays(draw_arrays(recipe), find_format(recipe, 'timm'), recipe)
    assert left_out == sorted(path for path in draw_arrays(recipe) if path.startswith('objectives/'))


def test_a_mask_token_may_be_missing():
    _, _, arrays, run = change('conmim', 'timm')
    found, account = run(drop=('mask_token',))
    assert_same(found, {path: a for path, a in arrays.items() if path != 'encoder/mask_token'})
    assert any(line.startswith('missing     encoder/mask_token, all of obj') for line in account.lines())
