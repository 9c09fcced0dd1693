"""Linear probe by MAE's protocol (He et al. 2022, table 10; facebookresearch/mae main_linprobe.py).

Command   python -m mim_jax.evaluate --checkpoint RUN --config configs/eval/linear_probe.py
          other encoders: :simmim (block 8, mean, no norm)  :bootmae (block 9, mean, a new norm)  :pooled (MCMAE, MAE's
          global pool)
          :short (50 epochs, ViT-L and H)  :sweep (seven learning rates in one pass)  :small (small data, CPU)
          another dataset than the run's: :imagenet :cifar10 :digits :folder
          crops keep 0.08 to 1 of an image, whatever pre-training's kept; of digits 0.5 to 1 (--config.data.scale=...)
Expected  ViT-B, ImageNet: MAE 1600 epochs 68.0 (67.8 in PyTorch); MFF table 1, 800 epochs: MAE 65.6, MFF 67.0. Not run here.
"""

from ml_collections import ConfigDict

from mim_jax.config import apply_variants, default_config

VARIANTS = {
    'simmim': {'linear_probe.layer': 8, 'linear_probe.pool': 'mean', 'linear_probe.norm': 'none'},
    # The released README reads block 9, its script (scripts/linear) block 10.
    'bootmae': {'linear_probe.layer': 9, 'linear_probe.pool': 'mean', 'linear_probe.norm': 'fresh'},
    'pooled': {'linear_probe.pool': 'mean', 'linear_probe.norm': 'fresh'},
    'short': {'epochs': 50.0},
    'sweep': {'linear_probe.rates': (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)},
    'small': {
        **{'batch_size': 512, 'dtype': 'float32', 'epochs': 20.0, 'optim.warmup_epochs': 2.0, 'data.threads': 2},
        **{'linear_probe.rates': (0.5, 2.0, 8.0, 32.0)},
    },
}


def get_config(variant: str = '') -> ConfigDict:
    config = default_config()
    config.papers = ('linear_probe',)
    config.batch_size = 16384
    config.epochs = 90.0
    config.checkpoint.milestone_epochs = 0.0
    config.optim.name = 'lars'
    config.optim.base_lr = 0.1  # 6.4 at 16384 images
    config.optim.b1 = 0.9  # momentum
    config.optim.weight_decay = 0.0
    config.optim.warmup_epochs = 10.0
    config.data.crop = 'rrc_once'
    config.data.scale = (0.08, 1.0)
    config.linear_probe = ConfigDict(
        {
            'weights': '',  # of the encoder; mim_jax.evaluate fills it in
            'layer': 0,  # block that is read, from 1; 0: the last
            'pool': 'cls',  # or mean of the patch tokens
            'norm': 'encoder',  # the final norm before pooling; fresh: one after it; none
            'rates': (1.0,),  # a classifier for each, with so many times base_lr
            'bn_images': 0,  # images that share BatchNorm statistics; 0: all; 512 in the released code
        }
    )
    return apply_variants(config, variant, VARIANTS)
