"""Wrong names, types, values and combinations, each with its sentence; what fits devices and dataset."""

import pytest
from ml_collections import ConfigDict
from stand_ins import METHODS, load, mae, mff, mistakes_of

from mim_jax.config import (
    bind_method,
    check_config,
    check_devices,
    default_config,
    peak_lr,
    steps_per_epoch,
    total_steps,
    warmup_steps,
)


def test_names_and_types_are_checked_against_tree_and_methods():
    config = default_config()
    del config['seed']
    config.data.scal = (1, 2)
    config.mae = ConfigDict({'mask_ratio': 1, 'norm_pix': True, 'decoder_depth': True})
    config.mff = ConfigDict({'layers': (1, 'x')})
    config.mfff = ConfigDict()
    with config.optim.ignore_type():
        config.optim.base_lr, config.optim.warmup_epochs = '1', [1]
    config.papers = ('mf',)
    message = mistakes_of(lambda: check_config(config, METHODS))
    for line in (
        'seed is missing',
        "papers: there is no method 'mf'. Did you mean mff? There are: mae, mff.",
        "no section and no method 'mfff'. Did you mean mff?",
        "The section 'mff' has no effect",
        'data.scal: there is no such key. Did you mean data.scale?',
        'mae.norm_pix: mae has no such setting. Did you mean mae.norm_pix_loss?',
        'mae.decoder_depth=True: expected an integer, not bool.',
        "mff.layers=(1, 'x'): expected a tuple such as 0,2,4,6,8,11",
        "optim.base_lr='1': expected a number, not str.",
        'optim.warmup_epochs=[1]: expected a number, not list.',
    ):
        assert line in message


def test_integers_become_floats_where_those_are_expected():
    config = default_config()
    config.mae = ConfigDict({'mask_ratio': 0})
    config.data = ConfigDict(dict(config.data) | {'ratio': (1, 1)})
    check_config(config, METHODS)
    assert repr((config.mae.mask_ratio, config.data.ratio)) == '(0.0, (1.0, 1.0))'


def test_methods_are_checked_and_bound():
    assert "base: there is no method 'mea'. Did you mean mae?" in mistakes_of(lambda: load('--config.base=mea'))
    assert "papers: 'mff' is there twice" in mistakes_of(lambda: load('--config.papers=mff,mff'))
    config = load('--config.mae.mask_ratio=0.5')
    assert bind_method(config, 'mae', mae)('the config') == ('the config', 0.5, 8)
    assert bind_method(default_config(), 'mff', mff)('a recipe') == 'a recipe'

    def untyped(config, *, target=None): ...

    with pytest.raises(TypeError, match='target'):
        check_config(config, METHODS | {'untyped': untyped})


CONTRADICTIONS = [
    ('image_size=33', 'image_size=33 is not a multiple of encoder.patch_size=16; 32 or 48 would be.'),
    ('encoder.heads=5', 'encoder.width=768 is not divisible by encoder.heads=5; 760 or 780 would be.'),
    ('encoder.width=774 encoder.heads=6', 'encoder.width=774 is not divisible by 4, which sin-cos positions need'),
    ('accumulate=3', 'batch_size=4096 does not split into accumulate=3 equal micro-batches; 4095 or 4098 would.'),
    ('accumulate=0', 'accumulate=0 must be at least 1.'),
    ('epochs=30', 'optim.warmup_epochs=40.0 leaves nothing of epochs=30.0'),
    ('epochs=0', 'steps and epochs are both 0'),
    ('epochs=-1', 'epochs=-1.0 must not be negative.'),
    ('optim.min_lr=1', 'optim.min_lr=1.0 is above the peak learning rate 0.0024'),
    ('optim.base_lr=0', 'optim.base_lr=0.0 must be above 0.'),
    ('optim.b2=1', 'optim.b2=1.0 must be at least 0 and below 1.'),
    ('optim.lr_scaling=linear', "optim.lr_scaling='linear' is not one of none, linear/256"),
    ('data.crop=rcc', "data.crop='rcc' is not one of rrc, rrc_once, src, center. Did you mean rrc"),
    ('data.rand_augment=rand-m9-mmax3', "data.rand_augment='rand-m9-mmax3': 'mmax3' is no part of it; a number follows one"),
    ('data.rand_augment=rand-m11', 'data.rand_augment: the magnitude m=11.0 must be from 0 to 10.'),
    ('data.rand_augment=rand data.crop=center', "data.rand_augment='rand' has no effect with data.crop='center'"),
    ('dtype=float16', 'dtype=\'float16\' is not one of bfloat16, float32. Did you mean'),
    ('data.scale=0,1', 'data.scale=(0.0, 1.0) must satisfy 0 < smallest <= largest <= 1.'),
    ('data.scale=.2,2', 'data.scale=(0.2, 2.0) must satisfy'),
    ('data.scale=.2', 'data.scale=(0.2,) must have 2 numbers.'),
    ('data.ratio=2,1', 'data.ratio=(2.0, 1.0) must satisfy 0 < narrowest <= widest.'),
    ('data.std=1,1,0', 'data.std=(1.0, 1.0, 0.0) must be above 0 in every channel.'),
    ('data.source=folder', "data.source='folder' needs to know where: add --config.data.dir=PATH."),
    ('data.name=', "data.source='tfds' needs data.name"),
    ('mesh.data=0', 'mesh.data=0 must be at least 1, or -1'),
    ('probe.every_epochs=1 probe.knn=false probe.ridge=false', 'probe.every_epochs=1.0, but probe.knn'),
]  # fmt: skip


