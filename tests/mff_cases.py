"""The cases of the MFF parity test: the released layers of 12 blocks, and two layers of three, on real photographs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from base_ours import shapes_of
from parity_rules import draw_weights, photographs, uniform

from mim_jax.config import default_config
from mim_jax.methods.mae import mae
from mim_jax.methods.mff import mff
from mim_jax.recipe import Recipe

# AdamW of the comparison: MFF's, with ten times its decay, so that one parameter in the wrong decay group shows.
ADAMW = {'lr': 1e-3, 'betas': (0.9, 0.95), 'eps': 1e-8, 'weight_decay': 0.5}
STEPS = 3
STEPPED = 'two_layers'  # the case of which steps are compared
WIDTH, HEADS = 24, 3
DECODER = {'decoder_width': 24, 'decoder_depth': 1, 'decoder_heads': 3}


@dataclass(frozen=True)
class Case:
    """An image, its patches, the encoder's blocks and those that are fused; (): the default of either side."""

    image_size: int
    patch_size: int
    depth: int
    layers: tuple[int, ...]
    batch: int = 2

    @property
    def patches(self) -> int:
        """N."""
        return (self.image_size // self.patch_size) ** 2


CASES = {'released_layers': Case(64, 8, 12, ()), 'two_layers': Case(32, 4, 3, (1, 2))}


def make_images(case: Case) -> np.ndarray:
    """u8[B,S,S,3]."""
    return photographs(case.image_size, case.batch)


def make_noise(case: Case) -> np.ndarray:
    """f32[B,N] in [0,1) without ties."""
    noise = ((uniform('mff/noise', (case.batch, case.patches)) + 1.0) / 2.0).astype(np.float32)
    assert all(len(np.unique(row)) == case.patches for row in noise)
    return noise


def make_recipe(case: Case) -> Recipe:
    """In fp32, small, masked by `make_noise`."""
    config = default_config()
    config.image_size, config.dtype = case.image_size, 'float32'
    config.encoder.update(patch_size=case.patch_size, width=WIDTH, depth=case.depth, heads=HEADS)
    config.optim.update(weight_decay=ADAMW['weight_decay'], decay_exclude='mmpretrain')
    recipe = mff(mae(config, **DECODER), layers=case.layers)
    noise = jnp.asarray(make_noise(case))
    given = replace(recipe.masking, scores=lambda forward, view: noise[forward.around.rows])
    return replace(recipe, masking=given)


def make_weights(case: Case) -> dict[str, np.ndarray]:
    """{path: array} by the rule of parity_rules; logits are unequal by it."""
    return draw_weights(shapes_of(make_recipe(case)))
