"""Supervised ViT-B/16 on ImageNet-1k, 300 epochs: the control of MFF's figure 6 (Liu et al., ICCV 2023), with the settings of
DeiT (Touvron et al., ICML 2021) but for its augmentation.

Command   python -m mim_jax.train --config configs/supervised.py:pilot --workdir runs/control --config.data.dir=DATA
          pilot: all blocks fused before the classifier, without projections; compare with configs/mff.py:pilot. Without it the
          plain classifier. Also :vit_s16  :cifar10  :folder  :smoke (20 steps, CPU)  :demo (embedded digits, CPU)
Cost      about 105 GFLOP an image, 4.0e19 for the run: 100 TPU v4 chip-hours if 40 % of peak is reached (arithmetic).
Expected  the last block's weight in the fusion far above the shallow ones' at the end (MFF, figure 6). DeiT-B reaches 81.8 with
          RandAugment, mixup, cutmix, random erasing and repeated augmentation (facebookresearch/deit), none of which is
          here: expect less, and overfitting. Not run here.
"""

from ml_collections import ConfigDict

from mim_jax.config import apply_variants, default_config

VARIANTS = {'pilot': {'papers': ('mff',), 'mff.layers': ('all',), 'mff.projection': 'none'}}


def get_config(variant: str = '') -> ConfigDict:
    config = default_config()
    config.base = 'supervised'
    config.supervised = ConfigDict(
        {
            'classes': 0,  # of the classifier; 0: as many as the dataset has
            'label_smoothing': 0.1,  # share of the target spread over all classes
        }
    )
    config.batch_size = 1024
    config.epochs = 300.0
    config.encoder.positions = 'learned'
    config.encoder.drop_path = 0.1
    config.optim.update(
        base_lr=5e-4,
        lr_scaling='linear/512',
        b2=0.999,
        decay_exclude='simmim',  # biases, norms, positions and CLS, as in timm
        warmup_epochs=5.0,
        warmup_lr=5e-7,  # scaled as base_lr is: 1e-6, which DeiT does not scale
        min_lr=1e-5,
    )
    config.data.scale = (0.08, 1.0)
    return apply_variants(config, variant, VARIANTS)
