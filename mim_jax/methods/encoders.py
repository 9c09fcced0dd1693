"""Encoders that several bases share: MAE's with the supervised control, BEiT's between SimMIM and ConMIM."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from mim_jax.errors import Refused
from mim_jax.models.vit import ViT


def mae_encoder(config: Any) -> ViT:
    """MAE's ViT, of the sizes and options in config.encoder. Source: facebookresearch/mae models_mae.py."""
    sizes, side = config.encoder, config.image_size // config.encoder.patch_size
    return ViT(
        sizes.patch_size,
        sizes.width,
        sizes.depth,
        sizes.heads,
        (side, side),
        learned_positions=sizes.positions == 'learned',
        drop_path=sizes.drop_path,
        scan=sizes.scan,
        remat=sizes.remat,
        dtype=jnp.dtype(config.dtype),
    )


def beit_encoder(config: Any, method: str, layer_scale: float) -> ViT:
    """BEiT's ViT: mask tokens inside, one shared table of relative biases, no absolute positions, LayerScale (0: none).

    method: whose settings a refusal names. Source: microsoft/SimMIM models/vision_transformer.py, TencentARC/ConMIM
    modeling_pretrain.py. Raises Refused.
    """
    sizes, side = config.encoder, config.image_size // config.encoder.patch_size
    if sizes.positions == 'learned':
        raise Refused(
            f'{method} has no absolute positions to learn, only a table of relative ones; set encoder.positions=fixed.'
        )
    if layer_scale < 0:
        raise Refused(f'{method}.layer_scale={layer_scale} must not be negative; 0 leaves LayerScale out.')
    return ViT(
        sizes.patch_size,
        sizes.width,
        sizes.depth,
        sizes.heads,
        (side, side),
        mask_tokens=True,
        positions='none',
        relative_bias=True,
        qkv_bias='qv',
        drop_path=sizes.drop_path,
        layer_scale=layer_scale or None,
        scheme='beit',
        scan=sizes.scan,
        remat=sizes.remat,
        dtype=jnp.dtype(config.dtype),
    )
