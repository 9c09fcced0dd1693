"""The cases of the SimMIM parity test: real photographs, masks of the released generator, two grids."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from base_ours import shapes_of
from parity_rules import draw_weights, photographs

from mim_jax.config import default_config
from mim_jax.methods.simmim import simmim
from mim_jax.recipe import Recipe

# AdamW of the comparison: SimMIM's, with ten times its decay, so that one parameter in the wrong decay group shows. The
# gradients' norm is between the two clips: one acts, the other, SimMIM's, does not.
ADAMW = {'lr': 1e-3, 'betas': (0.9, 0.999), 'eps': 1e-8, 'weight_decay': 0.5}
CLIPS = {'released': 5.0, 'acting': 0.5}
STEPS = 4


@dataclass(frozen=True)
class Case:
    """Sizes of one SimMIM and of its batch."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    batch: int

    @property
    def grid(self) -> int:
        """Rows of patches."""
        return self.image_size // self.patch_size


CASES = {
    'grid_14': Case(112, 8, 32, 3, 4, batch=2),  # the grid and the cells of ViT-B/16 at 224
    'grid_8': Case(32, 4, 32, 2, 4, batch=4),  # CIFAR's
}
INITIAL = Case(64, 16, 192, 4, 3, batch=1)  # for the statistics of fresh weights
# Image, cell and patch in pixels, ratio: sizes at which the released mask generator is asked for its counts.
MASKS = ((224, 32, 16, 0.6), (224, 16, 16, 0.5), (192, 32, 16, 0.6), (32, 8, 4, 0.6), (64, 16, 8, 0.75))


def make_images(case: Case) -> np.ndarray:
    """u8[B,S,S,3]."""
    return photographs(case.image_size, case.batch)


def make_recipe(case: Case, masks: np.ndarray | None = None, clip_norm: float = 5.0, drop_path: float = 0.0) -> Recipe:
    """In fp32, with the masks given: [B,rows,columns], 1 is masked."""
    config = default_config()
    config.image_size, config.dtype = case.image_size, 'float32'
    config.encoder.update(patch_size=case.patch_size, width=case.width, depth=case.depth, heads=case.heads)
    config.encoder.drop_path = drop_path
    config.optim.update(b1=ADAMW['betas'][0], b2=ADAMW['betas'][1], weight_decay=ADAMW['weight_decay'])
    config.optim.update(decay_exclude='simmim', clip_norm=clip_norm)
    recipe = simmim(config)
    if masks is None:
        return recipe
    scores = jnp.asarray(masks.reshape(len(masks), -1), jnp.float32)
    assert (recipe.patches - scores.sum(1) == recipe.masking.visible).all()
    given = replace(recipe.masking, scores=lambda forward, view: scores[forward.around.rows])
    return replace(recipe, masking=given)


def make_weights(case: Case) -> dict[str, np.ndarray]:
    """{path: array} by the rule of parity_rules."""
    return draw_weights(shapes_of(make_recipe(case)))
