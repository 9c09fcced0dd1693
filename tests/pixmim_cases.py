"""The cases of the PixMIM parity test: real photographs at the released size and at a smaller one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from base_ours import shapes_of
from parity_rules import draw_weights, photographs, uniform

from mim_jax.config import default_config
from mim_jax.methods.pixmim import pixmim
from mim_jax.recipe import Recipe

# AdamW of the comparison: PixMIM's, with ten times its decay, so that one parameter in the wrong decay group shows.
ADAMW = {'lr': 1e-3, 'betas': (0.9, 0.95), 'eps': 1e-8, 'weight_decay': 0.5}
STEPS = 3
WIDTH, DEPTH, HEADS = 32, 2, 4
DECODER = {'decoder_width': 24, 'decoder_depth': 2, 'decoder_heads': 3}


@dataclass(frozen=True)
class Case:
    """An image, its patches and the disc's radius."""

    image_size: int
    patch_size: int
    scale_radius: bool
    batch: int

    @property
    def radius(self) -> float:
        """What the released filter is built with."""
        return 40.0 * self.image_size / 224 if self.scale_radius else 40.0

    @property
    def patches(self) -> int:
        """N."""
        return (self.image_size // self.patch_size) ** 2


CASES = {
    'side_224': Case(224, 16, scale_radius=True, batch=1),
    'side_64': Case(64, 8, scale_radius=True, batch=2),
    'side_64_unscaled': Case(64, 8, scale_radius=False, batch=2),
}


def make_images(case: Case) -> np.ndarray:
    """u8[B,S,S,3]; at 224 four photographs side by side."""
    if case.image_size <= 112:
        return photographs(case.image_size, case.batch)
    a, b, c, d = photographs(112, 4)
    return np.concatenate([np.concatenate([a, b], axis=1), np.concatenate([c, d], axis=1)])[None]


def make_noise(case: Case) -> np.ndarray:
    """f32[B,N] in [0,1) without ties."""
    noise = ((uniform('pixmim/noise', (case.batch, case.patches)) + 1.0) / 2.0).astype(np.float32)
    assert all(len(np.unique(row)) == case.patches for row in noise)
    return noise


def make_recipe(case: Case) -> Recipe:
    """In fp32, small, masked by `make_noise`."""
    config = default_config()
    config.image_size, config.dtype = case.image_size, 'float32'
    config.encoder.update(patch_size=case.patch_size, width=WIDTH, depth=DEPTH, heads=HEADS)
    config.optim.update(weight_decay=ADAMW['weight_decay'], decay_exclude='mmpretrain')
    recipe = pixmim(config, scale_radius=case.scale_radius, **DECODER)
    noise = jnp.asarray(make_noise(case))
    given = replace(recipe.masking, scores=lambda forward, view: noise[forward.around.rows])
    return replace(recipe, masking=given)


def make_weights(case: Case) -> dict[str, np.ndarray]:
    """{path: array} by the rule of parity_rules."""
    return draw_weights(shapes_of(make_recipe(case)))
