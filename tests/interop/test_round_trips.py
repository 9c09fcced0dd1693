"""Ours to every layout and back: the same bits; each layout is recognised by its names."""

import numpy as np
import pytest
from interop_cases import assert_same, draw_arrays, make_recipe, make_state, shapes_of

from mim_jax.errors import Refused
from mim_jax.interop.blocks import stack_blocks, unstack_blocks
from mim_jax.interop.formats import export_format, formats_of, recognise
from mim_jax.interop.transfer import export_arrays, import_arrays
from mim_jax.methods import BASES

WHOLE = {'mae', 'simmim', 'mmselfsup', 'bootmae', 'conmim', 'convmae', 'mim_jax'}
LAYOUTS = [
    (base, form.layout.name) for base in BASES for form in formats_of(make_recipe(base), shapes_of(make_recipe(base)))
]


@pytest.mark.parametrize(('base', 'name'), LAYOUTS)
def test_there_and_back(base, name):
    recipe = make_recipe(base)
    state, form, arrays = make_state(recipe, name)
    found, account = import_arrays(state, form, recipe, shapes_of(recipe))
    assert_same(found, arrays)
    assert len(account.loaded) == len(arrays)
    assert not account.skipped
    assert not account.resized
    everything = draw_arrays(recipe)
    if form.name in WHOLE or 'ViTMAE' in name or 'classifier' in name:
        assert arrays.keys() == everything.keys()
        assert account.missing == []
    else:
        encoder = {path for path in everything if path.startswith('encoder/')}
        assert arrays.keys() == encoder
        assert set(account.missing) == everything.keys() - encoder


@pytest.mark.parametrize(('base', 'name'), LAYOUTS)
def test_is_recognised(base, name):
    recipe = make_recipe(base)
    state, form, arrays = make_state(recipe, name)
    found, named = recognise(state, formats_of(recipe, shapes_of(recipe)))
    back, _ = import_arrays(named, found, recipe, shapes_of(recipe))
    assert_same(back, arrays)
    if form.name in WHOLE or form.name == 'hf':  # an encoder of timm's may also be read as the released layout
        assert found == form


@pytest.mark.parametrize('name', ['hf', 'transformers ViT, names of version 5'])
def test_a_classifier_of_transformers_is_an_encoder_with_a_prefix(name):
    recipe = make_recipe('mae')
    state, _, arrays = make_state(recipe, 'transformers ViT, names of the hub' if name == 'hf' else name)
    state = {f'vit.{key}': value for key, value in state.items()} | {'classifier.bias': np.ones(3, np.float32)}
    form, named = recognise(state, formats_of(recipe, shapes_of(recipe)))
    found, account = import_arrays(named, form, recipe, shapes_of(recipe))
    assert_same(found, arrays)
    assert account.skipped == {'classifier.bias': 'a head on top'}


@pytest.mark.parametrize('base', ['simmim', 'mcmae', 'mae'])
def test_scanned_blocks_are_the_same_blocks(base):
    plain, scanned = make_recipe(base), make_recipe(base, 'encoder.scan=true')
    assert shapes_of(plain).keys() == shapes_of(scanned).keys()
    arrays = draw_arrays(plain)
    stacked = {
        'encoder/blocks/norm1/scale': np.stack([arrays[f'encoder/block_{i:02d}/norm1/scale'] for i in range(2)]),
        'encoder/norm/scale': arrays['encoder/norm/scale'],
    }
    assert_same(unstack_blocks(stacked), {p: arrays[p] for p in unstack_blocks(stacked)})
    assert_same(stack_blocks(arrays, stacked), stacked)


def test_learned_positions_travel():
    for base, name in (('mae', 'mae'), ('mae', 'mmselfsup'), ('bootmae', 'timm'), ('mcmae', 'convmae'), ('mae', 'hf')):
        recipe = make_recipe(base, 'encoder.positions=learned')
        state, form, arrays = make_state(recipe, name)
        arrays['encoder/pos_embed'] = draw_arrays(recipe)['encoder/pos_embed']
        state, _ = export_arrays(arrays, form, recipe)
        found, _ = import_arrays(state, form, recipe, shapes_of(recipe))
        assert_same(found, arrays)


def test_what_has_no_place_elsewhere_is_refused():
    for base, name, part in (('mcmae', 'timm', 'encoder'), ('mcmae', 'hf', 'encoder')):
        with pytest.raises(Refused, match='computes the same; use --format safetensors'):
            export_format(make_recipe(base), name, part, ())
    for base, name in (('simmim', 'hf'), ('bootmae', 'timm'), ('mae', 'timm')):
        with pytest.raises(Refused, match=f'no model with the whole of {base}'):
            export_format(make_recipe(base), name, 'full', ())
