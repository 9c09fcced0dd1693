"""The case of the BootMAE parity test: the released 14 x 14 patches, of 4 pixels, and heads that divide no decoder width.

Ten steps of a run of twelve epochs of two steps: warm-up, both ramps and the cosine all move. The momentum starts at 0.9,
not 0.999, so that ten steps move the teacher far enough to be compared.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from parity_rules import draw_weights, photographs

from mim_jax.config import default_config
from mim_jax.forward import create_parameters
from mim_jax.methods.bootmae import bootmae
from mim_jax.parallel.rules import flatten_with_paths
from mim_jax.recipe import Recipe

SIDE, PATCH, PATCHES, VISIBLE, IMAGES = 56, 4, 196, 49, 2
SIZES = {'width': 24, 'depth': 3, 'heads': 3}
DECODER_WIDTH = 16  # 3 heads of 5
PEAK, FLOOR, MOMENTUM = 3e-3, 1e-3, 0.9
EPOCHS, PER_EPOCH, WARMUP_EPOCHS, STEPS = 12, 2, 2, 10
# A second case, at which initial values are compared.
FRESH = {'side': 32, 'width': 96, 'depth': 1, 'heads': 3, 'decoder_width': 64}  # 3 heads of 21


def make_images(step: int) -> np.ndarray:
    """u8[2,56,56,3]: two of the four photographs, each step from another place."""
    photos = photographs(112, 4)
    return photos[[2 * step % 4, (2 * step + 1) % 4], 5 * step : 5 * step + SIDE, 3 * step : 3 * step + SIDE]


def make_config() -> ConfigDict:
    """The small run's whole configuration: optimizer and schedules as released, but for the values above."""
    config = default_config()
    config.update({'image_size': SIDE, 'dtype': 'float32', 'batch_size': IMAGES, 'steps': EPOCHS * PER_EPOCH})
    config.steps_per_epoch = float(PER_EPOCH)
    config.encoder.update({'patch_size': PATCH, **SIZES})
    config.optim.update(
        {'base_lr': PEAK, 'lr_scaling': 'none', 'min_lr': FLOOR, 'warmup_epochs': float(WARMUP_EPOCHS)},
        schedule='cosine_beit',
        decay_exclude='simmim',
    )
    config.data.update({'mean': (0.5,) * 3, 'std': (0.5,) * 3})
    return config


def make_recipe(**options: Any) -> Recipe:
    """The small run's recipe; its masks are still drawn."""
    return bootmae(make_config(), **{'decoder_width': DECODER_WIDTH, 'ema_momentum': MOMENTUM, **options})


def make_fresh_recipe() -> Recipe:
    """A wider one, whose initial values are looked at."""
    config = make_config()
    config.image_size = FRESH['side']
    config.encoder.update({name: FRESH[name] for name in ('width', 'depth', 'heads')})
    return bootmae(config, decoder_width=FRESH['decoder_width'])


def shapes_of(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """{path: shape} of all parameters."""
    params, _, _ = jax.eval_shape(lambda key: create_parameters(recipe, key), jax.random.key(0))
    return {path: leaf.shape for path, leaf in flatten_with_paths(params)}


def make_weights(recipe: Recipe, role: str = '') -> dict[str, np.ndarray]:
    """{path: array} by the rule of parity_rules; role='teacher/': others, for the teacher to begin with."""
    drawn = draw_weights({role + path: shape for path, shape in shapes_of(recipe).items()})
    return {path.removeprefix(role): value for path, value in drawn.items()}
