"""Files, variants and overrides: what loads, and what every mistake says. No jax needed."""

import pytest
from stand_ins import MAE, METHODS, load, mistakes_of

from mim_jax.config import apply_variants, check_devices, default_config, difference, load_config, peak_lr, warmup_steps
from mim_jax.config.variants import DATASETS, SCALES, VIT_SIZES


def test_defaults_are_the_mae_row_of_the_papers_table():
    config = load()
    optim, encoder = config.optim, config.encoder
    assert (config.batch_size, config.epochs, config.image_size) == (4096, 800.0, 224)
    assert (optim.base_lr, optim.lr_scaling, optim.b1, optim.b2) == (1.5e-4, 'linear/256', 0.9, 0.95)
    assert (optim.weight_decay, optim.warmup_epochs, optim.schedule, optim.min_lr) == (0.05, 40.0, 'cosine', 0.0)
    assert (optim.clip_norm, optim.decay_exclude, encoder.drop_path) == (0.0, 'mae', 0.0)
    assert (encoder.patch_size, encoder.width, encoder.depth, encoder.heads) == (16, 768, 12, 12)
    assert (config.data.crop, config.data.scale, config.data.ratio) == ('rrc', (0.2, 1.0), (3 / 4, 4 / 3))
    assert (config.data.interpolation, config.data.flip) == ('bicubic', True)
    assert (config.mae.mask_ratio, config.mae.norm_pix_loss) == (0.75, True)
    assert peak_lr(config) == pytest.approx(2.4e-3)


def test_overrides_take_the_type_of_their_key():
    config = load(
        *('--config.epochs=50', '--config.optim.base_lr=1e-4', '--config.seed=7', '--config.data.flip=False'),
        *('--config.data.scale=(0.5,1)', '--config.papers=mff', '--config.mff.layers=0, 11', '--config.data.name=a=b'),
        *('--config.mae.mask_ratio=.6', '--config.seed=8'),
    )
    assert (type(config.epochs), config.epochs) == (float, 50.0)
    assert (config.optim.base_lr, config.seed, config.data.flip) == (1e-4, 8, False)
    assert repr(config.data.scale) == '(0.5, 1.0)'
    assert (config.papers, config.mff.layers, config.mff.projection) == (('mff',), (0, 11), 'linear')
    assert (config.data.name, config.mae.mask_ratio) == ('a=b', 0.6)
    assert load('--config.papers=').papers == load('--config.papers=()').papers == ()
    assert load("--config.papers=('mff',)").papers == ('mff',)


def test_bad_overrides_are_all_reported_at_once():
    message = mistakes_of(
        lambda: load(
            '--config.lr=1',
            '--config.batch_size=1e3',
            '--config.data.flip=yes',
            '--config.data.scale=a,b',
            '--config.epochs=nan',
            '--config.mae.mask_ration=.5',
            '--config.optim=3',
            'epochs=3',
            '--config.data.batch_size=8',
            '--config.mff.layers=0',
            '--config.checkpoint.foo=1',
        )
    )
    for line in (
        '11 mistakes',
        '--config.lr: there is no such key. Did you mean optim.base_lr?',
        "--config.batch_size=1e3: expected an integer, not '1e3'.",
        "--config.data.flip=yes: expected true or false, not 'yes'.",
        "--config.data.scale=a,b: expected a tuple such as 0.2,1.0, not 'a,b'.",
        "--config.epochs=nan: expected a number, not 'nan'.",
        '--config.mae.mask_ration: there is no such key. Did you mean mae.mask_ratio?',
        '--config.optim: this is a section; set one of its keys: optim.b1, ',
        "'epochs=3' is not an override; write --config.key=value",
        'Did you mean batch_size',
        '--config.mff.layers: mff is not in use, so this has no effect; add it with --config.papers',
        'checkpoint has: every_minutes, every_steps, keep, milestone_epochs.',
    ):
        assert line in message


