"""Frozen towers against transformers, live: random weights saved by transformers itself, real photographs."""

import importlib.util
from dataclasses import replace

import jax
import numpy as np
import pytest
import tower_cases as cases
from parity_rules import photographs
from PIL import Image

from mim_jax.weights.beside import Settings
from mim_jax.weights.describe import describe, parameter_shapes
from mim_jax.weights.files import WeightsError
from mim_jax.weights.tower_layouts import FAMILIES
from mim_jax.weights.towers import from_state_dict

MISSING = [name for name in ('torch', 'torchvision', 'transformers') if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(bool(MISSING), reason=f'needs {", ".join(MISSING)}: run `make test-parity`'),
]
TOLERANCE = 1e-4
# Every class that saves a tower in a way of its own: bare, under a name, with a head or a text tower beside it.
CLASSES = {
    'CLIPVisionModel': 'clip',
    'CLIPVisionModelWithProjection': 'clip',
    'CLIPModel': 'clip',
    'ViTModel': 'dino',
    'ViTForImageClassification': 'dino',
    'Dinov2Model': 'dinov2',
    'Dinov2ForImageClassification': 'dinov2',
}
REAL = {
    'clip-vit-base-patch16': cases.Case('clip', 16, 224, width=768, depth=12, projected=512),
    'dino-vitb16': cases.Case('dino', 16, 224, epsilon=1e-12, width=768, depth=12),
    'dinov2-base': cases.Case('dinov2', 14, 518, 224, width=768, depth=12),
}

# Sizes as published: (kind, width, depth, heads, patch size, pixels of the position table).
PUBLISHED = {
    'openai/clip-vit-base-patch16': ('clip', 768, 12, 12, 16, 224),
    'openai/clip-vit-large-patch14': ('clip', 1024, 24, 16, 14, 224),
    'facebook/dino-vits16': ('dino', 384, 12, 6, 16, 224),
    'facebook/dino-vits8': ('dino', 384, 12, 6, 8, 224),
    'facebook/dino-vitb16': ('dino', 768, 12, 12, 16, 224),
    'facebook/dino-vitb8': ('dino', 768, 12, 12, 8, 224),
    'facebook/dinov2-small': ('dinov2', 384, 12, 6, 14, 518),
    'facebook/dinov2-base': ('dinov2', 768, 12, 12, 14, 518),
    'facebook/dinov2-large': ('dinov2', 1024, 24, 16, 14, 518),
}

if not MISSING:
    import torch
    import tower_reference as reference
    import transformers


def compare(teacher, model, case, images):
    """The largest difference of each feature and of the attention, printed and held to the tolerance."""
    seen, expected = cases.run_tower(teacher, images), reference.run(model, case.kind, images)
    assert seen.keys() == expected.keys()
    differences = {name: np.abs(seen[name] - expected[name]).max() for name in expected}
    print({name: f'{difference:.1e} of {np.abs(expected[name]).max():.2g}' for name, difference in differences.items()})
    assert max(differences.values()) < TOLERANCE
    return differences


@pytest.mark.parametrize('larger', [False, True])
@pytest.mark.parametrize('name', CLASSES)
def test_agrees_with_transformers(name, larger, tmp_path):
    case = cases.CASES[CLASSES[name]]
    if larger:
        case = replace(case, image_size=6 * case.patch_size)
    model = reference.build(case, name)
    model.save_pretrained(tmp_path)
    compare(cases.open_case(case, tmp_path), model, case, cases.make_images(case))


@pytest.mark.parametrize('name', CLASSES)
def test_a_state_dict_is_read_as_its_file(name, tmp_path):
    """Version 5 names its arrays differently in memory and on the hub."""
    case = cases.CASES[CLASSES[name]]
    model = reference.build(case, name)
    model.save_pretrained(tmp_path)
    teacher = cases.open_case(case, tmp_path)
    tower, params = from_state_dict(model.state_dict(), model.config.to_dict())
    assert tower == teacher.tower
    flat, loaded = (cases.flatten(tree) for tree in (params, teacher.load()))
    assert flat.keys() == loaded.keys()
    for path, array in flat.items():
        np.testing.assert_array_equal(array, loaded[path])


@pytest.mark.parametrize('name', REAL)
def test_agrees_at_the_published_sizes(name, tmp_path):
    case = REAL[name]
    family = FAMILIES[case.kind]
    model = reference.build(case)
    model.save_pretrained(tmp_path)
    pixels = [Image.fromarray(photo).resize((case.side, case.side), Image.BICUBIC) for photo in photographs(112)]
    images = cases.normalise(np.stack([np.asarray(photo) for photo in pixels]), family.mean, family.std)
    compare(cases.open_case(case, tmp_path), model, case, images)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes_are_read_from_shapes_alone(name):
    """Models without memory; the config of none is looked at."""
    kind, width, depth, heads, patch_size, side = PUBLISHED[name]
    assert name in FAMILIES[kind].repositories
    with torch.device('meta'):
        model = reference.build(cases.Case(kind, patch_size, side, width=width, depth=depth))
    header = {key: jax.ShapeDtypeStruct(tuple(a.shape), np.float32) for key, a in model.state_dict().items()}
    tower = describe(header, Settings('no config'), name).tower
    assert (tower.width, tower.depth, tower.heads, tower.patch_size) == (width, depth, heads, patch_size)
    assert tower.grid == (side // patch_size,) * 2
    assert sum(leaf.size for leaf in parameter_shapes(tower).values()) == sum(
        array.size for key, array in header.items() if not key.startswith(('pooler', 'embeddings.mask_token'))
    )


@pytest.mark.parametrize('kind', ['Dinov2Model', 'Dinov2WithRegistersModel'])
def test_giants_and_registers_are_refused(kind):
    settings = {'hidden_size': 64, 'num_hidden_layers': 1, 'num_attention_heads': 1, 'use_swiglu_ffn': True}
    model = getattr(transformers, kind)
    state = model(model.config_class(**settings)).state_dict()
    with pytest.raises(WeightsError, match='SwiGLU' if kind == 'Dinov2Model' else 'register'):
        from_state_dict(state)
