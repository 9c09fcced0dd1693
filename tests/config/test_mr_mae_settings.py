"""configs/mr_mae.py against the paper: its settings (section 4.1) and the rows of its tables 3 and 4."""

import pytest
from test_released_settings import COMMON, MAE, ROOT

from mim_jax.config import bind_method, check_config, load_config, peak_lr
from mim_jax.config.names import flatten
from mim_jax.config.values import method_defaults
from mim_jax.errors import ConfigError
from mim_jax.methods import BASES, PAPERS

METHODS = {**BASES, **PAPERS}
PAPER = COMMON | MAE | {'batch_size': 1024, 'optim.warmup_epochs': 80.0}
MCMAE = {'base': 'mcmae', 'encoder.depth': 11, 'mcmae.mask_ratio': 0.75, 'mcmae.norm_pix_loss': True}
VIT = {'base': 'mae', 'encoder.depth': 12, 'mae.mask_ratio': 0.75, 'mae.norm_pix_loss': True, 'epochs': 200.0}
ROWS = {  # settings that are not the method's defaults
    '': MCMAE | {'epochs': 400.0},
    'reconstruct': VIT | {'papers': ()},
    'mimic': VIT | {'mr_mae.focus': 'random', 'mr_mae.fusion': False},
    'focused': VIT | {'mr_mae.fusion': False},
    'fused': VIT,
    'decoder': VIT | {'mr_mae.mimic_on': 'decoder'},
    'mimic_only': VIT | {'mr_mae.reconstruct_weight': 0.0},
    'convolution': MCMAE | {'epochs': 200.0},
    'fused,dino': VIT | {'mr_mae.teachers': ('dino',)},
    'fused,clip': VIT,
    'fused,joint': VIT | {'mr_mae.teachers': ('clip', 'dino')},
}


def load(variant, *overrides):
    config, _ = load_config(f'{ROOT}/configs/mr_mae.py:{variant}', overrides, METHODS)
    check_config(config, METHODS)
    return config


@pytest.mark.parametrize('variant', ROWS)
def test_settings_and_rows_of_the_tables(variant):
    config, row = load(variant), ROWS[variant]
    assert peak_lr(config) == pytest.approx(1.5e-4 * 1024 / 256)
    own = {f'mr_mae.{name}': value for name, value in method_defaults(PAPERS['mr_mae']).items()}
    wanted = PAPER | {'papers': ('mr_mae',)} | ({} if row.get('papers') == () else own) | row
    found = flatten(config)
    assert {key: found.get(key) for key in wanted} == wanted
    assert ('mr_mae.focus' in found) == ('mr_mae' in config.papers)
    assert {name for name in BASES if name in config} == {config.base}


def test_the_first_row_is_mae_of_200_epochs():
    """At MR-MAE's batch size and warm-up, nothing else."""
    ours, _ = load_config(f'{ROOT}/configs/mae.py', [], METHODS)
    ours, row = flatten(ours), flatten(load('reconstruct'))
    assert {key for key in ours.keys() | row.keys() if ours.get(key) != row.get(key)} == {
        'batch_size',
        'epochs',
        'optim.warmup_epochs',
    }


@pytest.mark.parametrize(
    'variants',
    ['mimic,focused', 'fused,decoder', 'dino,joint', 'reconstruct,convolution', 'reconstruct,dino', 'clip,reconstruct'],
)
def test_rows_exclude_one_another(variants):
    """A teacher beside the row without one, too: nobody would read it, and the run would be plain MAE."""
    with pytest.raises(
        ConfigError, match="Variants '{}' and '{}' exclude one another; keep one".format(*variants.split(','))
    ):
        load(variants)


@pytest.mark.parametrize('variant', ['smoke', 'demo', 'smoke,decoder', 'demo,mimic_only'])
def test_trials_need_no_file(variant):
    config = load(variant)
    assert config.mr_mae.teachers == ('random',)
    recipe = bind_method(config, config.base, BASES[config.base])(config)
    assert bind_method(config, 'mr_mae', PAPERS['mr_mae'])(recipe).name == f'{config.base}+mr_mae'


def test_sizes_follow_the_base():
    small = load('fused,vit_s16').encoder
    assert (small.width, small.depth) == (384, 12)
    small = load('cvit_s16').encoder
    assert (small.width, small.depth) == (384, 11)
    with pytest.raises(ConfigError, match='cvit_s16'):
        load('vit_s16')
