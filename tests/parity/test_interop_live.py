"""Exported encoders in timm and transformers themselves, and theirs here: `make test-parity` installs both."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / 'interop'))

from interop_cases import assert_same, draw_encoder, find_format, make_recipe, shapes_of
from trained_runs import run_export, run_import, save_random_run, train_run

from mim_jax.interop.compare import encoder_features, load_images
from mim_jax.interop.formats import BEITS, VITS, formats_of, recognise
from mim_jax.interop.hf import hf_config, hf_preprocessor
from mim_jax.interop.timm import timm_model
from mim_jax.interop.transfer import export_arrays, import_arrays
from mim_jax.objectives.classify import cross_entropy
from mim_jax.weights.files import read_weights, write_safetensors

MISSING = [name for name in ('torch', 'torchvision', 'transformers', 'timm') if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(bool(MISSING), reason=f'needs {", ".join(MISSING)}: run `make test-parity`'),
]

if not MISSING:
    import timm
    import timm.loss
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()

ENCODERS = [
    ('mae', ()),
    ('mae', ('encoder.positions=learned',)),
    ('pixmim', ()),
    ('bootmae', ()),
    ('simmim', ()),
    ('conmim', ('image_size=48',)),
    ('conmim', ('conmim.layer_scale=0.0',)),
    ('supervised', ()),
]


def to_tensors(state):
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in state.items()}


def to_arrays(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def pixels_of(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def assert_close(found, expected):
    """Within 1e-5 of the largest value."""
    worst = float(np.abs(found - expected).max() / np.abs(expected).max())
    print(f'relative difference {worst:.1e}')
    assert worst < 1e-5


def make_hf(recipe, full=False):
    """A model of transformers from the configuration that an export writes."""
    config = dict(hf_config(recipe, full))
    kind = getattr(transformers, config.pop('architectures')[0])
    options = {} if full else {'add_pooling_layer': False}
    return kind(kind.config_class(**{k: v for k, v in config.items() if k != 'model_type'}), **options).eval()


# -- ours there --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(('base', 'settings'), ENCODERS)
def test_random_weights_in_timm(base, settings):
    recipe = make_recipe(base, *settings)
    arrays = draw_encoder(recipe)
    state, _ = export_arrays(arrays, find_format(recipe, 'timm'), recipe)
    name, arguments = timm_model(recipe)
    model = timm.create_model(name, **arguments).eval()
    model.load_state_dict(to_tensors(state), strict=True)
    images, _ = load_images(recipe)
    with torch.no_grad():
        found = model.forward_features(pixels_of(images)).numpy()
    assert_close(found, encoder_features(recipe, arrays, images))


@pytest.mark.parametrize(('base', 'settings'), ENCODERS)
def test_random_weights_in_transformers(base, settings):
    recipe = make_recipe(base, *settings)
    arrays = draw_encoder(recipe)
    own = (BEITS if recipe.encoder.relative_bias else VITS)[-1]  # the names of version 5, which load_state_dict takes
    state, _ = export_arrays(arrays, own, recipe)
    model = make_hf(recipe)
    model.load_state_dict(to_tensors(state), strict=True)
    images, _ = load_images(recipe)
    with torch.no_grad():
        found = model(pixels_of(images)).last_hidden_state.numpy()
    assert_close(found, encoder_features(recipe, arrays, images))


@pytest.mark.parametrize(
    ('base', 'kind', 'part'),
    [('mae', 'timm', 'encoder'), ('mae', 'hf', 'encoder'), ('mae', 'hf', 'full'), ('simmim', 'timm', 'encoder'),
     ('simmim', 'hf', 'encoder'), ('bootmae', 'timm', 'teacher'), ('bootmae', 'hf', 'teacher'),
     ('supervised', 'timm', 'full')],
)  # fmt: skip
def test_the_printed_line_opens_a_run(base, kind, part, tmp_path, capsys):
    """Briefly trained (BootMAE: with a teacher unlike its student); the line is executed as it is printed."""
    (save_random_run if base == 'bootmae' else train_run)(tmp_path / 'run', base)
    out = tmp_path / ('out' if kind == 'hf' else 'out.safetensors')
    said = run_export(capsys, tmp_path / 'run', kind, out, '--part', part)
    library = 'timm' if kind == 'timm' else 'transformers'
    difference, largest = map(float, re.search(rf'{library} .* at most (\S+) \(largest (\S+)\)', said).groups())
    assert difference < 1e-5 * largest
    line = re.search(r'^  model = (.*)$', said, re.MULTILINE)[1]
    model = eval(line, {'timm': timm, 'transformers': transformers})
    assert isinstance(model, torch.nn.Module)
    if kind == 'hf':
        _, told = type(model).from_pretrained(
            out, output_loading_info=True, **({} if part == 'full' else {'add_pooling_layer': False})
        )
        assert not any(told.values()), told


def test_the_preprocessor_does_what_the_run_did(tmp_path, capsys):
    train_run(tmp_path / 'run', 'mae')
    run_export(capsys, tmp_path / 'run', 'hf', tmp_path / 'out')
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    image.save(tmp_path / 'image.png')
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / 'out')
    recipe = make_recipe('mae', 'image_size=16')
    assert hf_preprocessor(recipe)['image_mean'] == list(processor.image_mean)
    ours, _ = load_images(recipe, tmp_path / 'image.png')
    theirs = processor(images=image, return_tensors='pt')['pixel_values']
    np.testing.assert_allclose(theirs.permute(0, 2, 3, 1).numpy(), ours, atol=1e-5)


# -- theirs here -------------------------------------------------------------------------------------------------------
def test_vitmae_comes_and_goes_unchanged(tmp_path):
    recipe = make_recipe('mae')
    model = make_hf(recipe, full=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in ('vit.embeddings.position_embeddings', 'decoder.decoder_pos_embed'):
                parameter.normal_(0, 0.2)
    form = find_format(recipe, 'transformers ViTMAE, names of version 5')
    tables = {name: torch.from_numpy(compute(recipe)) for name, compute in form.layout.constants.items()}
    model.load_state_dict({**model.state_dict(), **tables})  # made from a config, transformers 5 leaves them at zero
    model.save_pretrained(tmp_path)
    weights = read_weights(tmp_path)
    for state in (weights.arrays, to_arrays(model)):  # files on disk have the names of the hub
        found, named = recognise(state, formats_of(recipe, shapes_of(recipe)))
        arrays, account = import_arrays(named, found, recipe, shapes_of(recipe))
        assert account.missing == []
        back, left_out = export_arrays(arrays, found, recipe)
        assert left_out == []
        assert_same(back, dict(state))
    model.load_state_dict(to_tensors(export_arrays(arrays, form, recipe)[0]), strict=True)


@pytest.mark.parametrize('kind', ['timm', 'hf'])
def test_a_supervised_vit_keeps_its_trained_positions(kind):
    recipe = make_recipe('mae', 'encoder.positions=learned')
    torch.manual_seed(0)
    name, arguments = timm_model(recipe)
    model = timm.create_model(name, **arguments | {'num_classes': 10}).eval() if kind == 'timm' else make_hf(recipe)
    with torch.no_grad():
        for parameter in model.parameters():  # positions too, that of CLS among them
            parameter.add_(0.1 * torch.randn(parameter.shape))
    form, named = recognise(to_arrays(model), formats_of(recipe, shapes_of(recipe)), kind)
    arrays, account = import_arrays(named, form, recipe, shapes_of(recipe))
    assert kind == 'hf' or set(account.skipped) == {'head.weight', 'head.bias'}
    images, _ = load_images(recipe)
    with torch.no_grad():
        output = (
            model.forward_features(pixels_of(images)) if kind == 'timm' else model(pixels_of(images)).last_hidden_state
        )
    assert_close(encoder_features(recipe, arrays, images), output.numpy())


def test_a_classifier_of_timm_comes_with_its_head():
    """The logits of DeiT's architecture, and the loss it is trained with."""
    recipe, labels = make_recipe('supervised'), np.array([7, 2])
    torch.manual_seed(0)
    name, arguments = timm_model(recipe, 10)
    model = timm.create_model(name, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    form, named = recognise(to_arrays(model), formats_of(recipe, shapes_of(recipe)))
    arrays, account = import_arrays(named, form, recipe, shapes_of(recipe))
    assert (account.missing, account.skipped) == ([], {})
    images, _ = load_images(recipe)
    with torch.no_grad():
        expected = model(pixels_of(images))
    kernel, bias = (arrays.pop(f'objectives/classify/linear/{part}') for part in ('kernel', 'bias'))
    found = encoder_features(recipe, arrays, images)[:, 0] @ kernel + bias
    assert_close(found, expected.numpy())
    for criterion in (timm.loss.LabelSmoothingCrossEntropy(0.1), torch.nn.CrossEntropyLoss(label_smoothing=0.1)):
        loss = criterion(expected, torch.from_numpy(labels))
        np.testing.assert_allclose(cross_entropy(found, labels, 0.1), loss, rtol=1e-5)


@pytest.mark.parametrize('kind', ['timm', 'hf'])
def test_an_import_is_compared_with_the_library(kind, tmp_path, capsys):
    recipe = make_recipe('mae', 'image_size=16', 'encoder.width=16', 'encoder.depth=1')
    name = 'timm' if kind == 'timm' else 'transformers ViT, names of the hub'
    state, _ = export_arrays(draw_encoder(recipe), find_format(recipe, name), recipe)
    write_safetensors(tmp_path / 'w', state, {'format': 'pt'})
    said = run_import(capsys, tmp_path / 'w', tmp_path / 'run', 'mae')
    library = 'timm' if kind == 'timm' else 'transformers'
    difference, largest = re.search(
        rf'{library} \S+: features differ by at most (\S+) \(largest (\S+)\)', said
    ).groups()
    assert float(difference) < 1e-5 * float(largest)


@pytest.mark.parametrize('base', ['mae', 'simmim'])
def test_what_transformers_saves_is_read(base, tmp_path):
    recipe = make_recipe(base)
    own = (BEITS if recipe.encoder.relative_bias else VITS)[-1]
    state, _ = export_arrays(draw_encoder(recipe), own, recipe)
    model = make_hf(recipe)
    model.load_state_dict(to_tensors(state), strict=True)
    model.save_pretrained(tmp_path)
    form, named = recognise(read_weights(tmp_path).arrays, formats_of(recipe, shapes_of(recipe)))
    arrays, account = import_arrays(named, form, recipe, shapes_of(recipe))
    assert 'names of the hub' in form.layout.name
    assert not account.skipped
    assert_same(arrays, draw_encoder(recipe))
