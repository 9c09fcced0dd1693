"""What the evaluation of a run takes from it: for datasets of runs, variants and overrides."""

import pytest
from evaluate_runs import EVAL

from mim_jax.config import load_config
from mim_jax.errors import ConfigError
from mim_jax.evals.inherit import inherit_run
from mim_jax.evals.protocols import DIRECT
from mim_jax.methods import METHODS

CONFIGS = EVAL.parent


def inherit(run_spec, spec, *overrides):
    """The protocol's config about a run."""
    run, _ = load_config(f'{CONFIGS}/{run_spec}', ['--config.data.dir=/data'], METHODS)
    config, _ = load_config(f'{EVAL}/{spec}', overrides, {**METHODS, **DIRECT})
    found = inherit_run(config.unlock(), run, spec, overrides)
    assert found.base == run.base
    assert found.encoder.width == run.encoder.width
    return found


def inherited(run_spec, spec, *overrides):
    """data.name, share, split, eval_split, image size, mean of red, flip."""
    found = inherit(run_spec, spec, *overrides)
    data = found.data
    return data.name, data.share, data.split, data.eval_split, found.image_size, data.mean[0], data.flip


IMAGENET = ('imagenet2012', 1.0, 'train', 'validation', 224, 0.485, True)
CIFAR = ('cifar10', 1.0, 'train', 'test', 32, 0.4914, True)


@pytest.mark.parametrize(
    ('run', 'spec', 'overrides', 'expected'),
    [
        ('mae.py', 'finetune.py', [], IMAGENET),
        ('mae.py', 'finetune.py:1pct', [], ('imagenet2012_subset/1pct', *IMAGENET[1:])),
        ('mae.py', 'finetune.py:10pct', [], ('imagenet2012_subset/10pct', *IMAGENET[1:])),
        ('mae.py', 'finetune.py:share_1', [], ('imagenet2012', 0.01, *IMAGENET[2:])),
        ('mae.py:vit_t4,cifar10', 'knn.py:small', [], CIFAR),
        ('mae.py:vit_t4,cifar10', 'finetune.py:small,share_10', [], ('cifar10', 0.1, *CIFAR[2:])),
        # Another dataset: its splits; the run's statistics and image size.
        ('mae.py', 'finetune.py:cifar10', [], ('cifar10', 1.0, 'train', 'test', 224, 0.485, True)),
        (
            'mae.py',
            'knn.py',
            ['--config.data.name=cifar100', '--config.data.eval_split=test'],
            ('cifar100', 1.0, 'train', 'test', 224, 0.485, True),
        ),
        (
            'mae.py:vit_t4,cifar10',
            'knn.py',
            ['--config.data.eval_split=train[:10%]'],
            ('cifar10', 1.0, 'train', 'train[:10%]', 32, 0.4914, True),
        ),
        (
            'mae.py',
            'finetune.py',
            ['--config.image_size=384'],
            ('imagenet2012', 1.0, 'train', 'validation', 384, 0.485, True),
        ),
        (
            'mae.py:demo',
            'finetune.py:small',
            [],
            ('', 1.0, 'train', 'test', 32, 0.309, False),
        ),  # digits are not flipped
    ],
)
def test_the_dataset_is_the_run_s_unless_something_else_is_said(run, spec, overrides, expected):
    assert inherited(run, spec, *overrides) == pytest.approx(expected)


@pytest.mark.parametrize(
    ('run', 'spec', 'overrides', 'scale'),
    [
        ('mae.py', 'finetune.py', [], (0.08, 1.0)),  # MAE pre-trains with 0.2
        ('mae.py:vit_t4,cifar10', 'linear_probe.py:small', [], (0.08, 1.0)),
        ('mae.py:demo', 'finetune.py:small', [], (0.5, 1.0)),
        ('mae.py:demo', 'linear_probe.py:small', ['--config.data.scale=0.3,1.0'], (0.3, 1.0)),
        ('mae.py:demo', 'finetune.py:small,cifar10', [], (0.08, 1.0)),
        ('mae.py:vit_t4,cifar10', 'finetune.py:small,digits', [], (0.5, 1.0)),
    ],
)
def test_crops_keep_what_the_protocol_says_and_of_digits_enough_to_read_them(run, spec, overrides, scale):
    assert inherit(run, spec, *overrides).data.scale == scale


@pytest.mark.parametrize(
    ('spec', 'overrides', 'words'),
    [
        ('knn.py:vit_l16', [], 'leave out the variant vit_l16'),
        ('knn.py', ['--config.encoder.width=32'], 'encoder.width is what --checkpoint holds'),
        ('knn.py', ['--config.image_size=384'], 'only fine-tuning resizes it'),
    ],
)
def test_the_encoder_is_the_run_s(spec, overrides, words):
    with pytest.raises(ConfigError, match=words):
        inherited('mae.py', spec, *overrides)
