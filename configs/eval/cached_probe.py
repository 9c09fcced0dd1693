"""A linear probe on features of centre crops, made once: minutes where the linear probe takes hours.

It sees no augmented images, so its numbers are not MAE's linear probe and must not be reported as one.

Command   python -m mim_jax.evaluate --checkpoint RUN --config configs/eval/cached_probe.py
          :pooled (the mean of the patch tokens)  :small (small data, CPU)
Expected  no paper reports it.
"""

from ml_collections import ConfigDict

from mim_jax.config import apply_variants, default_config

VARIANTS = {
    'pooled': {'cached_probe.pool': 'mean'},
    'small': {'batch_size': 512, 'dtype': 'float32', 'epochs': 30.0, 'data.threads': 2},
}


def get_config(variant: str = '') -> ConfigDict:
    config = default_config()
    config.papers = ('cached_probe',)
    config.batch_size = 4096
    config.epochs = 90.0
    config.optim.name = 'lars'
    config.optim.base_lr = 0.1
    config.optim.weight_decay = 0.0
    config.optim.warmup_epochs = 10.0
    config.cached_probe = ConfigDict(
        {
            'pool': 'cls',  # or mean of the patch tokens
            'norm': 'encoder',  # the final norm before pooling; fresh: one after it; none
            'layer': 0,  # block that is read, from 1; 0: the last
            'rates': (0.5, 2.0, 8.0, 32.0, 128.0),  # tried on a held-out tenth, so many times base_lr each
        }
    )
    return apply_variants(config, variant, VARIANTS)
