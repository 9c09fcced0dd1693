"""The families of frozen towers: how transformers names their arrays, and what their published files do not say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mim_jax.config.tree import IMAGENET_MEAN, IMAGENET_STD
from mim_jax.weights.files import WeightsError
from mim_jax.weights.hf_names import hf_attention, hf_blocks, hf_ends
from mim_jax.weights.layout import LINEAR, PATCHES, SAME, Entry, Form, Layout, linear, norm

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TOKEN = Form(lambda a: a.reshape(1, 1, -1), lambda a: a.reshape(-1))
TABLE = Form(lambda a: a[None], lambda a: a[0])
PATCH_KERNEL, POSITIONS = 'encoder/patch_embed/kernel', 'encoder/pos_embed'


def clip_blocks(ours: str, theirs: str) -> tuple[Entry, ...]:
    """The layers of CLIP's visual tower."""
    ours, theirs = f'{ours}/block_{{i}}', f'{theirs}.{{i}}'
    return (
        *norm(f'{ours}/norm1', f'{theirs}.layer_norm1'),
        *linear(f'{ours}/attn/qkv', *(f'{theirs}.self_attn.{name}_proj' for name in 'qkv')),
        *linear(f'{ours}/attn/out', f'{theirs}.self_attn.out_proj'),
        *norm(f'{ours}/norm2', f'{theirs}.layer_norm2'),
        *linear(f'{ours}/mlp/fc1', f'{theirs}.mlp.fc1'),
        *linear(f'{ours}/mlp/fc2', f'{theirs}.mlp.fc2'),
    )


def dinov2_blocks(ours: str, theirs: str, hub: bool) -> tuple[Entry, ...]:
    """The layers of Dinov2Model."""
    ours, theirs = f'{ours}/block_{{i}}', f'{theirs}.{{i}}'
    return (
        *norm(f'{ours}/norm1', f'{theirs}.norm1'),
        *hf_attention(f'{ours}/attn', f'{theirs}.attention', hub),
        Entry(f'{ours}/gamma_1', f'{theirs}.layer_scale1.lambda1'),
        *norm(f'{ours}/norm2', f'{theirs}.norm2'),
        *linear(f'{ours}/mlp/fc1', f'{theirs}.mlp.fc1'),
        *linear(f'{ours}/mlp/fc2', f'{theirs}.mlp.fc2'),
        Entry(f'{ours}/gamma_2', f'{theirs}.layer_scale2.lambda1'),
    )


CLIP = Layout(
    name='transformers CLIP, visual tower',
    entries=(
        Entry(PATCH_KERNEL, 'embeddings.patch_embedding.weight', PATCHES),
        Entry('encoder/cls_token', 'embeddings.class_embedding', TOKEN),
        Entry(POSITIONS, 'embeddings.position_embedding.weight', TABLE),
        *norm('encoder/norm_pre', 'pre_layrnorm'),  # spelt so
        *clip_blocks('encoder', 'encoder.layers'),
        *norm('encoder/norm', 'post_layernorm'),
        Entry('encoder/projection/kernel', 'visual_projection.weight', LINEAR),
    ),
    ignored={
        r'(text_model|text_projection)\..*': 'the text tower',
        r'logit_scale': 'of the contrastive loss',
        r'embeddings\.position_ids': 'an index table',
    },
)
HF_POSITIONS = Entry(POSITIONS, 'embeddings.position_embeddings', SAME)
HF_IGNORED = {r'(pooler|classifier)\..*': 'a head on top', r'embeddings\.mask_token': 'a teacher sees whole images'}
DINO = tuple(
    Layout(
        name=f'transformers ViT, names of {"the hub" if hub else "version 5"}',
        entries=(*hf_ends(), HF_POSITIONS, *hf_blocks('encoder', 'encoder.layer' if hub else 'layers', hub)),
        ignored=HF_IGNORED,
    )
    for hub in (True, False)
)
DINOV2 = tuple(
    Layout(
        name=f'transformers Dinov2, names of {"the hub" if hub else "version 5"}',
        entries=(*hf_ends(), HF_POSITIONS, *dinov2_blocks('encoder', 'encoder.layer', hub)),
        ignored=HF_IGNORED,
    )
    for hub in (True, False)
)


