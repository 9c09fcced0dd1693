"""PixMIM (Liu et al., "PixMIM: Rethinking Pixel Reconstruction in Masked Image Modeling", TMLR 2024): MAE, two changes.

The target is the image without its high frequencies, and the crop keeps most of the image (data.crop='src' in
configs/pixmim.py); the encoder sees the unfiltered image. Numerics: open-mmlab/mmselfsup (models/algorithms/pixmim.py,
models/target_generators/low_freq_generator.py). Where we differ:

- Filtered images are un-normalised and normalised with the recipe's mean and deviation; theirs are always ImageNet's.
- Their radius is 40 bins whatever the image size. For other sizes than 224 we scale it to keep the same share of the
  spectrum (our reading; scale_radius=False for theirs).
- Their sine-cosine positions put the row's half of the channels first, MAE's the column's. Trained from scratch it is the
  same model with its channels in another order; interop/pixmim.py reorders them.
- Biases of the encoder's MLP start at 0, theirs from a normal distribution of deviation 1e-6, and their warm-up starts at
  1e-9 of the peak (1e-4 in the 300-epoch configuration).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from mim_jax.errors import Refused
from mim_jax.methods.mae import mae, masked_pixels
from mim_jax.objectives.low_pass import low_pass, low_pass_disc
from mim_jax.recipe import Objective, Picture, Recipe
from mim_jax.tokens import normalise_patches, patchify

if TYPE_CHECKING:
    from mim_jax.forward import Forward


def pixmim(
    config: Any,
    *,
    low_pass_radius: float = 40.0,
    scale_radius: bool = True,
    mask_ratio: float = 0.75,
    norm_pix_loss: bool = True,
    decoder_width: int = 512,
    decoder_depth: int = 8,
    decoder_heads: int = 16,
) -> Recipe:
    """The base recipe. low_pass_radius: of the disc of frequencies kept, in bins, at 224 pixels if scale_radius.

    The other options are MAE's.
    """
    side = config.image_size
    radius = low_pass_radius * side / 224 if scale_radius else low_pass_radius
    if low_pass_radius <= 0 or not low_pass_disc(side, side, radius).any():
        raise Refused(
            f'pixmim.low_pass_radius={low_pass_radius} keeps no frequency of a {side}-pixel image; make it larger.'
        )
    base = mae(
        config,
        mask_ratio=mask_ratio,
        norm_pix_loss=norm_pix_loss,
        decoder_width=decoder_width,
        decoder_depth=decoder_depth,
        decoder_heads=decoder_heads,
    )
    images = low_frequencies(radius)

    def target(forward: Forward) -> jax.Array:
        patches = patchify(images(forward), forward.recipe.encoder.patch_size)
        return normalise_patches(patches) if norm_pix_loss else patches

    return replace(
        base,
        papers=('pixmim',),
        objectives={'pixels': Objective(masked_pixels('pixels', target), kind='reconstruct')},
        pictures={'pixels': Picture('pixels', 'patch' if norm_pix_loss else 'none', target=images)},
    )


def low_frequencies(radius: float) -> Callable[[Forward], jax.Array]:
    """forward -> f32[B,H,W,3]: the main view's pixels filtered, then normalised as the images are; no gradient."""

    def images(forward: Forward) -> jax.Array:
        filtered = jax.lax.stop_gradient(low_pass(forward.pixels('main'), radius))
        return (filtered - jnp.asarray(forward.recipe.mean)) / jnp.asarray(forward.recipe.std)

    return images
