"""MAE: Masked Autoencoders Are Scalable Vision Learners (He et al., CVPR 2022), ViT-B/16 on ImageNet-1k, 800 epochs.

Command   python -m mim_jax.train --config configs/mae.py --workdir runs/mae --config.data.dir=DATA
          also :src (simple resized crop: the control of MFF's released configuration, which adds
          --config.optim.decay_exclude=mmpretrain)  :vit_l16  :cifar10  :folder  :smoke (20 steps)  :demo (digits, CPU)
Cost      about 59 GFLOP an image, 6.0e19 for the run: 150 TPU v4 chip-hours if 40 % of peak is reached (arithmetic).
Expected  fine-tuning 83.3, linear probe 65.6 (800 epochs; 82.8 / 61.5 after 300; MFF paper, table 1, same recipe);
          83.66 / 67.8 after 1600 epochs (facebookresearch/mae). Not run here.
"""

from ml_collections import ConfigDict

from mim_jax.config import apply_variants, default_config


def get_config(variant: str = '') -> ConfigDict:
    config = default_config()  # every other setting of MAE is the default
    config.base = 'mae'
    config.mae = ConfigDict(
        {
            'mask_ratio': 0.75,
            'norm_pix_loss': True,  # targets normalised within each patch
            'decoder_width': 512,
            'decoder_depth': 8,
            'decoder_heads': 16,
        }
    )
    return apply_variants(config, variant)