@pytest.mark.parametrize(
    ('given', 'meant'),
    [
        ('epoch', 'epochs'),
        ('num_epochs', 'epochs'),
        ('optimizer.base_lr', 'optim.base_lr'),
        ('patch_size', 'encoder.patch_size'),
        ('encoder.widht', 'encoder.width'),
        ('input_size', 'image_size'),
        ('mesh.fdsp', 'mesh.fsdp'),
    ],
)
def test_an_unknown_key_names_the_one_meant(given, meant):
    message = mistakes_of(lambda: load(f'--config.{given}=1'))
    assert f'--config.{given}: there is no such key. Did you mean {meant}' in message


def test_sections_follow_the_methods_in_use():
    config, reference = load_config(MAE, ['--config.base=mff'], METHODS)
    assert 'mae' not in config
    assert config.mff.layers == (0, 2, 4, 6, 8, 11)
    assert difference(config, reference) == ["base: 'mae' -> 'mff'"]  # defaults of a new section are no difference


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('x = 1\n', "does not define get_config(variant: str = '')"),
        ('def get_config(variant):\n    return {}\n', 'get_config returned dict, not a ConfigDict'),
        ('def get_config(variant):\n\n    return 1 / 0\n', 'bad.py, line 3: ZeroDivisionError: division by zero'),
        ('def get_config(:\n', 'bad.py, line 1: SyntaxError'),
        (
            'from mim_jax.config import default_config\ndef get_config(variant):\n    config = default_config()\n'
            '    config.batch_size = 0.5\n    return config\n',
            "bad.py, line 4: TypeError: Could not override field 'batch_size'",
        ),
        (
            'from mim_jax.config import default_config\ndef get_config(variant):\n    config = default_config()\n'
            '    config.mae = 3\n    return config\n',
            'mae is a section, the keyword arguments of that method; it cannot be 3.',
        ),
    ],
)
def test_a_config_file_that_fails_says_where(tmp_path, text, expected):
    path = tmp_path / 'bad.py'
    path.write_text(text)
    assert expected in mistakes_of(lambda: load_config(str(path), [], METHODS))


def test_a_missing_config_file_names_the_nearest():
    message = mistakes_of(lambda: load_config(MAE.replace('mae.py', 'mea.py'), []))
    assert "mea.py'. Did you mean " in message
    assert 'mae.py' in message


@pytest.mark.parametrize(
    'variants',
    [
        *('', *DATASETS, *SCALES, *(f'vit_{size}16' for size in VIT_SIZES), 'vit_h14'),
        *('vit_b16,cifar10,smoke', 'demo,cifar10', 'vit_s4,digits', 'imagenet,smoke', 'folder,vit_l16,demo'),
    ],
)
def test_every_variant_passes_the_checks(variants):
    config = load('--config.data.dir=somewhere', variants=variants)
    size = {'cifar10': 10_000, 'imagenet_sample': 800, 'digits': 1437, '': 1_281_167}
    check_devices(config, 1, size.get(config.data.name or config.data.source, 1_281_167))


def test_smoke_is_tiny_and_its_order_does_not_matter():
    smoke = load(variants='smoke')
    assert (smoke.steps, smoke.batch_size, smoke.dtype, smoke.data.source) == (20, 32, 'float32', 'digits')
    assert (smoke.encoder.width, smoke.encoder.depth, smoke.mae.decoder_width) == (64, 2, 64)
    assert 1 < warmup_steps(smoke, 1437) < 5
    named = load(variants='smoke,vit_s8,cifar10')
    assert named == load(variants='cifar10,vit_s8,smoke')
    assert (named.encoder.width, named.encoder.patch_size, named.data.name, named.steps) == (384, 8, 'cifar10', 20)
    assert named.data.scale == (0.2, 1.0)  # the recipe's, not the digits'


def test_wrong_variants_are_refused():
    assert "There is no variant 'smok'. Did you mean smoke?" in mistakes_of(lambda: load(variants='smok'))
    assert 'vit_{t,s,b,l,h}PATCH' in mistakes_of(lambda: load(variants='vit_g14'))
    assert "'cifar10' and 'digits' exclude one another" in mistakes_of(lambda: load(variants='cifar10,digits'))
    config = default_config()
    assert apply_variants(config, '') is config
