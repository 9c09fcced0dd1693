"""Supervised: a ViT that learns to classify, the control of MFF's figure 6 (Liu et al., ICCV 2023, section 4.3).

Fused with all of its blocks (`papers=('mff',)`), it shows how much a network relies on its shallow layers when its target is
a label in place of pixels. Whole images, a linear classifier on the CLS token after the final norm, cross-entropy with label
smoothing: DeiT without distillation (Touvron et al., "Training data-efficient image transformers & distillation through
attention", ICML 2021; facebookresearch/deit main.py). It is a control, not a way to train good classifiers:

- RandAugment, mixup, cutmix, random erasing, repeated augmentation and the averaged copy of the weights, with which DeiT
  reaches its accuracy, are left out. What remains is a crop, a flip, drop path and label smoothing.
- The encoder and its initial values are MAE's, so that figure 6 compares targets and nothing else; DeiT draws all kernels from
  N(0, 0.02). The classifier starts as there: timm's VisionTransformer draws its kernel from N(0, 0.02), cut only at +-2, a
  hundred deviations, and leaves its bias at 0.
- encoder.positions=learned, as in DeiT, starts from the table of sines and cosines; DeiT starts from noise, and has a position
  for CLS, which the CLS token's own vector makes redundant.
- The learning rate follows its cosine from the end of the warm-up on and step by step; timm's changes once per epoch, has begun
  its cosine at epoch 0, and stays at the minimum for ten more epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.errors import Refused
from mim_jax.methods.encoders import mae_encoder
from mim_jax.methods.masking import random_scores
from mim_jax.models.layers import normal_02
from mim_jax.models.neck import Last
from mim_jax.objectives.classify import accuracy, cross_entropy
from mim_jax.recipe import Masking, Objective, Recipe, View

if TYPE_CHECKING:
    from mim_jax.forward import Forward


def supervised(config: Any, *, classes: int = 0, label_smoothing: float = 0.1) -> Recipe:
    """The base recipe. Raises Refused where there are no labels.

    classes: of the classifier; 0: as many as the dataset has. Weights that are imported before their dataset is known get
    ImageNet's 1000 unless it is given. label_smoothing: share of the target spread over all classes, in [0,1).
    """
    classes = count_classes(classes, config, 'supervised')
    if not 0 <= label_smoothing < 1:
        raise Refused(f'supervised.label_smoothing={label_smoothing} must be at least 0 and below 1.')
    encoder = mae_encoder(config)
    rows, columns = encoder.grid
    linear = nn.Dense(classes, kernel_init=normal_02, dtype=jnp.float32)
    return Recipe(
        config=config,
        papers=('supervised',),
        encoder=encoder,
        masking=Masking(random_scores, rows * columns),  # of no view here: the whole image is seen
        views={'main': View(crop='main', block=None)},
        neck={'last': Last()},
        decoders={},
        objectives={'classify': Objective(classify(label_smoothing), heads={'linear': linear}, kind='classify')},
        watches={'accuracy': lambda forward: accuracy(read_logits(forward), forward.labels)},
        reconstructs=False,
        labels=True,
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
    )


def count_classes(classes: int, config: Any, method: str) -> int:
    """How many logits: `classes`, or the dataset's for 0. Raises Refused when its labels are none, or more than that."""
    if not config.classes:
        raise Refused(
            f'{method} learns labels, and the images of data.split={config.data.split} have none; use a labelled dataset, '
            'or a base that needs no labels, such as mae.'
        )
    if classes and classes < config.classes:
        raise Refused(
            f'{method}.classes={classes} is less than the {config.classes} classes of the dataset; set it to 0, which '
            'takes as many as there are.'
        )
    return classes or config.classes


def read_logits(forward: Forward) -> jax.Array:
    """f32[B,K] of the main view's CLS token after the neck and the final norm; once for the loss and its watch."""
    return forward.shared(
        'classify/logits', lambda forward: forward.head('classify/linear', forward.latent().prefix[:, 0])
    )


def classify(label_smoothing: float) -> Callable[[Forward], dict[str, jax.Array]]:
    """The base's loss: cross-entropy of the logits with the labels."""

    def loss(forward: Forward) -> dict[str, jax.Array]:
        return {'': cross_entropy(read_logits(forward), forward.labels, label_smoothing)}

    return loss
