"""transformers' ViTModel, BeitModel and ViTMAEForPreTraining: names of their arrays, and the folder that they open.

Files are written under the names of the hub, which every version of transformers reads; those of version 5 are read too
(weights/hf_names.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mim_jax.interop.timm import encoder_positions, import_library
from mim_jax.recipe import Recipe
from mim_jax.weights.files import WeightsError
from mim_jax.weights.hf_names import hf_blocks, hf_ends
from mim_jax.weights.layout import Entry, Layout

EPSILON = 1e-6  # of every LayerNorm here
RESAMPLING = {'bilinear': 2, 'bicubic': 3}  # Pillow's numbers


HEADS = {r'(pooler|classifier)\..*': 'a head on top'}


def hf_vit(hub: bool) -> Layout:
    """ViTModel without its pooler."""
    return Layout(
        name=f'transformers ViT, names of {"the hub" if hub else "version 5"}',
        entries=(*hf_ends(), *hf_blocks('encoder', 'encoder.layer' if hub else 'layers', hub)),
        constants={'embeddings.position_embeddings': encoder_positions},
        ignored={**HEADS, r'embeddings\.mask_token': 'there is no place for it here'},
    )


def hf_beit(hub: bool) -> Layout:
    """BeitModel(use_shared_relative_position_bias, no absolute positions, no mean pooling)."""
    table = ('encoder.relative_position_bias' if hub else 'shared_position_bias') + '.relative_position_bias_table'
    return Layout(
        name=f'transformers Beit, names of {"the hub" if hub else "version 5"}',
        entries=(
            *hf_ends(),
            Entry('encoder/relative_bias_table', table),
            *hf_blocks('encoder', 'encoder.layer' if hub else 'layers', hub, beit=True),
            Entry('encoder/mask_token', 'embeddings.mask_token'),  # read where it is there; an exported model has none
        ),
        ignored={**HEADS, r'.*relative_position_index': 'an index table, computed here'},
    )


VIT, VIT_HUB = hf_vit(hub=False), hf_vit(hub=True)
BEIT, BEIT_HUB = hf_beit(hub=False), hf_beit(hub=True)


def hf_class(recipe: Recipe, full: bool) -> str:
    """The class that opens the folder."""
    return 'ViTMAEForPreTraining' if full else 'BeitModel' if recipe.encoder.relative_bias else 'ViTModel'


def hf_config(recipe: Recipe, full: bool) -> dict[str, Any]:
    """config.json of the encoder, or with `full` of a whole ViTMAE."""
    encoder, name = recipe.encoder, hf_class(recipe, full)
    config = {
        'architectures': [name],
        'model_type': {'ViTMAEForPreTraining': 'vit_mae', 'BeitModel': 'beit', 'ViTModel': 'vit'}[name],
        'image_size': recipe.config.image_size,
        'patch_size': encoder.patch_size,
        'num_channels': 3,
        'hidden_size': encoder.width,
        'num_hidden_layers': encoder.depth,
        'num_attention_heads': encoder.heads,
        'intermediate_size': int(encoder.mlp_ratio * encoder.width),
        'hidden_act': 'gelu',
        'hidden_dropout_prob': 0.0,
        'attention_probs_dropout_prob': 0.0,
        'layer_norm_eps': EPSILON,  # the default there is 1e-12
        'qkv_bias': True,
    }
    if name == 'BeitModel':
        return config | {
            'use_absolute_position_embeddings': False,
            'use_relative_position_bias': False,
            'use_shared_relative_position_bias': True,
            'use_mean_pooling': False,  # with it, the final norm is left out
            'layer_scale_init_value': encoder.layer_scale or 0.0,
            'drop_path_rate': 0.0,
        }
    if full:
        decoder, method = recipe.module('decoder/pixels'), recipe.config[recipe.papers[0]]
        config |= {
            'decoder_hidden_size': decoder.width,
            'decoder_num_hidden_layers': decoder.depth,
            'decoder_num_attention_heads': decoder.heads,
            'decoder_intermediate_size': int(decoder.mlp_ratio * decoder.width),
            'mask_ratio': method.mask_ratio,
            'norm_pix_loss': method.norm_pix_loss,
        }
    return config


def check_config_beside(file: Path, recipe: Recipe) -> list[str]:
    """Lines on the config.json beside a file of transformers, if there is one: what no array shows.

    Raises WeightsError where its heads or its activation are not those of this recipe: the arrays would fit all the same.
    """
    path = file.with_name('config.json')
    if not path.is_file():
        return []
    theirs = json.loads(path.read_text())
    here = {'num_attention_heads': recipe.encoder.heads, 'hidden_act': 'gelu'}
    if 'decoder/pixels' in recipe.roles() and hasattr(recipe.module('decoder/pixels'), 'heads'):
        here['decoder_num_attention_heads'] = recipe.module('decoder/pixels').heads
    if wrong := [
        f'{key} {theirs[key]} (here {value})' for key, value in here.items() if theirs.get(key, value) != value
    ]:
        raise WeightsError(f'{path} says {", ".join(wrong)}: set encoder.heads, or the decoder heads, to match.')
    epsilon = theirs.get('layer_norm_eps', EPSILON)
    return [] if epsilon == EPSILON else [f'layer_norm_eps is {epsilon} there and {EPSILON} here']


def hf_preprocessor(recipe: Recipe) -> dict[str, Any]:
    """preprocessor_config.json: the run's image size, mean and deviation."""
    side = recipe.config.image_size
    return {
        'image_processor_type': 'ViTImageProcessor',
        'do_resize': True,
        'size': {'height': side, 'width': side},
        'resample': RESAMPLING[recipe.config.data.interpolation],
        'do_rescale': True,
        'rescale_factor': 1 / 255,
        'do_normalize': True,
        'image_mean': list(recipe.mean),
        'image_std': list(recipe.std),
    }


def hf_line(recipe: Recipe, full: bool, folder: Any) -> str:
    """The Python line that opens the folder without a warning."""
    name = hf_class(recipe, full)
    pooler = '' if full else ', add_pooling_layer=False'
    return f'transformers.{name}.from_pretrained({str(folder)!r}{pooler})'


def hf_features(folder: Path, images: np.ndarray) -> tuple[str, np.ndarray]:
    """(version, f32[B,1+N,D]): what transformers makes of normalised images f32[B,S,S,3], after the final norm.

    Raises ImportError where it is not installed, RuntimeError where it does not take every array, or wants others.
    """
    torch, transformers = import_library('torch'), import_library('transformers')
    name = json.loads((folder / 'config.json').read_text())['architectures'][0]
    options = {} if name == 'ViTMAEForPreTraining' else {'add_pooling_layer': False}
    kind = getattr(transformers, name)
    transformers.utils.logging.disable_progress_bar()
    model, told = kind.from_pretrained(folder, output_loading_info=True, **options)
    if wrong := {key: names for key, names in told.items() if names}:
        raise RuntimeError(f'{name} does not open {folder} completely: {wrong}')
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    model = model.eval()
    with torch.no_grad():
        if name == 'ViTMAEForPreTraining':  # every patch visible, in its own order
            model.vit.config.mask_ratio = 0.0
            patches = (images.shape[1] // model.config.patch_size) ** 2
            order = torch.arange(patches, dtype=torch.float32).expand(len(images), -1)
            output = model.vit(pixels, noise=order)
        else:
            output = model(pixels)
    return f'transformers {transformers.__version__}', output.last_hidden_state.numpy()