@pytest.mark.parametrize(('overrides', 'expected'), CONTRADICTIONS)
def test_a_contradiction_is_one_plain_sentence(overrides, expected):
    message = mistakes_of(lambda: load(*(f'--config.{override}' for override in overrides.split())))
    assert message.startswith(expected)
    assert '\n' not in message


def test_all_contradictions_are_reported_at_once():
    every = ['image_size=33', 'encoder.heads=5', 'accumulate=0', 'epochs=30', 'data.scale=.2', 'data.crop=x']
    message = mistakes_of(lambda: load(*(f'--config.{override}' for override in every)))
    assert message.splitlines()[0] == '6 mistakes in the configuration:'
    assert len(message.splitlines()) == 7


@pytest.mark.parametrize(
    ('overrides', 'arguments', 'expected'),
    [
        ('', (3, None), 'batch_size=4096 does not split evenly over 3 devices; batch_size=4095 or 4098 does.'),
        ('accumulate=4 batch_size=100', (8, None), '8 devices x accumulate=4; batch_size=96 or 128 does.'),
        ('batch_size=6 mesh.model=2', (8, None), 'over 4 groups of mesh.model=2 devices; batch_size=4 or 8 does.'),
        ('mesh.fsdp=4 mesh.model=4', (8, None), 'mesh.fsdp=4 x mesh.model=4 does not divide 8 devices; it can be 1, 2, 4'),
        ('mesh.data=1 mesh.model=2', (8, None), 'mesh.data=1 x mesh.fsdp=1 x mesh.model=2 is 2, but there are 8 devices;'),
        ('mesh.fsdp=4 mesh.slices=4', (8, None), 'mesh.slices=4 does not divide mesh.data=2; it can be 1, 2.'),
        ('mesh.data=5', (8, None), 'mesh.data=5 x mesh.fsdp=1 is 5, but there are 8 devices; set mesh.data=8'),
        ('mesh.fsdp=3', (8, None), 'mesh.fsdp=3 does not divide 8 devices; it can be 1, 2, 4, 8.'),
        ('', (8, 1000), "larger than the 1000 images of 'imagenet2012' (train); use batch_size=1000 or less."),
        ('', (64, 50), 'so is the smallest batch these devices can share, 64.'),
        ('steps=100 batch_size=100', (1, 5000), 'is 2000 steps (5000 images in batches of 100), but the run has'),
    ],
)  # fmt: skip
def test_a_run_that_does_not_fit_says_what_would(overrides, arguments, expected):
    config = load(*(f'--config.{override}' for override in overrides.split()))
    assert expected in mistakes_of(lambda: check_devices(config, *arguments))


def test_runs_that_fit_pass():
    check_devices(load('--config.steps=100000', '--config.epochs=0'), 8, 1_281_167)  # steps count, epochs do not
    check_devices(load('--config.steps=100000', '--config.epochs=1'), 8, 1_281_167)
    check_devices(load(), 256, 1_281_167)
    check_devices(load('--config.batch_size=8', '--config.mesh.model=4', '--config.mesh.slices=8'), 32, 1_281_167)
    check_devices(load('--config.mesh.data=4', '--config.mesh.fsdp=2', '--config.accumulate=4'), 8, 1_281_167)


def test_lengths_are_exact_and_rates_follow_their_rule():
    config = load()
    assert steps_per_epoch(config, 1_281_167) == 1_281_167 / 4096
    assert total_steps(config, 1_281_167) == 250_228  # not 800 x 312: no image is dropped at the end of an epoch
    assert warmup_steps(config, 1_281_167) == pytest.approx(12_511.4, abs=0.01)
    assert total_steps(load(variants='smoke'), 1437) == 20
    for rule, rate in {'none': 1e-3, 'linear/256': 1.6e-2, 'linear/512': 8e-3, 'sqrt': 1.6e-2}.items():
        scaled = load('--config.optim.base_lr=1e-3', f'--config.optim.lr_scaling={rule}')
        assert peak_lr(scaled) == pytest.approx(rate)