@dataclass(frozen=True)
class Family:
    """Towers of one kind.

    prefix: what stands before the names in a model with more around the tower; repositories, opens: their names on
    huggingface.co and the class of transformers that opens them; sizes: of the first one's tower. activation, epsilon, mean
    and std hold where no config.json or preprocessor_config.json beside the file says otherwise; DINO's epsilon is that of
    its own code, where transformers' configuration has 1e-12.
    """

    layouts: tuple[Layout, ...]
    prefix: str
    repositories: tuple[str, ...]
    opens: str
    sizes: Mapping[str, int]
    activation: str
    epsilon: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


BASE = {'width': 768, 'depth': 12, 'heads': 12}
FAMILIES = {
    'clip': Family(
        layouts=(CLIP,),
        prefix='vision_model.',
        repositories=('openai/clip-vit-base-patch16', 'openai/clip-vit-large-patch14'),
        opens='CLIPVisionModelWithProjection',
        sizes=BASE | {'patch_size': 16, 'projected': 512},
        activation='quick_gelu',
        epsilon=1e-5,
        mean=CLIP_MEAN,
        std=CLIP_STD,
    ),
    'dino': Family(
        layouts=DINO,
        prefix='vit.',
        repositories=tuple(f'facebook/dino-vit{size}' for size in ('b16', 's16', 'b8', 's8')),
        opens='ViTModel',
        sizes=BASE | {'patch_size': 16},
        activation='gelu',
        epsilon=1e-6,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    'dinov2': Family(
        layouts=DINOV2,
        prefix='dinov2.',
        repositories=tuple(f'facebook/dinov2-{size}' for size in ('base', 'small', 'large')),
        opens='Dinov2Model',
        sizes=BASE | {'patch_size': 14},
        activation='gelu',
        epsilon=1e-6,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
}
REFUSED = {
    r'.*\.register_tokens': 'register tokens, which the towers here lack; take DINOv2 without registers',
    r'.*\.mlp\.(weights_in|gate_proj)\.weight': "SwiGLU layers, DINOv2's giant; take dinov2-base, -small or -large",
}


def recognise(names: Mapping[str, object], origin: str) -> tuple[str, Layout, dict[str, str]]:
    """(kind, layout, {name in the layout: name in the file}) of a file's names, `origin` being what to call it.

    The layout is the one that has most of the arrays of its ends and first block. Raises WeightsError: registers, SwiGLU,
    no layout that knows the patch embedding and the positions, or an array with and without the prefix.
    """
    for pattern, what in REFUSED.items():
        if found := next((name for name in names if re.fullmatch(pattern, name)), None):
            raise WeightsError(f'{origin} has {found}: {what}.')
    best = (0, '', None, {})
    for kind, family in FAMILIES.items():
        present = {name.removeprefix(family.prefix): name for name in names}
        for layout in family.layouts:
            score = sum(name in present for entry in layout.entries for name in entry.names(0))
            ends = (name for path in (PATCH_KERNEL, POSITIONS) for name in layout.find(path)[0].names(0))
            if score > best[0] and all(name in present for name in ends):
                best = (score, kind, layout, present)
    if best[2] is None:
        wanted = ', '.join(family.opens for family in FAMILIES.values())
        some = ', '.join(sorted(names)[:4])
        raise WeightsError(
            f"{origin} has none of the layouts of a tower; those of transformers' {wanted} are read. It has {some}, ..."
        )
    _, kind, layout, present = best
    prefix = FAMILIES[kind].prefix
    if double := next((name for name in names if prefix + name in names), None):
        raise WeightsError(f'{origin} has {double} twice, also as {prefix}{double}; leave one of them out.')
    return kind, layout, present
