"""Fine-tuning: the encoder of any base and a new classifier, trained end to end. Not a paper, but applied as one.

The mean of the patch tokens after the last block, a LayerNorm that takes the place of the encoder's, a linear classifier;
layer-wise decay of the learning rate; RandAugment (data.rand_augment), random erasing, mixup and cutmix, label smoothing, drop
path. Numerics: facebookresearch/mae main_finetune.py, models_vit.py, util/lr_decay.py. What pre-training added (decoders,
heads, teachers, necks, pictures) is dropped; mask tokens are never inserted.

Where we differ from that code:
- Positions are trained there, and kept from weight decay: set encoder.positions=learned and optim.decay_exclude=simmim, as
  configs/eval/finetune.py does. It has a position for CLS too, which the CLS token's own vector makes redundant.
- Mixup's partner is the image at the mirrored place of the global micro-batch; there, of one device's batch.
- Images are mixed and erased on the device in floating point, before they are normalised, by what is the same afterwards.
- SimMIM's fine-tuning copies the shared table of relative biases into every block; here blocks go on sharing one, which has
  the classifier's learning rate.
- average: an exponential average of all weights, which is tested beside them (BootMAE's 0.9998); MAE has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mim_jax.errors import Refused
from mim_jax.methods.supervised import count_classes
from mim_jax.mixing import draw_mix, erase, mix_images, mix_labels
from mim_jax.models.layers import layer_norm
from mim_jax.models.neck import Last
from mim_jax.objectives.classify import cross_entropy, soft_cross_entropy
from mim_jax.recipe import EMA, Objective, Recipe, View
from mim_jax.teachers import constant_momentum

if TYPE_CHECKING:
    from mim_jax.forward import Forward


class Classifier(nn.Module):
    """LayerNorm if `norm`, then a linear layer with weights from N(0, `deviation`) and bias 0."""

    classes: int
    norm: bool
    deviation: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """f[B,D] -> f32[B,K]."""
        x = layer_norm(jnp.float32, 'norm')(x) if self.norm else x
        start = nn.initializers.normal(self.deviation)
        return nn.Dense(self.classes, kernel_init=start, dtype=jnp.float32, name='linear')(x)


def finetune(
    recipe: Recipe,
    *,
    classes: int = 0,
    pool: str = 'mean',
    head_deviation: float = 2e-5,
    layer_decay: float = 0.75,
    label_smoothing: float = 0.1,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    switch_probability: float = 0.5,
    erase_probability: float = 0.25,
    average: float = 0.0,
) -> Recipe:
    """`recipe`'s encoder as a classifier. Raises Refused.

    classes: 0: as many as the dataset has; pool: mean of the patch tokens, then a new norm, or cls, after the encoder's own;
    head_deviation: of the classifier's initial weights; layer_decay: what the learning rate of each block is multiplied by,
    counted from the classifier (1: off); mixup, cutmix: the parameters of their Beta distributions (0: off),
    switch_probability: how often it is cutmix where both are on; average: momentum of the average of weights (0: none).
    """
    chances = {'switch_probability': switch_probability, 'erase_probability': erase_probability}
    _check(recipe, pool, head_deviation, layer_decay, label_smoothing, mixup, cutmix, chances, average)
    config = recipe.config
    classes = count_classes(classes, config, 'finetune')
    encoder = plain_encoder(recipe)
    heads = {'head': Classifier(classes, pool == 'mean', head_deviation)}

    def read_mix(key: jax.Array) -> Any:
        return draw_mix(key, config.image_size, mixup, cutmix, switch_probability)

    def augment(pixels: jax.Array, keys: jax.Array) -> jax.Array:
        pixels = erase(pixels, keys, erase_probability, recipe.mean, recipe.std) if erase_probability else pixels
        return mix_images(pixels, read_mix(batch_key(keys))) if mixup or cutmix else pixels

    def loss(forward: Forward) -> dict[str, jax.Array]:
        logits, labels = read_logits(forward), forward.labels
        if not (mixup or cutmix):
            return {'': cross_entropy(logits, labels, label_smoothing)}
        mix = read_mix(batch_key(forward.keys('photometric', 'main')))  # what the images were mixed by
        return {'': soft_cross_entropy(logits, mix_labels(labels, mix, classes, label_smoothing))}

    def read_logits(forward: Forward) -> jax.Array:
        pooled = forward.latent().prefix[:, 0] if pool == 'cls' else mean_of_patches(forward)
        return forward.head('classify/head', pooled)

    def predict(forward: Forward) -> dict[str, jax.Array]:
        found = {'': forward.shared('finetune/logits', read_logits)}
        return found | ({'average': read_logits(forward.teacher('average'))} if average else {})

    return Recipe(
        config=config,
        papers=(*recipe.papers, 'finetune'),
        encoder=encoder,
        masking=recipe.masking,  # of no view here
        views={'main': View('main', augment if erase_probability or mixup or cutmix else None, block=None)},
        neck={'last': Last()},
        decoders={},
        objectives={'classify': Objective(loss, heads=heads, kind='classify')},
        teachers={'average': EMA(constant_momentum(average))} if average else {},
        reconstructs=False,
        labels=True,
        predict=predict,
        rate=layer_rates(layer_decay, encoder.depth) if layer_decay != 1 else None,
        mean=recipe.mean,
        std=recipe.std,
    )


def plain_encoder(recipe: Recipe) -> Any:
    """The encoder for whole images: without mask tokens."""
    return recipe.encoder.clone(mask_tokens=False) if recipe.encoder.mask_tokens else recipe.encoder


def batch_key(keys: jax.Array) -> jax.Array:
    """The key of what a micro-batch shares, from that of its first image: erasing splits that in two, which are 0 and 1."""
    return jax.random.fold_in(keys[0], 2)


def mean_of_patches(forward: Forward) -> jax.Array:
    """f32[B,D]: the mean of the last block's patch tokens, before any norm."""
    return forward.levels().last.patches.astype(jnp.float32).mean(axis=1)


