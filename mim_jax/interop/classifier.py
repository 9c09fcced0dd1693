"""Classifiers on an encoder: which one a recipe has, and its names in timm and in released fine-tuned files.

facebookresearch/mae stores a fine-tuned network (models_vit.py, global_pool=True) under timm's names: the mean of the patch
tokens is normed by `fc_norm`, in the place of `norm`, and read by `head`. Alpha-VL/ConvMAE does the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mim_jax.models.neck import Last
from mim_jax.recipe import Recipe
from mim_jax.weights.layout import Layout, linear, norm

FINAL_NORM, MASK_TOKEN = 'encoder/norm/', 'encoder/mask_token'
FINETUNED, SUPERVISED = 'objectives/classify/head', 'objectives/classify/linear'
CLASSIFIERS = FINETUNED, SUPERVISED


@dataclass(frozen=True)
class Part:
    """role: of the classifier's module; linear: of its linear layer; pool: 'mean' of the patch tokens, then a norm of its
    own, or 'cls' after the encoder's."""

    role: str
    linear: str
    pool: str


def find_classifier(recipe: Recipe) -> Part | None:
    """The classifier of a fine-tuned network or of the supervised control; None where there is none on the last block."""
    if not all(isinstance(reader, Last) for reader in recipe.neck.values()):
        return None
    if FINETUNED in recipe.roles():
        return Part(FINETUNED, f'{FINETUNED}/linear', 'mean' if recipe.module(FINETUNED).norm else 'cls')
    return Part(SUPERVISED, SUPERVISED, 'cls') if SUPERVISED in recipe.roles() else None


def ends_without_norm(recipe: Recipe) -> bool:
    """Whether the classifier's own norm takes the place of the encoder's, which then is nowhere."""
    part = find_classifier(recipe)
    return part is not None and part.pool == 'mean'


def explain_unused(recipe: Recipe, path: str) -> str | None:
    """Why a fine-tuned network has no place for this part of a pre-trained encoder; None where that is a fault."""
    if FINETUNED not in recipe.roles():
        return None
    if path.startswith(FINAL_NORM) and ends_without_norm(recipe):
        return "the classifier's own norm takes its place"
    return 'nothing is masked here' if path == MASK_TOKEN else None


def count_classes_in(state: Mapping[str, np.ndarray]) -> int:
    """Of the classifier in a file of timm's names or ours; 0 where there is none."""
    names = ('head.bias', f'{FINETUNED}/linear/bias', f'{SUPERVISED}/bias')
    return next((state[name].size for name in names if name in state), 0)


def class_layout(plain: Layout, part: Part) -> Layout:
    """The layout of an encoder, with the classifier on top as timm names it: `head`, and `fc_norm` in place of `norm`."""
    entries = [entry for entry in plain.entries if entry.ours.startswith('encoder/')]
    if part.pool == 'mean':
        entries = [entry for entry in entries if not entry.ours.startswith(FINAL_NORM)]
        entries += norm(f'{part.role}/norm', 'fc_norm')
    return replace(
        plain,
        name=f'{plain.name} with its classifier',
        entries=(*entries, *linear(part.linear, 'head')),
        constants={name: compute for name, compute in plain.constants.items() if 'decoder' not in name},
        ignored={pattern: why for pattern, why in plain.ignored.items() if 'head' not in pattern},
    )
