"""BootMAE: Bootstrapped Masked Autoencoders (Dong et al., ECCV 2022), ViT-B/16 on ImageNet-1k, 800 epochs.

Command   python -m mim_jax.train --config configs/bootmae.py --workdir runs/bootmae --config.data.dir=DATA
          also :cifar10  :folder  :smoke (20 steps, CPU)  :demo (embedded digits, CPU)  or several, by commas
          ViT-L/16 as released: configs/bootmae.py:vit_l16 --config.bootmae.ema_dynamic=false --config.optim.min_lr=1e-5
          (the released script has 128 images per GPU and does not say how many GPUs)
Cost      about 93 GFLOP an image, over a third of it for the teacher, who sees the whole image; 9.6e19 for the run: 240 TPU
          v4 chip-hours if 40 % of peak is reached (arithmetic).
Expected  fine-tuning 84.2, linear probe 66.1 (LightDXY/BootMAE, README; fine-tuned with layer decay 0.6, probed on
          block 9 or 10). Not run here. The released script runs 801 epochs and keeps the weights after 800; its batch is
          4096 on 16 GPUs, where the README says 2048.
"""

from ml_collections import ConfigDict

from mim_jax.config import apply_variants, default_config


def get_config(variant: str = '') -> ConfigDict:
    config = default_config()
    config.base = 'bootmae'
    config.optim.update(
        {
            'decay_exclude': 'simmim',  # one-dimensional parameters and CLS; mask tokens are decayed
            'schedule': 'cosine_beit',
            'min_lr': 1e-4,  # 1e-5 for ViT-L
        }
    )
    config.data.update({'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)})
    config.bootmae = ConfigDict(
        {
            'mask_ratio': 0.75,
            'block_patches': 120,  # of the 147 masked, on 14 x 14 patches; scaled on other grids
            'smallest_block': 16,
            'largest_block': 60,
            'mask_roll': 4,  # up to 3 patches of blocks stay visible; 1: none
            'decoder_width': 512,  # of the pixel decoder; the feature decoder is as wide as the encoder
            'decoder_depth': 2,  # of both; their heads are the encoder's
            'feature_weight': 1.0,  # after a quarter of the run
            'ema_momentum': 0.999,  # at the start; 0.9999 after 100 epochs
            'ema_dynamic': True,  # and 0.99999 after 400; False for ViT-L
        }
    )
    return apply_variants(config, variant)
