"""MFF: Improving Pixel-based MIM by Reducing Wasted Modeling Capability (Liu et al., ICCV 2023), on MAE, ViT-B/16, 800 epochs.

Command   python -m mim_jax.train --config configs/mff.py --workdir runs/mff --config.data.dir=DATA
          on PixMIM: --config configs/pixmim.py --config.papers=mff; on any other base likewise
          also :src (the crop of the released configuration; its control is configs/mae.py:src)  :pilot (figure 1)
          :shallow :deep (table 3a)  :last :four :every (table 8, with :shallow)  :plain :nonlinear :attention (table 3c)
          :detach (A.8)  :vit_s16  :vit_l16  :cifar10  :folder  :smoke (20 steps, CPU)  :demo (embedded digits, CPU)
Cost      about 60 GFLOP an image, 1.5 % of it for the projections: 155 TPU v4 chip-hours at 40 % of peak (arithmetic).
Expected  paper, table 1: fine-tuning 83.6, linear probe 67.0 (800 epochs; 83.3 / 63.3 after 300; MAE 83.3 / 65.6). The
          released configuration has PixMIM's crop: 83.7 / 68.3 (300 epochs: 83.0 / 64.2; open-mmlab/mmpretrain). Not run here.
"""

from ml_collections import ConfigDict

from mim_jax.config import apply_variants, default_config

VARIANTS = {
    'pilot': {'mff.layers': ('all',), 'mff.projection': 'none'},
    'shallow': {'mff.layers': (0, -1)},
    'deep': {'mff.layers': (-2, -1)},
    'last': {'mff.layers': (-1,)},  # MAE itself
    'four': {'mff.layers': (0, 4, 8, 11)},
    'every': {'mff.layers': ('all',)},
    'plain': {'mff.projection': 'none'},
    'nonlinear': {'mff.projection': 'nonlinear'},
    'attention': {'mff.fusion': 'attention'},
    'detach': {'mff.detach': True},
}


def get_config(variant: str = '') -> ConfigDict:
    config = default_config()  # MAE's settings, save for these
    config.base, config.papers = 'mae', ('mff',)
    config.mae = ConfigDict(
        {
            'mask_ratio': 0.75,
            'norm_pix_loss': True,  # targets normalised within each patch
            'decoder_width': 512,
            'decoder_depth': 8,
            'decoder_heads': 16,
        }
    )
    config.mff = ConfigDict(
        {
            'layers': (),  # blocks fused, from 0, the last included; (): five evenly and the last, 0,2,4,6,8,11 of 12
            'projection': 'linear',  # of every block but the last: none, linear, nonlinear
            'fusion': 'pool',  # a sum with learned weights, or attention
            'detach': False,  # True: no gradient through the projections into the encoder
            'decay_logits': True,  # weight decay pulls the learned weights towards equality
        }
    )
    config.optim.decay_exclude = 'mmpretrain'
    return apply_variants(config, variant, VARIANTS)
