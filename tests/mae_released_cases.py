"""The cases of MAE's parity test against facebookresearch/mae: real photographs, given noise, weights by rule."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from base_ours import shapes_of
from parity_rules import draw_weights, photographs, uniform

from mim_jax.config import default_config
from mim_jax.methods.mae import mae
from mim_jax.recipe import Recipe


@dataclass(frozen=True)
class Case:
    """Sizes of one MAE and of its batch."""

    image_size: int
    patch_size: int
    norm_pix_loss: bool
    batch: int = 2
    width: int = 32
    depth: int = 3
    heads: int = 4
    decoder_width: int = 24
    decoder_depth: int = 2
    decoder_heads: int = 3

    @property
    def patches(self) -> int:
        """N."""
        return (self.image_size // self.patch_size) ** 2


CASES = {
    'grid_14': Case(112, 8, True),
    'grid_7': Case(112, 16, False),
    'grid_8': Case(32, 4, True, batch=4),
}


def make_images(case: Case) -> np.ndarray:
    """u8[B,S,S,3]."""
    return photographs(case.image_size, case.batch)


def make_noise(case: Case) -> np.ndarray:
    """f32[B,N]."""
    return (0.5 * uniform('noise', (case.batch, case.patches)) + 0.5).astype(np.float32)


def make_recipe(case: Case) -> Recipe:
    """In fp32, with the given noise."""
    config = default_config()
    config.image_size, config.dtype, config.steps = case.image_size, 'float32', 1
    config.encoder.update(patch_size=case.patch_size, width=case.width, depth=case.depth, heads=case.heads)
    decoder = {f'decoder_{name}': getattr(case, f'decoder_{name}') for name in ('width', 'depth', 'heads')}
    recipe = mae(config, norm_pix_loss=case.norm_pix_loss, **decoder)
    noise = jnp.asarray(make_noise(case))
    given = replace(recipe.masking, scores=lambda forward, view: noise[forward.around.rows])
    return replace(recipe, masking=given)


def make_weights(case: Case) -> dict[str, np.ndarray]:
    """{path: array} by the rule of parity_rules."""
    return draw_weights(shapes_of(make_recipe(case)))
