"""configs/mff.py against the paper, and its :src against the released configurations and beside their control.

Read from: open-mmlab/mmpretrain configs/mff/mff_vit-base-p16_8xb512-amp-coslr-{300,800}e_in1k.py and what they build on
(configs/mae, configs/_base_/models/mae_vit-base-p16.py, configs/_base_/datasets/imagenet_bs512_mae.py).
"""

import pytest
from test_released_settings import COMMON, MAE, ROOT

from mim_jax.config import check_config, load_config, peak_lr
from mim_jax.config.names import flatten
from mim_jax.errors import ConfigError
from mim_jax.methods import BASES, PAPERS, build

METHODS = {**BASES, **PAPERS}
SRC = {'data.crop': 'src', 'data.interpolation': 'bilinear', 'data.padding': 4, 'data.flip': True}
MFF = {
    **{'base': 'mae', 'papers': ('mff',), 'mae.mask_ratio': 0.75, 'mae.norm_pix_loss': True},
    **{'mae.decoder_width': 512, 'mae.decoder_depth': 8, 'mae.decoder_heads': 16},
    **{'mff.layers': (), 'mff.projection': 'linear', 'mff.fusion': 'pool', 'mff.detach': False},
    **{'mff.decay_logits': True, 'optim.decay_exclude': 'mmpretrain'},
}
VARIANTS = ['pilot', 'shallow', 'deep', 'last', 'four', 'every', 'plain', 'nonlinear', 'attention', 'detach']


def settings(spec, *overrides):
    config, _ = load_config(f'{ROOT}/configs/{spec}', overrides, METHODS)
    check_config(config, METHODS)
    assert peak_lr(config) == pytest.approx(1.5e-4 * 4096 / 256)
    return flatten(config)


def assert_settings(found, wanted):
    assert {key: found[key] for key in wanted} == wanted


def test_the_paper_is_mae():
    assert_settings(settings('mff.py'), COMMON | MAE | MFF)


@pytest.mark.parametrize('epochs', [300, 800])
def test_the_released_ones_have_the_simple_resized_crop(epochs):
    found = settings('mff.py:src', f'--config.epochs={epochs}')
    assert_settings(found, COMMON | MAE | SRC | MFF | {'epochs': float(epochs), 'optim.warmup_epochs': 40.0})


def test_the_control_differs_by_the_fusion_alone():
    """And by the decay of CLS and mask tokens, which facebookresearch/mae has and mmpretrain has not."""
    fused, control = settings('mff.py:src'), settings('mae.py:src')
    assert_settings(control, COMMON | MAE | SRC)
    differing = {key for key in fused.keys() | control.keys() if fused.get(key) != control.get(key)}
    assert {key for key in differing if not key.startswith('mff.')} == {'papers', 'optim.decay_exclude'}


def test_a_crop_changes_nothing_but_the_crop():
    for name in ('mff', 'mae'):
        plain, src = settings(f'{name}.py'), settings(f'{name}.py:src')
        assert {key for key in plain if plain[key] != src[key]} == {'data.crop', 'data.interpolation'}
        assert settings(f'{name}.py:rrc') == plain


def test_on_pixmim_it_is_pixmim_with_mff():
    """MFF_PixMIM has no released configuration: PixMIM's low-pass target and crop."""
    found = settings('pixmim.py', '--config.papers=mff')
    assert_settings(found, COMMON | MAE | SRC | {'pixmim.low_pass_radius': 40.0, 'optim.decay_exclude': 'mmpretrain'})
    assert_settings(found, {key: value for key, value in MFF.items() if key.startswith('mff.')})


@pytest.mark.parametrize('variant', VARIANTS)
def test_rows_of_tables_change_the_fusion_alone(variant):
    """At any crop, model and scale."""
    plain, row = settings('mff.py:src,vit_l16'), settings(f'mff.py:src,vit_l16,{variant}')
    assert {key.partition('.')[0] for key in plain if plain[key] != row[key]} == {'mff'}
    load_config(f'{ROOT}/configs/mff.py:smoke,{variant}', (), METHODS)


def test_numbers_and_words_can_take_one_anothers_place():
    """:pilot says ('all',), :shallow (0, -1): neither must decide the type of what is given instead."""
    assert settings('mff.py:pilot', '--config.mff.layers=0,-1')['mff.layers'] == (0, -1)
    assert settings('mff.py:shallow', '--config.mff.layers=all')['mff.layers'] == ('all',)


@pytest.mark.parametrize('pair', [('four', 'shallow'), ('pilot', 'nonlinear'), ('shallow', 'pilot')])
def test_rows_that_exclude_one_another_are_both_named(pair):
    with pytest.raises(ConfigError, match="Variants '{}' and '{}' exclude one another".format(*pair)):
        settings(f'mff.py:{",".join(pair)}')


@pytest.mark.parametrize(
    ('override', 'sentence'),
    [
        ('base=mto', 'base=mto is a paper, which goes on a base: name it in papers; bases: mae, '),
        ('papers=simmim', 'papers: simmim is a base, of which a run has one; set base=simmim; papers: mff, '),
    ],
)
def test_bases_and_papers_are_not_confused(override, sentence):
    config, _ = load_config(f'{ROOT}/configs/mae.py', [f'--config.{override}'], METHODS)
    check_config(config, METHODS)
    with pytest.raises(ConfigError, match=sentence):
        build(config, 1000)
