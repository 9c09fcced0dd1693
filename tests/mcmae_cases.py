"""The one case of the MCMAE parity test: real photographs at 224 pixels, which the released code has in its shapes."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from base_ours import shapes_of
from parity_rules import draw_weights, photographs, uniform

from mim_jax.config import default_config
from mim_jax.methods.mcmae import mcmae
from mim_jax.recipe import Recipe

SIDE, PATCHES, VISIBLE = 224, 196, 49
STAGE_WIDTHS, STAGE_DEPTHS, WIDTH, DEPTH, HEADS = (16, 24), (2, 2), 32, 2, 2
DECODER = {'decoder_width': 24, 'decoder_depth': 2, 'decoder_heads': 3}


def make_images() -> np.ndarray:
    """u8[2,224,224,3]: four photographs side by side, and the same in another order, mirrored."""
    a, b, c, d = photographs(112, 4)
    quilt = np.concatenate([np.concatenate([a, b], axis=1), np.concatenate([c, d], axis=1)])
    return np.stack([quilt, np.roll(quilt, 112, axis=0)[:, ::-1]])


def make_noise() -> np.ndarray:
    """f32[2,196] without ties."""
    noise = ((uniform('mcmae/noise', (2, PATCHES)) + 1.0) / 2.0).astype(np.float32)
    assert all(len(np.unique(row)) == PATCHES for row in noise)
    return noise


def make_recipe(norm_pix_loss: bool = True) -> Recipe:
    """Small widths in fp32, masked by `make_noise`."""
    config = default_config()
    config.image_size, config.dtype = SIDE, 'float32'
    config.encoder.update(width=WIDTH, depth=DEPTH, heads=HEADS)
    recipe = mcmae(config, norm_pix_loss=norm_pix_loss, stage_widths=STAGE_WIDTHS, stage_depths=STAGE_DEPTHS, **DECODER)
    noise = make_noise()
    scores = lambda forward, view: jnp.asarray(noise)[forward.around.rows]  # noqa: E731
    return replace(recipe, masking=replace(recipe.masking, scores=scores))


def make_weights(recipe: Recipe) -> dict[str, np.ndarray]:
    """{path: array} by the rule of parity_rules."""
    return draw_weights(shapes_of(recipe))
