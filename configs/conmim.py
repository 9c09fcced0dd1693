"""ConMIM: Masked Image Modeling with Denoising Contrast (Yi et al., ICLR 2023), ViT-B/16 on ImageNet-1k, 800 epochs.

Command   python -m mim_jax.train --config configs/conmim.py --workdir runs/conmim --config.data.dir=DATA
          also :cifar10  :folder  :smoke (20 steps, CPU)  :demo (embedded digits, CPU)  or several, by commas
          ViT-L/16 as released: configs/conmim.py:vit_l16 --config.conmim.layer_scale=1e-5 --config.optim.base_lr=7.5e-4
          --config.epochs=1600
Cost      about 173 GFLOP an image, a quarter of it for the teacher and a fifth for the projectors; 1.8e20 for the run:
          450 TPU v4 chip-hours if 40 % of peak is reached (arithmetic).
Expected  fine-tuning 83.7 (TencentARC/ConMIM, README), linear probe 39.2 (32.2 after 400 epochs; MTO paper, table 2).
          Not run here. Released are a command for ViT-L and the script's defaults. From the former: clipping, ImageNet's
          statistics, masks of 32-pixel cells; batch and warm-up of ViT-B are MTO's.
"""

from ml_collections import ConfigDict

from mim_jax.config import apply_variants, default_config


def get_config(variant: str = '') -> ConfigDict:
    config = default_config()
    config.base = 'conmim'
    config.batch_size = 2048
    config.optim.update(
        {
            'base_lr': 5e-4,  # absolute; 7.5e-4 for ViT-L
            'lr_scaling': 'none',
            'b2': 0.98,
            'decay_exclude': 'simmim',
            'schedule': 'cosine_beit',
            'warmup_epochs': 10.0,
            'min_lr': 1e-5,
            'clip_norm': 1.0,
        }
    )
    config.data.scale = (0.08, 1.0)
    config.conmim = ConfigDict(
        {
            'mask_ratio': 0.75,
            'mask_cell': 2,  # cells of 2 x 2 patches, 32 pixels, are masked whole
            'layer_scale': 0.1,  # 1e-5 for ViT-L
            'temperature': 0.1,
            'projector_width': 4096,
            'projector_output': 256,
            'bn_images': 64,  # share the projector's BatchNorm statistics: the images of one GPU there
            'momentum': 0.996,  # of the teacher at the start; 1 at the end
        }
    )
    return apply_variants(config, variant)
