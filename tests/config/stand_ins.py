"""Stand-ins for methods, and the two things every test of the configuration does."""

from pathlib import Path

import pytest

from mim_jax.config import check_config, load_config
from mim_jax.errors import ConfigError

ROOT = Path(__file__).parents[2]
MAE = str(ROOT / 'configs' / 'mae.py')


def mae(
    config,
    *,
    mask_ratio: float = 0.75,
    norm_pix_loss: bool = True,
    decoder_width: int = 512,
    decoder_depth: int = 8,
    decoder_heads: int = 16,
):
    return config, mask_ratio, decoder_depth


def mff(recipe, *, layers: tuple[int, ...] = (0, 2, 4, 6, 8, 11), projection: str = 'linear'):
    return recipe


METHODS = {'mae': mae, 'mff': mff}


def load(*overrides, variants=''):
    """configs/mae.py with variants and --config.… overrides, checked."""
    config, _ = load_config(f'{MAE}:{variants}', overrides, METHODS)
    check_config(config, METHODS)
    return config


def mistakes_of(call, error=ConfigError) -> str:
    """The message of the error that call() must raise."""
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)
