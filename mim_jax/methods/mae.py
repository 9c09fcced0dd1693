"""MAE: masked autoencoders (He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022).

A random quarter of the patches is encoded; a light decoder, given the latent and mask tokens, predicts the pixels of the
masked patches, each normalised by its own mean and deviation. Numerics: facebookresearch/mae (models_mae.py), without
exceptions; encoder.drop_path and encoder.positions=learned, which its pre-training lacks, are additions and off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from mim_jax.errors import Refused
from mim_jax.methods.encoders import mae_encoder
from mim_jax.methods.masking import random_scores, visible_count
from mim_jax.models.decoder import Decoder
from mim_jax.models.neck import Last
from mim_jax.objectives.pixels import masked_distance
from mim_jax.recipe import DecoderPart, Masking, Objective, Picture, Recipe, View
from mim_jax.tokens import normalise_patches, patchify

if TYPE_CHECKING:
    from mim_jax.forward import Forward


def mae(
    config: Any,
    *,
    mask_ratio: float = 0.75,
    norm_pix_loss: bool = True,
    decoder_width: int = 512,
    decoder_depth: int = 8,
    decoder_heads: int = 16,
) -> Recipe:
    """The base recipe. mask_ratio: share of patches hidden, in (0,1); norm_pix_loss: per-patch normalised targets."""
    sizes, dtype = config.encoder, jnp.dtype(config.dtype)
    side = config.image_size // sizes.patch_size
    visible = visible_count(side * side, mask_ratio)
    check_decoder(config.base, decoder_width, decoder_depth, decoder_heads)
    shared = {'scan': sizes.scan, 'remat': sizes.remat, 'dtype': dtype}
    decoder = Decoder(decoder_width, decoder_depth, decoder_heads, sizes.patch_size**2 * 3, (side, side), **shared)
    return Recipe(
        config=config,
        papers=('mae',),
        encoder=mae_encoder(config),
        masking=Masking(random_scores, visible),
        views={'main': View(crop='main')},
        neck={'last': Last()},
        decoders={'pixels': DecoderPart(decoder)},
        objectives={'pixels': Objective(masked_pixels('pixels', pixel_target(norm_pix_loss)), kind='reconstruct')},
        pictures={'pixels': Picture('pixels', 'patch' if norm_pix_loss else 'none')},
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
    )


def check_decoder(method: str, width: int, depth: int, heads: int) -> None:
    """Raise Refused unless a decoder can have these sizes."""
    if min(width, depth, heads) < 1 or width % heads or width % 4:
        raise Refused(
            f'{method}.decoder_width={width}, decoder_depth={depth}, decoder_heads={heads}: each must be at least 1, and the '
            'width divisible by the heads and by 4, which sin-cos positions need.'
        )


def pixel_target(normalise: bool) -> Callable[[Forward], jax.Array]:
    """forward -> f32[B,N,P]: the main view's patches, normalised per patch (unbiased variance) or as they are."""

    def target(forward: Forward) -> jax.Array:
        patches = patchify(forward.images('main'), forward.recipe.encoder.patch_size)
        return normalise_patches(patches) if normalise else patches

    return target


def masked_pixels(
    decoder: str, target: Callable[[Forward], jax.Array], distance: Callable[[jax.Array], jax.Array] = jnp.square
) -> Callable[[Forward], dict[str, jax.Array]]:
    """A loss: `distance` between a decoder's prediction and `target`, mean over masked patches."""

    def loss(forward: Forward) -> dict[str, jax.Array]:
        return {'': masked_distance(forward.prediction(decoder), target(forward), forward.plan().masked, distance)}

    return loss
