"""MAE with its decoder: facebookresearch/mae, and transformers' ViTMAEForPreTraining in its two generations of names."""

from __future__ import annotations

import numpy as np

from mim_jax.interop.hf import hf_blocks, hf_ends
from mim_jax.interop.timm import ENDS, encoder_positions, packed_bias, timm_blocks
from mim_jax.recipe import Recipe
from mim_jax.tokens import sincos_positions
from mim_jax.weights.layout import Entry, Layout, linear, norm

DECODER = 'decoder/pixels'


def decoder_positions(recipe: Recipe) -> np.ndarray:
    """f32[1,1+N,D]: the fixed table of the decoder, with a row of zeros for CLS."""
    width = recipe.module(DECODER).width
    table = sincos_positions(*recipe.grid, width)
    return np.concatenate([np.zeros((1, width), np.float32), table])[None]


MAE = Layout(  # facebookresearch/mae models_mae.py, MaskedAutoencoderViT.state_dict(); its encoder is timm's
    name='facebookresearch/mae',
    entries=(
        *ENDS,
        *timm_blocks('encoder', 'blocks'),
        packed_bias('encoder', 'blocks'),
        *linear(f'{DECODER}/embed', 'decoder_embed'),
        Entry(f'{DECODER}/mask_token', 'mask_token'),
        *timm_blocks(DECODER, 'decoder_blocks'),
        packed_bias(DECODER, 'decoder_blocks'),
        *norm(f'{DECODER}/norm', 'decoder_norm'),
        *linear(f'{DECODER}/head', 'decoder_pred'),
    ),
    constants={'pos_embed': encoder_positions, 'decoder_pos_embed': decoder_positions},
)


def vitmae(hub: bool, decoder: str = 'decoder.decoder_layers', names: str = '') -> Layout:
    """ViTMAEForPreTraining; hub: the names of files on the hub, which transformers 5 translates to its own when it loads."""
    return Layout(
        name=f'transformers ViTMAE, names of {names or ("the hub" if hub else "version 5")}',
        entries=(
            *hf_ends('vit.'),
            *hf_blocks('encoder', 'vit.encoder.layer' if hub else 'vit.layers', hub),
            *linear(f'{DECODER}/embed', 'decoder.decoder_embed'),
            Entry(f'{DECODER}/mask_token', 'decoder.mask_token'),
            *hf_blocks(DECODER, decoder, hub),
            *norm(f'{DECODER}/norm', 'decoder.decoder_norm'),
            *linear(f'{DECODER}/head', 'decoder.decoder_pred'),
        ),
        constants={
            'vit.embeddings.position_embeddings': encoder_positions,
            'decoder.decoder_pos_embed': decoder_positions,
        },
    )


VITMAE, VITMAE_HUB = vitmae(hub=False), vitmae(hub=True)
# When it saves, transformers 5.23 also translates the 'layers.' within 'decoder_layers.'; it reads that again.
VITMAE_SAVED = vitmae(True, 'decoder.decoder_encoder.layer', "version 5's save_pretrained")
VITMAES = (VITMAE_HUB, VITMAE, VITMAE_SAVED)
