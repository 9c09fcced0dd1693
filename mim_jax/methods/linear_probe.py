"""Linear probe: a linear classifier on frozen features, by MAE's protocol. Not a paper, but applied as one.

The CLS token after the encoder's final norm, BatchNorm without scale and bias, a linear layer, cross-entropy; LARS
(optim.name=lars). Numerics: facebookresearch/mae main_linprobe.py, util/lars.py. The encoder is a frozen teacher, read from a
file: nothing of it is trained, averaged or saved again, and the file's checksum is.

Where we differ from that code:
- BatchNorm's statistics are those of the global micro-batch; there, of one device's 512 images (bn_images=512).
- A whole row of learning rates can be tried in one pass: a classifier for each of `rates`, which share the features. Adding
  up their losses trains each as if it were alone.
- Other encoders: SimMIM's probe reads block 8, the mean of patch tokens, no norm (layer=8, pool='mean', norm='none';
  microsoft/SimMIM issue 14). MCMAE, BootMAE and MAE's own global-pool variant read the mean of the patches, then a norm that
  has just been made (pool='mean', norm='fresh'); BootMAE's block 9 in its README, block 10 in its script (layer=9, 10).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.errors import Refused
from mim_jax.methods.finetune import plain_encoder
from mim_jax.methods.projectors import check_bn_images
from mim_jax.methods.supervised import count_classes
from mim_jax.models.batch_norm import BatchNorm
from mim_jax.models.layers import layer_norm
from mim_jax.models.neck import Last
from mim_jax.objectives.classify import accuracy, cross_entropy
from mim_jax.paths import open_path
from mim_jax.recipe import Frozen, Objective, Recipe, View
from mim_jax.weights.encoders import load_encoder
from mim_jax.weights.files import digest_file

if TYPE_CHECKING:
    from mim_jax.forward import Forward

NORMS = ('encoder', 'fresh', 'none')


def linear_probe(
    recipe: Recipe,
    *,
    weights: str = '',
    classes: int = 0,
    layer: int = 0,
    pool: str = 'cls',
    norm: str = 'encoder',
    rates: tuple = (1.0,),
    bn_images: int = 0,
) -> Recipe:
    """`recipe`'s encoder, frozen, under a linear classifier. Raises Refused.

    weights: the encoder's file in our own names (mim_jax.evaluate writes it); classes: 0: as many as the dataset has; layer:
    the block that is read, from 1; 0: the last; pool: cls, or mean of the patch tokens; norm: the encoder's final norm before
    pooling (encoder), one without weights after it (fresh), or none; rates: a classifier for each, whose learning rate is so
    many times optim.base_lr; bn_images: how many images share statistics, 0: all of a micro-batch.
    """
    _check(weights, rates)
    check_reading(recipe, layer, pool, norm)
    check_bn_images('linear_probe', bn_images, recipe.config)
    classes = count_classes(classes, recipe.config, 'linear_probe')
    encoder = frozen_encoder(recipe)
    file = open_path(weights)
    names = [f'linear_{i:02d}' for i in range(len(rates))]
    start = nn.initializers.normal(0.01)

    def read_features(forward: Forward) -> jax.Array:
        frozen = forward.teacher('encoder')
        return pool_tokens(frozen, layer, pool, norm)

    def read_logits(forward: Forward) -> dict[str, jax.Array]:
        x = forward.head('probe/norm', forward.shared('linear_probe/features', read_features))
        return {name.removeprefix('linear_'): forward.head(f'probe/{name}', x) for name in names}

    def loss(forward: Forward) -> dict[str, jax.Array]:
        logits = forward.shared('linear_probe/logits', read_logits)
        return _name_only({name: cross_entropy(x, forward.labels, 0.0) for name, x in logits.items()})

    def watch(forward: Forward) -> Any:
        logits = forward.shared('linear_probe/logits', read_logits)
        found = _name_only({name: accuracy(x, forward.labels) for name, x in logits.items()})
        return found.get('', found)

    heads = {name: nn.Dense(classes, kernel_init=start, dtype=jnp.float32) for name in names}
    heads |= {'norm': BatchNorm(bn_images, affine=False, epsilon=1e-6)}
    multipliers = {f'objectives/probe/{name}/': float(rate) for name, rate in zip(names, rates, strict=True)}

    def rate(path: str, shape: tuple[int, ...]) -> float:
        del shape
        return next(value for prefix, value in multipliers.items() if path.startswith(prefix))

    return Recipe(
        config=recipe.config,
        papers=(*recipe.papers, 'linear_probe'),
        encoder=encoder,
        masking=recipe.masking,  # of no view here
        views={'main': View('main', block=None)},
        neck={'last': Last()},
        decoders={},
        objectives={'probe': Objective(loss, heads=heads, kind='classify')},
        teachers={
            'encoder': Frozen(
                encoder,
                lambda: load_encoder(file, encoder),
                recipe.mean,
                recipe.std,
                lambda: digest_file(file),
            )
        },
        watches={'accuracy': watch},
        reconstructs=False,
        labels=True,
        predict=lambda forward: _name_only(forward.shared('linear_probe/logits', read_logits)),
        rate=rate if tuple(rates) != (1.0,) else None,
        mean=recipe.mean,
        std=recipe.std,
    )


def frozen_encoder(recipe: Recipe) -> Any:
    """The encoder for whole images, blocks apart, as they are in its file; nothing random."""
    return plain_encoder(recipe).clone(drop_path=0.0, scan=False, remat='none')


def pool_tokens(forward: Forward, layer: int, pool: str, norm: str) -> jax.Array:
    """f32[B,D] of whole images: block `layer` (0: the last), normed and pooled as linear_probe says. Raises Refused."""
    check_reading(forward.recipe, layer, pool, norm)
    tokens = forward.levels().blocks[layer - 1]
    if norm == 'encoder':
        tokens = forward.networks.run('encoder', tokens, method='finish')
    pooled = tokens.prefix[:, 0] if pool == 'cls' else tokens.patches.astype(jnp.float32).mean(axis=1)
    if norm == 'fresh':
        fresh = layer_norm(jnp.float32).clone(use_bias=False, use_scale=False)
        pooled = fresh.apply({}, pooled)
    return pooled.astype(jnp.float32)


def _name_only(values: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """A single one goes without a name."""
    return values if len(values) > 1 else {'': next(iter(values.values()))}


def check_reading(recipe: Recipe, layer: int, pool: str, norm: str) -> None:
    """Raise Refused where `recipe`'s encoder has no such features; sentences name the section of the config's last paper."""
    section = recipe.config.papers[-1] if recipe.config.papers else 'linear_probe'
    depth = recipe.encoder.depth
    if not 0 <= layer <= depth:
        raise Refused(f'{section}.layer={layer} must be a block from 1 to {depth}, or 0 for the last.')
    if pool not in ('mean', 'cls') or norm not in NORMS:
        raise Refused(f'{section}.pool={pool!r} must be mean or cls, and norm={norm!r} one of {", ".join(NORMS)}.')
    if pool == 'cls' and not recipe.encoder.cls:
        raise Refused(
            f"{section}.pool='cls' reads a CLS token, which {recipe.papers[0]}'s encoder has not; use pool='mean'."
        )


def _check(weights: str, rates: tuple) -> None:
    if not open_path(weights).is_file():
        raise Refused(
            f'linear_probe.weights={weights!r} is no file. Run python -m mim_jax.evaluate --checkpoint RUN --config '
            'configs/eval/linear_probe.py, which writes it.'
        )
    if not rates or not all(type(rate) in (int, float) and rate > 0 for rate in rates):
        raise Refused(f'linear_probe.rates={rates} must be one number above 0 or more.')
