"""MCMAE: masked convolution meets masked autoencoders (Gao et al., NeurIPS 2022; called ConvMAE before).

MAE with a hierarchical encoder: two stages of convolution blocks, at a quarter and an eighth of the image's side, before
the transformer. The mask is drawn on the transformer's patches and enlarged to the stages (block-wise masking); there it
multiplies what the 5 x 5 depth-wise convolutions read, so nothing hidden leaks. The stages' outputs, each through
one linear layer, are added to the transformer's (multi-scale fusion) before the final norm. Decoder, target and loss are MAE's.

Source: Alpha-VL/ConvMAE (models_convmae.py, vision_transformer.py). Where we chose otherwise:
- Masked patches are left out of the stages, not computed and thrown away; the same numbers at visible patches.
- The released pre-training has no drop-path; encoder.drop_path ramps over all blocks as its fine-tuning does.
- Only CViT-B's code is released; other sizes are a reading of the paper.
- Any image size; released: 224. Patches of p pixels: convolutions of stride p/4, 2 and 2.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from mim_jax.errors import Refused
from mim_jax.methods.mae import mae
from mim_jax.models.conv_vit import ConvViT
from mim_jax.models.stages import AddStages
from mim_jax.recipe import Recipe


def mcmae(
    config: Any,
    *,
    mask_ratio: float = 0.75,
    norm_pix_loss: bool = True,
    stage_widths: tuple = (256, 384),
    stage_depths: tuple = (2, 2),
    decoder_width: int = 512,
    decoder_depth: int = 8,
    decoder_heads: int = 16,
) -> Recipe:
    """The base recipe; config.encoder's width, depth and heads are the transformer stage's.

    mask_ratio: share of patches hidden, in (0,1); norm_pix_loss: per-patch normalised targets; stage_widths, stage_depths:
    channels and blocks of the two convolution stages.
    """
    sizes, dtype = config.encoder, jnp.dtype(config.dtype)
    if sizes.patch_size % 4:
        raise Refused(
            f'encoder.patch_size={sizes.patch_size} must be divisible by 4: mcmae halves it twice for its convolution stages.'
        )
    for name, values in {'stage_widths': stage_widths, 'stage_depths': stage_depths}.items():
        if len(values) != 2 or min(values) < 1:
            raise Refused(f'mcmae.{name}={values} must be two numbers of at least 1, one for each convolution stage.')
    base = mae(
        config,
        mask_ratio=mask_ratio,
        norm_pix_loss=norm_pix_loss,
        decoder_width=decoder_width,
        decoder_depth=decoder_depth,
        decoder_heads=decoder_heads,
    )
    encoder = ConvViT(
        sizes.patch_size,
        sizes.width,
        sizes.depth,
        sizes.heads,
        base.grid,
        stage_widths,
        stage_depths,
        learned_positions=sizes.positions == 'learned',
        drop_path=sizes.drop_path,
        scan=sizes.scan,
        remat=sizes.remat,
        dtype=dtype,
    )
    return replace(base, papers=('mcmae',), encoder=encoder, neck={**base.neck, 'stages': AddStages(dtype)})