def layer_rates(decay: float, depth: int) -> Callable[[str, tuple[int, ...]], Any]:
    """Recipe.rate: decay^(depth + 1 - layer). Layers: 0 what comes before the blocks, i + 1 block i, depth + 1 all else.

    Convolution stages, which come before the blocks, are layer 0; a table of relative biases that blocks share is of all
    else. Source: facebookresearch/mae util/lr_decay.py (param_groups_lrd); for that table microsoft/SimMIM optimizer.py.
    """

    def rate(path: str, shape: tuple[int, ...]) -> Any:
        role, _, name = path.partition('/')
        if role != 'encoder' or name.startswith('norm/') or name == 'relative_bias_table':
            return 1.0
        if name.startswith('blocks/'):
            powers = decay ** (depth - np.arange(depth, dtype=np.float64))
            return powers.astype(np.float32).reshape(-1, *(1,) * (len(shape) - 1))
        layer = int(name[len('block_') :].partition('/')[0]) + 1 if name.startswith('block_') else 0
        return decay ** (depth + 1 - layer)

    return rate


def _check(
    recipe: Recipe,
    pool: str,
    head_deviation: float,
    layer_decay: float,
    label_smoothing: float,
    mixup: float,
    cutmix: float,
    chances: Mapping[str, float],
    average: float,
) -> None:
    if 'finetune' in recipe.papers:
        raise Refused(f'finetune is already part of {recipe.name}; name it once.')
    if pool not in ('mean', 'cls'):
        raise Refused(f'finetune.pool={pool!r} must be mean or cls.')
    if pool == 'cls' and not recipe.encoder.cls:
        raise Refused(f"finetune.pool='cls' reads a CLS token, which {recipe.papers[0]}'s encoder has not; use mean.")
    if not 0 < layer_decay <= 1:
        raise Refused(f'finetune.layer_decay={layer_decay} must be above 0 and at most 1, which is off.')
    for name, value in (('label_smoothing', label_smoothing), ('average', average)):
        if not 0 <= value < 1:
            raise Refused(f'finetune.{name}={value} must be at least 0 and below 1.')
    if head_deviation < 0:
        raise Refused(f'finetune.head_deviation={head_deviation} must not be negative.')
    for name, value in chances.items():
        if not 0 <= value <= 1:
            raise Refused(f'finetune.{name}={value} must be from 0 to 1.')
    if mixup < 0 or cutmix < 0:
        raise Refused(f'finetune.mixup={mixup} and cutmix={cutmix} must not be negative; 0 is off.')
