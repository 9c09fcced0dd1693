"""SimMIM (Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling", CVPR 2022), with a ViT.

Cells of 32 x 32 pixels are masked; mask tokens enter the encoder with the image tokens, and one linear layer on its output
predicts the masked pixels under an L1 loss. Numerics: microsoft/SimMIM (models/simmim.py, models/vision_transformer.py,
data/data_simmim.py), ViT-B, 800 epochs. Where we differ:

- The loss divides by the number of masked pixels, theirs by that number + 1e-5. A batch has thousands of them, and adding
  1e-5 to 256 or more changes no bit in fp32.
- Their head orders the values of a patch (channel, dy, dx), ours (dy, dx, channel): see models/heads.py, interop/simmim.py.
- Their learning rate is set after each update from the number of that update, so that all but the first run one step late.
  Ours is that of the step.
- Swin encoders, absolute positions and other losses of the paper's ablations are not here.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from mim_jax.methods.encoders import beit_encoder
from mim_jax.methods.mae import masked_pixels, pixel_target
from mim_jax.methods.masking import cell_scores, visible_in_cells
from mim_jax.models.heads import LinearHead
from mim_jax.models.neck import Last
from mim_jax.recipe import DecoderPart, Masking, Objective, Picture, Recipe, View


def simmim(config: Any, *, mask_ratio: float = 0.6, mask_cell: int = 2, layer_scale: float = 0.1) -> Recipe:
    """The base recipe.

    mask_ratio: share of cells hidden, in (0,1), rounded up to whole cells; mask_cell: side of a cell in patches (2: 32
    pixels at patch 16); layer_scale: initial factor of every residual branch, 0 for none. Drop-path is encoder.drop_path
    (0.1 there).
    """
    encoder = beit_encoder(config, 'simmim', layer_scale)
    side = config.image_size // encoder.patch_size
    head = LinearHead(encoder.patch_size**2 * 3, encoder.dtype)
    loss = masked_pixels('pixels', pixel_target(normalise=False), jnp.abs)
    return Recipe(
        config=config,
        papers=('simmim',),
        encoder=encoder,
        masking=Masking(cell_scores(mask_cell), visible_in_cells((side, side), mask_cell, mask_ratio)),
        views={'main': View(crop='main')},
        neck={'last': Last()},
        decoders={'pixels': DecoderPart(head, mask_tokens=False)},
        objectives={'pixels': Objective(loss, kind='reconstruct')},
        pictures={'pixels': Picture('pixels')},
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
    )
