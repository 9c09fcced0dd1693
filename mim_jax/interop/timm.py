"""timm's VisionTransformer and Beit: names of their arrays, and how to build them.

A VisionTransformer holds the encoders of MAE, PixMIM and BootMAE (its key bias is zero where we have none) and the whole of
the supervised ViT, a Beit with one shared table of relative biases the encoders of SimMIM and ConMIM; with a classifier, the
same of what was fine-tuned.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from safetensors import safe_open

from mim_jax.interop.classifier import SUPERVISED, Part, class_layout, ends_without_norm
from mim_jax.recipe import Recipe
from mim_jax.tokens import sincos_positions
from mim_jax.weights.layout import PATCHES, Entry, Layout, linear, norm


def timm_blocks(ours: str, theirs: str) -> tuple[Entry, ...]:
    """A stack of timm blocks, `theirs`.0 ..., without the biases of queries, keys and values."""
    ours, theirs = f'{ours}/block_{{i}}', f'{theirs}.{{i}}'
    return (
        *norm(f'{ours}/norm1', f'{theirs}.norm1'),
        *linear(f'{ours}/attn/qkv', f'{theirs}.attn.qkv', bias=False),
        *linear(f'{ours}/attn/out', f'{theirs}.attn.proj'),
        *norm(f'{ours}/norm2', f'{theirs}.norm2'),
        *linear(f'{ours}/mlp/fc1', f'{theirs}.mlp.fc1'),
        *linear(f'{ours}/mlp/fc2', f'{theirs}.mlp.fc2'),
    )


def packed_bias(ours: str, theirs: str) -> Entry:
    """The biases of queries, keys and values of a stack, in one vector."""
    return Entry(f'{ours}/block_{{i}}/attn/qkv/bias', f'{theirs}.{{i}}.attn.qkv.bias')


def encoder_positions(recipe: Recipe) -> np.ndarray:
    """f32[1,1+N,D]: the fixed table of the encoder with a row of zeros for CLS, where it has one."""
    encoder = recipe.encoder
    table = sincos_positions(*recipe.grid, encoder.width, row_first=encoder.positions == 'sincos_rows')
    return np.concatenate([np.zeros((int(encoder.cls), encoder.width), np.float32), table])[None]


def vit_ends(prefix: str = '') -> tuple[Entry, ...]:
    """What is not in the blocks; prefix: before every name."""
    return (
        *linear('encoder/patch_embed', f'{prefix}patch_embed.proj', form=PATCHES),
        Entry('encoder/cls_token', f'{prefix}cls_token'),
        *norm('encoder/norm', f'{prefix}norm'),
    )


def beit_encoder(prefix: str = '') -> tuple[Entry, ...]:
    """A whole BEiT encoder as timm, SimMIM and ConMIM store it; the mask token is in released files, not in timm's model."""
    attention = {f'attn/{name}': f'attn.{name}' for name in ('q_bias', 'v_bias')}
    return (
        *vit_ends(prefix),
        Entry('encoder/relative_bias_table', f'{prefix}rel_pos_bias.relative_position_bias_table'),
        Entry('encoder/mask_token', f'{prefix}mask_token'),
        *timm_blocks('encoder', f'{prefix}blocks'),
        *(
            Entry(f'encoder/block_{{i}}/{ours}', f'{prefix}blocks.{{i}}.{theirs}')
            for ours, theirs in {**attention, 'gamma_1': 'gamma_1', 'gamma_2': 'gamma_2'}.items()
        ),
    )


ENDS = vit_ends()
CLASSIFIERS = {r'(head|fc_norm|head_drop)\..*': 'part of a classifier'}

TIMM_VIT = Layout(  # timm 1, VisionTransformer(num_classes=0).state_dict()
    name='timm VisionTransformer',
    entries=(*ENDS, *timm_blocks('encoder', 'blocks'), packed_bias('encoder', 'blocks')),
    constants={'pos_embed': encoder_positions},
    ignored=CLASSIFIERS,
)

# timm 1, VisionTransformer().state_dict(), pooled by its CLS token; DeiT's released files
TIMM_CLASSIFIER = class_layout(TIMM_VIT, Part(SUPERVISED, SUPERVISED, 'cls'))

TIMM_BEIT = Layout(  # timm 1, Beit(use_abs_pos_emb=False, use_shared_rel_pos_bias=True, init_values=...).state_dict()
    name='timm Beit',
    entries=beit_encoder(),
    ignored={**CLASSIFIERS, r'.*relative_position_index': 'an index table, computed here'},
)


def timm_model(recipe: Recipe, classes: int = 0) -> tuple[str, dict[str, Any]]:
    """timm.create_model's name and keyword arguments for the encoder of a recipe that `TIMM_VIT` or `TIMM_BEIT` holds.

    classes: of the classifier on top, 0: none.
    """
    encoder = recipe.encoder
    sizes = {
        'img_size': recipe.config.image_size,
        'patch_size': encoder.patch_size,
        'embed_dim': encoder.width,
        'depth': encoder.depth,
        'num_heads': encoder.heads,
        'num_classes': classes,
    }
    mean = {'global_pool': 'avg'} if ends_without_norm(recipe) else {}  # pooled, then normed, by both kinds of model
    if not encoder.relative_bias:
        return 'vit_base_patch16_224', sizes | mean
    return 'beit_base_patch16_224', {
        **sizes,
        'use_rel_pos_bias': False,
        'use_shared_rel_pos_bias': True,
        'init_values': encoder.layer_scale or 0.0,  # create_model drops arguments that are None
        **(mean or {'global_pool': 'token'}),  # which is not the default there
    }


def timm_line(recipe: Recipe, path: Any) -> str:
    """The Python line that opens an exported file, strictly."""
    name, arguments = timm_model(recipe, _count_classes(path))
    listed = ', '.join(f'{key}={value!r}' for key, value in arguments.items())
    return f'timm.create_model({name!r}, {listed}, checkpoint_path={str(path)!r})'


def _count_classes(path: Any) -> int:
    """Of the classifier in an exported file; 0 where there is none."""
    with safe_open(path, 'np') as file:
        return len(file.get_tensor('head.bias')) if 'head.bias' in set(file.keys()) else 0


def import_library(name: str) -> Any:
    """The module. Raises ImportError also for one that is there but does not load, as beside another version of torch."""
    try:
        return importlib.import_module(name)
    except (RuntimeError, OSError) as error:
        raise ImportError(f'{name} does not load here: {error}') from error


def timm_outputs(recipe: Recipe, path: Any, images: np.ndarray) -> tuple[str, np.ndarray]:
    """(version, what timm makes of normalised images f32[B,S,S,3] with an exported file).

    Logits f32[B,K] where the file has a classifier, else features f32[B,1+N,D] after the final norm.
    Raises ImportError where timm is not installed, RuntimeError where it does not take every array.
    """
    torch, timm = import_library('torch'), import_library('timm')
    classes = _count_classes(path)
    name, arguments = timm_model(recipe, classes)
    model = timm.create_model(name, **arguments, checkpoint_path=str(path)).eval()
    with torch.no_grad():
        outputs = (model if classes else model.forward_features)(torch.from_numpy(images).permute(0, 3, 1, 2))
    return f'timm {timm.__version__}', outputs.numpy()
