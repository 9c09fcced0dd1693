"""ConMIM: contrast between patches (Yi et al., "Masked Image Modeling with Denoising Contrast", ICLR 2023).

The student sees a masked image, its momentum teacher the same crop whole and with strong photometric augmentation. The
projection of a masked patch must find the teacher's projection of the same place among those of its own image. No decoder
and no pixels. Numerics: TencentARC/ConMIM (modeling_pretrain.py, engine_for_pretraining.py, datasets.py).

Where this differs from the released code, and why:
- The student's BatchNorm running statistics average over the groups of images, where DDP keeps those of its first device;
  the teacher's stay at their initial values. Neither is read in pre-training.
- Augmentation runs on the device in floating point, without rounding to 8 bits between operations (see photometric.py).
- With drop-path, which ConMIM does not use, the teacher drops nothing; the released one, in training mode, would.
- The released code has no accumulation. Here the teacher moves once per optimizer step, and its momentum counts these;
  BatchNorm's groups are made within a micro-batch, so accumulate changes which images share statistics.
- The projector is float32 whatever `dtype` is: the released one runs in fp16, whose three more bits than bf16's matter there
  (tests/test_precision.py).
- An unused classifier over visual words (lm_head) is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from mim_jax.errors import Refused
from mim_jax.methods.encoders import beit_encoder
from mim_jax.methods.masking import cell_scores, visible_in_cells
from mim_jax.methods.projectors import check_bn_images
from mim_jax.models.neck import Last
from mim_jax.models.projector import Projector
from mim_jax.objectives.contrast import denoising_contrast
from mim_jax.photometric import jitter_gray_blur_solarize
from mim_jax.recipe import EMA, Masking, Objective, Recipe, View
from mim_jax.teachers import cosine_momentum

if TYPE_CHECKING:
    from mim_jax.forward import Forward


def conmim(
    config: Any,
    *,
    mask_ratio: float = 0.75,
    mask_cell: int = 2,
    layer_scale: float = 0.1,
    temperature: float = 0.1,
    projector_width: int = 4096,
    projector_output: int = 256,
    bn_images: int = 64,
    momentum: float = 0.996,
) -> Recipe:
    """The base recipe.

    mask_ratio: share of mask cells hidden, rounded up; mask_cell: patches along a cell's side; layer_scale: initial value, 0
    for none; bn_images: how many images share the projector's BatchNorm statistics (64, those of one GPU, in the released
    code), 0 for all of a micro-batch; momentum: the teacher's at step 0, rising to 1. Raises Refused.
    """
    _check(config, temperature, bn_images, momentum, projector_width, projector_output)
    encoder = beit_encoder(config, 'conmim', layer_scale)
    side = config.image_size // encoder.patch_size
    widths = (projector_width, projector_width, projector_output)
    projector = Projector(widths, last_norm=True, group_images=bn_images, scheme='beit', dtype=jnp.float32)
    return Recipe(
        config=config,
        papers=('conmim',),
        encoder=encoder,
        masking=Masking(cell_scores(mask_cell), visible_in_cells((side, side), mask_cell, mask_ratio)),
        views={'main': View('main'), 'teacher': View('main', jitter_gray_blur_solarize, block=None)},
        neck={'last': Last()},
        decoders={},
        objectives={'contrast': Objective(contrast(temperature), heads={'projector': projector}, kind='contrast')},
        reconstructs=False,
        teachers={'conmim': EMA(cosine_momentum(momentum, config.steps), average_batch_stats=False)},
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
    )


def project_patches(forward: Forward, view: str) -> jax.Array:
    """f[B,N,E]: the projected patches; CLS goes through the projector with them, as BatchNorm counts it."""
    return forward.latent(view).map(lambda x: forward.head('contrast/projector', x)).patches


def contrast(temperature: float) -> Callable[[Forward], dict[str, jax.Array]]:
    """A loss: each masked patch of the student among all patches of the teacher's whole, augmented view."""

    def loss(forward: Forward) -> dict[str, jax.Array]:
        queries = project_patches(forward, 'main')
        keys = project_patches(forward.teacher('conmim'), 'teacher')
        return {'': denoising_contrast(queries, keys, forward.plan('main').masked, temperature)}

    return loss


def _check(config: Any, temperature: float, bn_images: int, momentum: float, width: int, output: int) -> None:
    if temperature <= 0:
        raise Refused(f'conmim.temperature={temperature} must be above 0.')
    if not 0 <= momentum <= 1:
        raise Refused(f'conmim.momentum={momentum} must be at least 0 and at most 1.')
    for name, value in (('projector_width', width), ('projector_output', output)):
        if value < 1:
            raise Refused(f'conmim.{name}={value} must be at least 1.')
    check_bn_images('conmim', bn_images, config, least=1)  # of an image the statistics are over all patches
