"""MCMAE (ConvMAE): Masked Convolution Meets Masked Autoencoders (Gao et al., NeurIPS 2022), CViT-B on ImageNet-1k, 1600 epochs.

Command   python -m mim_jax.train --config configs/mcmae.py --workdir runs/mcmae --config.data.dir=DATA
          also :cvit_{s,b,l,h}16  :cifar10  :folder  :smoke (20 steps, CPU)  :demo (embedded digits, CPU)  or several, by commas
Cost      about 68 GFLOP an image, 1.4e20 for the run: 350 TPU v4 chip-hours if 40 % of peak is reached (arithmetic).
Expected  fine-tuning 85.0, linear probe 70.9 (Alpha-VL/ConvMAE, README). Not run here.
"""

from ml_collections import ConfigDict

from mim_jax.config import apply_variants, default_config


def get_config(variant: str = '') -> ConfigDict:
    config = default_config()  # settings of PRETRAIN.md and main_pretrain.py; every other one is MAE's, the default
    config.base = 'mcmae'
    config.batch_size = 3072
    config.epochs = 1600.0
    config.encoder.depth = 11  # transformer blocks; width 768 and 12 heads are theirs too
    config.mcmae = ConfigDict(
        {
            'mask_ratio': 0.75,
            'norm_pix_loss': True,  # targets normalised within each patch
            'stage_widths': (256, 384),  # channels at a quarter and an eighth of the image's side
            'stage_depths': (2, 2),  # convolution blocks there
            'decoder_width': 512,
            'decoder_depth': 8,
            'decoder_heads': 16,
        }
    )
    return apply_variants(config, variant)
