"""SimMIM: A Simple Framework for Masked Image Modeling (Xie et al., CVPR 2022), ViT-B/16 on ImageNet-1k, 800 epochs.

Command   python -m mim_jax.train --config configs/simmim.py --workdir runs/simmim --config.data.dir=DATA
          also :vit_l16  :cifar10  :folder  :smoke (20 steps, CPU)  :demo (embedded digits, CPU)  or several, by commas
Cost      about 106 GFLOP an image, 1.1e20 for the run: 270 TPU v4 chip-hours if 40 % of peak is reached (arithmetic).
Expected  fine-tuning 83.8 (800 epochs; microsoft/SimMIM). Not run here.
"""

from ml_collections import ConfigDict

from mim_jax.config import apply_variants, default_config


def get_config(variant: str = '') -> ConfigDict:
    config = default_config()
    config.base = 'simmim'
    config.simmim = ConfigDict(
        {
            'mask_ratio': 0.6,
            'mask_cell': 2,  # patches: 32 pixels are masked together
            'layer_scale': 0.1,  # initial factor of every residual branch
        }
    )
    config.batch_size = 2048
    config.epochs = 800.0
    config.encoder.drop_path = 0.1
    config.optim.update(
        base_lr=1e-4,
        lr_scaling='linear/512',
        b2=0.999,
        decay_exclude='simmim',
        schedule='step',
        step_epochs=(700.0,),
        warmup_epochs=10.0,
        warmup_lr=5e-7,  # scaled as base_lr is
        clip_norm=5.0,
    )
    config.data.update(interpolation='bilinear', scale=(0.67, 1.0))
    return apply_variants(config, variant)
