"""Ridge regression on frozen features: the quick probe of the training program, on the whole splits.

Command   python -m mim_jax.evaluate --checkpoint RUN --config configs/eval/ridge.py
Expected  no paper reports it; it is not a linear probe by MAE's protocol.
"""

from ml_collections import ConfigDict

from mim_jax.config import apply_variants, default_config


def get_config(variant: str = '') -> ConfigDict:
    config = default_config()
    config.papers = ('ridge',)
    config.ridge = ConfigDict({'pool': 'mean', 'norm': 'encoder', 'layer': 0})
    return apply_variants(config, variant)
