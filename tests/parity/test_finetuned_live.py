"""Fine-tuned classifiers in timm itself, and timm's and released ones here: `make test-parity` installs it."""

import argparse
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / 'interop'))

from trained_runs import run_export, run_import, save_random_run, settings_of

from mim_jax.command import read_config
from mim_jax.interop.compare import load_images, network_outputs
from mim_jax.interop.runs import choose_arrays, read_run_config, saved_recipe
from mim_jax.interop.timm import timm_model
from mim_jax.training.checkpoint import read_arrays

MISSING = [name for name in ('torch', 'torchvision', 'timm') if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(bool(MISSING), reason=f'needs {", ".join(MISSING)}: run `make test-parity`'),
]

if not MISSING:
    import timm
    import torch

FINETUNE, CLASSES = 'eval/finetune', 7
RELATIVE = {'encoder__positions': 'fixed'}
RUNS = {
    'mae': {},
    'mae, cls': {'finetune__pool': 'cls'},
    'pixmim': {'base': 'pixmim'},
    'bootmae': {'base': 'bootmae'},
    'simmim': {'base': 'simmim', **RELATIVE},
    'conmim, cls': {'base': 'conmim', 'finetune__pool': 'cls', **RELATIVE},
    'conmim': {'base': 'conmim', **RELATIVE},
}


def our_logits(run):
    """(logits f32[B,K], the images) of a run's newest checkpoint."""
    saved, _, _ = read_arrays(str(run / 'checkpoints'), None, ('params',))
    recipe = saved_recipe(read_run_config(run), saved)
    images, _ = load_images(recipe)
    return network_outputs(recipe, choose_arrays(saved, 'full', None)[0], images), images


def their_outputs(model, images):
    with torch.no_grad():
        return model.eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()


def assert_close(found, expected):
    """Within 1e-5 of the largest value."""
    assert found.shape == expected.shape
    worst = float(np.abs(found - expected).max() / np.abs(expected).max())
    print(f'relative difference {worst:.1e}')
    assert worst < 1e-5


@pytest.mark.parametrize('name', RUNS)
def test_the_printed_line_opens_a_classifier(name, tmp_path, capsys):
    """Executed as it is printed; timm loads strictly. Without the classifier it gives what that read."""
    save_random_run(tmp_path / 'run', FINETUNE, CLASSES, **RUNS[name])
    said = run_export(capsys, tmp_path / 'run', 'timm', tmp_path / 'model.safetensors', '--part', 'full')
    difference, largest = map(float, re.search(r'timm .*: logits .* at most (\S+) \(largest (\S+)\)', said).groups())
    assert difference < 1e-5 * largest
    model = eval(re.search(r'^  model = (.*)$', said, re.MULTILINE)[1], {'timm': timm})
    assert isinstance(model.norm, torch.nn.Identity) == (not name.endswith('cls'))
    expected, images = our_logits(tmp_path / 'run')
    assert expected.shape == (2, CLASSES)
    assert_close(their_outputs(model, images), expected)
    kernel, bias = model.head.weight.detach().numpy().T, model.head.bias.detach().numpy()
    model.reset_classifier(0)
    assert_close(their_outputs(model, images) @ kernel + bias, expected)


@pytest.mark.parametrize('base', ['mae', 'simmim'])
@pytest.mark.parametrize('pool', ['mean', 'cls'])
def test_a_trained_classifier_of_timm_comes_with_its_head(base, pool, tmp_path, capsys):
    """As facebookresearch/mae's main_finetune.py saves it: a .pth with other things beside, a trained position of CLS."""
    settings = {'base': base, 'finetune__pool': pool, **(RELATIVE if base == 'simmim' else {})}
    _, spec, *overrides = settings_of(FINETUNE, **settings)
    name, arguments = timm_model(saved_recipe(read_config(spec, overrides)[0], {}), CLASSES)
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    assert ('fc_norm.weight' in model.state_dict()) == (pool == 'mean')
    file = {'model': model.state_dict(), 'optimizer': {'state': {}}, 'epoch': 99, 'args': argparse.Namespace(lr=5e-4)}
    torch.save(file, tmp_path / 'finetuned.pth')
    said = run_import(capsys, tmp_path / 'finetuned.pth', tmp_path / 'run', FINETUNE, **settings)
    difference, largest = map(float, re.search(r'timm .*: logits .* at most (\S+) \(largest (\S+)\)', said).groups())
    assert difference < 1e-5 * largest
    assert 'missing' not in said
    found, images = our_logits(tmp_path / 'run')
    assert_close(found, their_outputs(model, images))
