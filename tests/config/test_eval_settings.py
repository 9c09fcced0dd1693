"""configs/eval against the papers' and repositories' recipes, and that every variant and suite of it can be read."""

import importlib.util
from pathlib import Path

import pytest

from mim_jax.config import check_config, load_config, peak_lr
from mim_jax.config.names import flatten
from mim_jax.evals.protocols import DIRECT
from mim_jax.evals.suite import read_suite
from mim_jax.methods import METHODS, PROTOCOLS, build

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / 'configs' / 'eval').glob('*.py') if 'SUITE' not in path.read_text())
SUITES = sorted(path for path in (ROOT / 'configs' / 'eval').glob('*.py') if 'SUITE' in path.read_text())


def settings(name, variant='', *overrides):
    """The checked config of configs/eval/<name>.py."""
    config, _ = load_config(f'{ROOT}/configs/eval/{name}.py:{variant}', overrides, {**METHODS, **DIRECT})
    check_config(config, {**METHODS, **DIRECT})
    return config


def variants_of(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return ['', *getattr(module, 'VARIANTS', {})]


# variant: peak lr, layer decay, epochs, drop path, batch, warm-up. FINETUNE.md of facebookresearch/mae; MFF table 7 and its
# released config; LUT table D and its released code; MR-MAE section 4.1; MTO's supplement, tables 3 to 6; the finetuning
# recipes of microsoft/SimMIM, LightDXY/BootMAE and TencentARC/ConMIM. "base" learning rates are times batch / 256.
ROWS = {
    '': (5e-4 * 4, 0.65, 100, 0.1, 1024, 5),
    'mae_l': (1e-3 * 4, 0.75, 50, 0.2, 1024, 5),
    'mae_h': (1e-3 * 4, 0.75, 50, 0.3, 1024, 5),
    'mff': (1e-3 * 4, 0.75, 100, 0.1, 1024, 5),
    'mff_released': (5e-4 * 4, 0.65, 100, 0.1, 1024, 5),
    'lut_s': (5e-4 * 4, 0.75, 300, 0.1, 1024, 5),
    'lut_b': (2.5e-4 * 4, 0.65, 100, 0.1, 1024, 5),
    'lut_l': (1e-3 * 4, 0.65, 50, 0.1, 1024, 5),
    'lut_released': (1e-3 * 4, 0.75, 100, 0.1, 1024, 5),
    'mr_mae': (3e-4 * 4, 0.6, 100, 0.2, 1024, 5),
    'mto_mae_b': (1e-3 * 4, 0.75, 100, 0.1, 1024, 5),
    'mto_mae_l': (1e-3 * 4, 0.75, 50, 0.2, 1024, 5),
    'mto_simmim': (5e-3, 0.9, 100, 0.1, 2048, 10),
    'mto_bootmae': (5e-3, 0.75, 100, 0.1, 1024, 20),
    'mto_conmim': (4e-3, 0.65, 100, 0.1, 1024, 20),
    'simmim': (1.25e-3 * 4, 0.65, 100, 0.1, 2048, 20),
    'bootmae': (5e-3, 0.6, 100, 0.1, 2048, 20),
    'conmim': (4e-3, 0.65, 100, 0.1, 1024, 20),
}


# What rows have beside that, learning rates as they are used. MFF: mmpretrain's schedulers lower every layer to the same
# end; SimMIM: config.py, lr_scheduler.py, its ViT-B's yaml (both ends times 2048 / 512); BootMAE and ConMIM: utils.py,
# run_class_finetuning.py, whose warm-up begins at 0 whatever --warmup_lr is.
USUAL = {
    **{'schedule': 'cosine', 'clip_norm': 0.0, 'same_ends': False, 'min_lr': 1e-6, 'warmup_lr': 0.0},
    'positions': 'learned',
}
RELEASED = {
    'mff_released': {'same_ends': True},
    'simmim': {'schedule': 'cosine_timm', 'clip_norm': 5.0, 'same_ends': True, 'min_lr': 1e-6, 'warmup_lr': 1e-6},
    'bootmae': {'schedule': 'cosine_beit', 'positions': 'fixed'},
    'conmim': {'schedule': 'cosine_beit'},
}


@pytest.mark.parametrize('variant', ROWS)
def test_fine_tuning_recipes(variant):
    config = settings('finetune', variant)
    found = (
        peak_lr(config),
        config.finetune.layer_decay,
        config.epochs,
        config.encoder.drop_path,
        config.batch_size,
        config.optim.warmup_epochs,
    )
    assert found == pytest.approx(ROWS[variant])
    assert config.finetune.average == (0.9998 if variant == 'bootmae' else 0.0)
    optim, wanted = config.optim, {**USUAL, **RELEASED.get(variant, {})}
    start = optim.warmup_lr * peak_lr(config) / optim.base_lr
    found = {
        **{'schedule': optim.schedule, 'clip_norm': optim.clip_norm, 'same_ends': optim.same_ends},
        **{'min_lr': optim.min_lr, 'warmup_lr': start, 'positions': config.encoder.positions},
    }
    assert found == pytest.approx(wanted)


def test_what_fine_tuning_recipes_share():
    found = flatten(settings('finetune'))
    wanted = {
        **{
            'optim.b1': 0.9,
            'optim.b2': 0.999,
            'optim.weight_decay': 0.05,
            'optim.min_lr': 1e-6,
            'optim.clip_norm': 0.0,
        },
        **{'data.scale': (0.08, 1.0), 'data.crop': 'rrc', 'data.interpolation': 'bicubic', 'data.flip': True},
        **{'data.rand_augment': 'rand-m9-mstd0.5-inc1', 'finetune.mixup': 0.8, 'finetune.cutmix': 1.0},
        **{'finetune.switch_probability': 0.5, 'finetune.label_smoothing': 0.1, 'finetune.erase_probability': 0.25},
        **{'finetune.head_deviation': 2e-5, 'finetune.pool': 'mean', 'encoder.positions': 'learned'},
        'optim.decay_exclude': 'simmim',
    }
    assert {key: found[key] for key in wanted} == wanted


def test_the_linear_probe_is_maes():
    config = settings('linear_probe')
    found = flatten(config)
    wanted = {
        **{'optim.name': 'lars', 'optim.b1': 0.9, 'optim.weight_decay': 0.0, 'optim.warmup_epochs': 10.0},
        **{
            'optim.min_lr': 0.0,
            'epochs': 90.0,
            'batch_size': 16384,
            'data.crop': 'rrc_once',
            'data.scale': (0.08, 1.0),
        },
        **{
            'linear_probe.pool': 'cls',
            'linear_probe.layer': 0,
            'linear_probe.norm': 'encoder',
            'data.rand_augment': '',
        },
    }
    assert {key: found[key] for key in wanted} == wanted
    assert peak_lr(config) == pytest.approx(6.4)


@pytest.mark.parametrize(
    ('variant', 'read'),
    [('simmim', (8, 'mean', 'none')), ('bootmae', (9, 'mean', 'fresh')), ('pooled', (0, 'mean', 'fresh'))],
)
def test_where_other_encoders_are_probed(variant, read):
    probe = settings('linear_probe', variant).linear_probe
    assert (probe.layer, probe.pool, probe.norm) == read


@pytest.mark.parametrize(('path', 'variant'), [(path, v) for path in FILES for v in variants_of(path)])
def test_every_variant_is_a_protocol(path, variant):
    """Its settings are known and sound; those that train a whole network build at full size."""
    config = settings(path.stem, variant)
    (name,) = config.papers
    assert name in {**PROTOCOLS, **DIRECT}
    if name == 'finetune':
        assert build(config, 1_281_167, 1000).name == 'mae+finetune'


@pytest.mark.parametrize('path', SUITES, ids=lambda path: path.stem)
def test_suites_name_configs_that_are_there(path):
    for row in read_suite(str(path)):
        for _, overrides, _ in row.runs():
            file, _, variant = row.config.partition(':')
            config = settings(Path(file).stem, variant, *overrides)
            assert config.seed in row.seeds
