"""PixMIM: Rethinking Pixel Reconstruction in Masked Image Modeling (Liu et al., TMLR 2024), ViT-B/16 on ImageNet-1k.

Command   python -m mim_jax.train --config configs/pixmim.py --workdir runs/pixmim --config.data.dir=DATA
          also :vit_l16  :cifar10  :folder  :smoke (20 steps, CPU)  :demo (embedded digits, CPU)  or several, by commas
Cost      about 59 GFLOP an image, and 0.3 in fp32 for the filter: 150 TPU v4 chip-hours at 40 % of peak (arithmetic).
Expected  fine-tuning 83.5, linear probe 67.5 (800 epochs; 83.1 / 63.3 after 300; open-mmlab/mmselfsup). Not run here.
"""

from ml_collections import ConfigDict

from mim_jax.config import apply_variants, default_config


def get_config(variant: str = '') -> ConfigDict:
    config = default_config()  # MAE's settings, save for these
    config.base = 'pixmim'
    config.pixmim = ConfigDict(
        {
            'low_pass_radius': 40.0,  # frequencies kept in the target, in bins of a 224-pixel image
            'scale_radius': True,  # the same share of the frequencies at other image sizes
            'mask_ratio': 0.75,
            'norm_pix_loss': True,  # targets normalised within each patch
            'decoder_width': 512,
            'decoder_depth': 8,
            'decoder_heads': 16,
        }
    )
    config.optim.decay_exclude = 'mmpretrain'
    config.data.crop = 'src'  # keeps nearly all of an image; scale and ratio have no effect
    config.data.interpolation = 'bilinear'
    return apply_variants(config, variant)
