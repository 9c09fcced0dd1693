"""configs/*.py against the settings of the released commands, key by key.

Read from: facebookresearch/mae PRETRAIN.md and main_pretrain.py; microsoft/SimMIM configs/vit_base__800ep/
simmim_pretrain__vit_base__img224__800ep.yaml and config.py; open-mmlab/mmselfsup configs/selfsup/pixmim (800 epochs);
LightDXY/BootMAE README.md and run_pretraining.py; TencentARC/ConMIM README.md and run_conmim_pretraining.py;
Alpha-VL/ConvMAE PRETRAIN.md and main_pretrain.py; facebookresearch/deit main.py.
"""

from pathlib import Path

import pytest

from mim_jax.config import IMAGENET_MEAN, IMAGENET_STD, check_config, load_config, peak_lr
from mim_jax.config.names import flatten
from mim_jax.methods import BASES, PAPERS

ROOT = Path(__file__).parents[2]
COMMON = {
    **{'image_size': 224, 'encoder.patch_size': 16, 'encoder.width': 768, 'encoder.depth': 12, 'encoder.heads': 12},
    **{'optim.b1': 0.9, 'optim.eps': 1e-8, 'optim.weight_decay': 0.05, 'optim.min_lr': 0.0, 'optim.clip_norm': 0.0},
    **{'optim.warmup_lr': 0.0, 'optim.step_epochs': (), 'encoder.drop_path': 0.0, 'data.flip': True},
    **{'data.mean': IMAGENET_MEAN, 'data.std': IMAGENET_STD, 'data.ratio': (3 / 4, 4 / 3), 'data.crop': 'rrc'},
}
MAE = {
    **{'batch_size': 4096, 'epochs': 800.0, 'optim.base_lr': 1.5e-4, 'optim.lr_scaling': 'linear/256'},
    **{'optim.b2': 0.95, 'optim.warmup_epochs': 40.0, 'optim.schedule': 'cosine', 'optim.decay_exclude': 'mae'},
    **{'data.scale': (0.2, 1.0), 'data.interpolation': 'bicubic'},
}
RELEASED = {
    'mae': MAE | {'mae.mask_ratio': 0.75, 'mae.norm_pix_loss': True},
    'mcmae': MAE | {'batch_size': 3072, 'epochs': 1600.0, 'encoder.depth': 11, 'mcmae.mask_ratio': 0.75},
    'pixmim': MAE
    | {'optim.decay_exclude': 'mmpretrain', 'data.crop': 'src', 'data.interpolation': 'bilinear', 'data.padding': 4}
    | {'pixmim.low_pass_radius': 40.0, 'pixmim.mask_ratio': 0.75, 'pixmim.norm_pix_loss': True},
    'bootmae': MAE
    | {'optim.schedule': 'cosine_beit', 'optim.min_lr': 1e-4, 'optim.decay_exclude': 'simmim'}
    | {'data.mean': (0.5,) * 3, 'data.std': (0.5,) * 3, 'bootmae.ema_momentum': 0.999, 'bootmae.ema_dynamic': True}
    | {'bootmae.block_patches': 120, 'bootmae.smallest_block': 16, 'bootmae.largest_block': 60},
    'simmim': {
        **{'batch_size': 2048, 'epochs': 800.0, 'optim.base_lr': 1e-4, 'optim.lr_scaling': 'linear/512'},
        **{'optim.b2': 0.999, 'optim.warmup_epochs': 10.0, 'optim.warmup_lr': 5e-7, 'optim.schedule': 'step'},
        **{'optim.step_epochs': (700.0,), 'optim.step_factor': 0.1, 'optim.clip_norm': 5.0},
        **{'optim.decay_exclude': 'simmim', 'encoder.drop_path': 0.1},
        **{'data.scale': (0.67, 1.0), 'data.interpolation': 'bilinear'},
        **{'simmim.mask_ratio': 0.6, 'simmim.mask_cell': 2, 'simmim.layer_scale': 0.1},
    },
    'conmim': {
        **{'batch_size': 2048, 'epochs': 800.0, 'optim.base_lr': 5e-4, 'optim.lr_scaling': 'none', 'optim.b2': 0.98},
        **{'optim.warmup_epochs': 10.0, 'optim.schedule': 'cosine_beit', 'optim.min_lr': 1e-5, 'optim.clip_norm': 1.0},
        **{'optim.decay_exclude': 'simmim', 'data.scale': (0.08, 1.0), 'data.interpolation': 'bicubic'},
        **{'conmim.mask_ratio': 0.75, 'conmim.mask_cell': 2, 'conmim.temperature': 0.1, 'conmim.momentum': 0.996},
        **{'conmim.projector_width': 4096, 'conmim.projector_output': 256, 'conmim.bn_images': 64},
    },
    'supervised': {  # the defaults of DeiT's arguments; 5e-7 becomes 1e-6 by the scaling
        **{'batch_size': 1024, 'epochs': 300.0, 'optim.base_lr': 5e-4, 'optim.lr_scaling': 'linear/512'},
        **{'optim.b2': 0.999, 'optim.warmup_epochs': 5.0, 'optim.warmup_lr': 5e-7, 'optim.schedule': 'cosine'},
        **{'optim.min_lr': 1e-5, 'optim.decay_exclude': 'simmim', 'encoder.drop_path': 0.1},
        **{'encoder.positions': 'learned', 'data.scale': (0.08, 1.0), 'data.interpolation': 'bicubic'},
        **{'supervised.classes': 0, 'supervised.label_smoothing': 0.1},
    },
}
PEAKS = {
    **{'mae': 2.4e-3, 'pixmim': 2.4e-3, 'mcmae': 1.8e-3, 'bootmae': 2.4e-3, 'simmim': 4e-4, 'conmim': 5e-4},
    'supervised': 1e-3,
}


def test_no_base_is_forgotten():
    assert RELEASED.keys() == PEAKS.keys() == BASES.keys()


@pytest.mark.parametrize('base', BASES)
def test_settings_are_the_released_ones(base):
    methods = {**BASES, **PAPERS}
    config, _ = load_config(str(ROOT / 'configs' / f'{base}.py'), [], methods)
    check_config(config, methods)
    found, wanted = flatten(config), COMMON | RELEASED[base]
    assert {key: found[key] for key in wanted} == wanted
    assert peak_lr(config) == pytest.approx(PEAKS[base])


@pytest.mark.parametrize('variant', ['smoke', 'demo', 'cifar10', 'demo,cifar10', 'imagenet_sample', 'digits', 'folder'])
@pytest.mark.parametrize('base', BASES)
def test_every_variant_is_free_of_contradictions(base, variant):
    methods = {**BASES, **PAPERS}
    config, _ = load_config(f'{ROOT / "configs" / base}.py:{variant}', ['--config.data.dir=x'], methods)
    check_config(config, methods)
