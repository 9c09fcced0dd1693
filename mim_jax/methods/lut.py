"""LUT: learning with unmasked tokens (Kim et al., "Learning with Unmasked Tokens Drives Stronger Vision Learners", ECCV 2024).

Beside the base's reconstruction, the mean of the visible tokens of one view must predict what a momentum teacher makes of the
whole of another, photometrically augmented view. Numerics: naver-ai/lut (models_lut.py, engine_lut.py, model_ema_sched.py)
with its two faults mended (the flag --w_b is read as w_bc; a module that it imports is missing). The base's own losses read
view 'main' only; view 'lut' is the augmented one.

Where the paper is at odds with the released code, or silent, or we differ:
- symmetric, the released form: the student sees both views, in disjoint sets of patches, and predicts each from the other;
  the two terms are averaged. The paper has the first alone (symmetric=False), which is cheaper by two passes. Beside MR-MAE,
  whose focus ranks each crop by its own attention, the sets of two crops may meet; those of one crop do not.
- The teacher averages the BatchNorm statistics with the weights and uses them, as released (average_batch_stats=False: those
  of its own batch). It holds what is read through it; the released one copies the decoder and the predictor as well.
- The released statistics are those of a micro-batch of 1024 images, moved for each of the four of a step; bn_images=1024
  takes them over runs of as many images, and moves once by their mean.
- Token-wise supervision, pooling masked tokens too, InfoNCE, smooth L1 and a masked teacher (table 4) have no released code.
  Tokens: each visible token predicts the teacher's of the same place, by heads of its own, so both views show one crop.
  pooled='both': the mean of the visible tokens and of the decoder's masked ones, brought to the encoder's width by a linear
  layer; with mask tokens in the encoder, the mean of its whole output. InfoNCE: negatives are the other images of the
  micro-batch, for tokens the others of the image. Smooth L1: of the heads' outputs as they are.
- The released momentum is indexed by micro-batches, ours by optimizer steps; in both the teacher moves once a step.
- The paper lists layer-wise decay of the learning rate for pre-training. The released code has it in fine-tuning alone.
- Augmentation runs on the device in floating point, without rounding to 8 bits between operations (see photometric.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.errors import Refused
from mim_jax.methods.checks import check_choices
from mim_jax.methods.projectors import check_bn_images
from mim_jax.models.layers import xavier
from mim_jax.models.projector import Projector
from mim_jax.objectives.context import cosine_distance, info_nce, smooth_l1
from mim_jax.photometric import jitter_then_one_of_three
from mim_jax.recipe import EMA, Objective, Recipe, View
from mim_jax.teachers import cosine_momentum
from mim_jax.tokens import MaskPlan, gather_tokens, plan_from_scores

if TYPE_CHECKING:
    from mim_jax.forward import Forward

TEMPERATURE = 0.1  # of InfoNCE
CHOICES = {
    'distance': ('cosine', 'infonce', 'smooth_l1'),
    'supervision': ('context', 'token', 'both'),
    'context': ('pool', 'cls'),
    'pooled': ('unmasked', 'both'),
}


def lut(
    recipe: Recipe,
    *,
    alpha: float = -1.0,
    symmetric: bool = True,
    distance: str = 'cosine',
    temperature: float = TEMPERATURE,
    supervision: str = 'context',
    context: str = 'pool',
    pooled: str = 'unmasked',
    head_width: int = 4096,
    bn_images: int = 0,
    momentum: float = 0.996,
    average_batch_stats: bool = True,
    teacher_mask_ratio: float = 0.0,
) -> Recipe:
    """`recipe` with the objective 'lut', view 'lut' and teacher 'lut'. Raises Refused.

    alpha: weight; -1: the paper's, 1 at a width of 384 (ViT-S) and 0.25 elsewhere; distance: cosine, infonce (with
    temperature), smooth_l1; supervision: context, token, both; context: pool, cls; pooled: unmasked, both; head_width: hidden
    width of projector and predictor; bn_images: how many images share their BatchNorm statistics, 0 for all of a micro-batch;
    momentum: the teacher's at step 0, rising to 1; teacher_mask_ratio: share of patches hidden from it. The others: see above.
    """
    given = {'distance': distance, 'supervision': supervision, 'context': context, 'pooled': pooled}
    check_choices('lut', CHOICES, given)
    _check_numbers(alpha, temperature, head_width, momentum)
    check_bn_images('lut', bn_images, recipe.config, least=1 if supervision == 'token' else 2)
    if temperature != TEMPERATURE and distance != 'infonce':
        raise Refused(f"lut.temperature={temperature} has no effect unless lut.distance='infonce'.")
    hidden = _check_teacher(teacher_mask_ratio, supervision, recipe.patches)
    _check_base(recipe, symmetric)
    _check_readings(recipe, supervision, context, pooled)
    encoder = recipe.encoder
    dtype = jnp.dtype(recipe.config.dtype)
    measure = {
        'cosine': cosine_distance,
        'infonce': partial(info_nce, temperature=temperature),
        'smooth_l1': smooth_l1,
    }[distance]

    def read_context(forward: Forward, view: str) -> jax.Array:
        """f32[B,D]: what stands for a view: of a student, or of a teacher, which has no masked tokens."""
        if context == 'cls':
            return forward.latent(view).prefix[:, 0]
        if pooled == 'both' and forward.student is None:
            return pool_all(forward, view)
        return forward.visible(view).astype(jnp.float32).mean(axis=1)

    def context_term(forward: Forward, student: str, teacher: str) -> jax.Array:
        output = _predict(forward, '', read_context(forward, student))
        held = forward.teacher('lut')
        return measure(output, held.head('lut/projector', read_context(held, teacher)))

    def token_term(forward: Forward, student: str, teacher: str) -> jax.Array:
        output, held = _predict(forward, 'token_', forward.visible(student)), forward.teacher('lut')
        target = held.head('lut/token_projector', held.visible(teacher))
        return measure(output, gather_tokens(target, forward.plan(student).keep))

    parts = {'context': context_term, 'token': token_term}
    parts = parts if supervision == 'both' else {'': parts[supervision]}

    def loss(forward: Forward) -> dict[str, jax.Array]:
        terms = {name: term(forward, 'main', 'lut') for name, term in parts.items()}
        if symmetric:  # after the other view: BatchNorm's statistics move in this order
            terms = {name: 0.5 * (terms[name] + term(forward, 'lut', 'main')) for name, term in parts.items()}
        return terms

    mlp = Projector((head_width, encoder.width), group_images=bn_images, dtype=dtype)
    prefixes = {'context': ('',), 'token': ('token_',), 'both': ('', 'token_')}[supervision]
    heads: dict[str, nn.Module] = {f'{p}{name}': mlp for p in prefixes for name in ('projector', 'predictor')}
    if pooled == 'both' and not encoder.mask_tokens:
        heads['masked'] = nn.Dense(encoder.width, kernel_init=xavier, dtype=dtype)
    if alpha == -1:
        alpha = 1.0 if encoder.width == 384 else 0.25
    crop = 'second' if supervision == 'context' else 'main'  # tokens are compared place by place
    return recipe.extend(
        'lut',
        views={'lut': View(crop, jitter_then_one_of_three, block=1 if symmetric else None)},
        teachers={'lut': EMA(cosine_momentum(momentum, recipe.config.steps), average_batch_stats, hidden)},
        objectives={'lut': Objective(loss, alpha, heads)},
    )


def _predict(forward: Forward, prefix: str, x: jax.Array) -> jax.Array:
    return forward.head(f'lut/{prefix}predictor', forward.head(f'lut/{prefix}projector', x))


def pool_all(forward: Forward, view: str) -> jax.Array:
    """f32[B,D]: the mean of all N tokens, of the visible ones in the encoder and the masked ones where they live."""
    (place,) = forward.recipe.mixed_places()
    if place == 'encoder':
        return forward.latent(view).patches.astype(jnp.float32).mean(axis=1)
    masked = gather_tokens(forward.hidden(place, view)[-1], forward.plan(view).drop)
    parts = forward.visible(view), forward.head('lut/masked', masked)
    return sum(x.astype(jnp.float32).sum(axis=1) for x in parts) / forward.recipe.patches


def _check_teacher(ratio: float, supervision: str, patches: int) -> Callable[[Forward, str], MaskPlan] | None:
    """EMA.plan: each view's own random patches are shown to the teacher, floor(N (1 - ratio)) of them; None: all."""
    if ratio == 0:
        return None
    visible = int(patches * (1 - ratio))
    if not 0 < visible < patches:
        raise Refused(
            f'lut.teacher_mask_ratio={ratio} shows the teacher {visible} of {patches} patches; it must be 0, which shows '
            'all, or leave some visible and some masked.'
        )
    if supervision != 'context':
        raise Refused(
            f"lut.supervision={supervision!r} needs the teacher's token at every place; set lut.teacher_mask_ratio=0."
        )
    return lambda forward, view: plan_from_scores(forward.uniform(f'lut/teacher/{view}', (patches,)), visible)


def _check_base(recipe: Recipe, symmetric: bool) -> None:
    base, visible, patches = recipe.papers[0], recipe.masking.visible, recipe.patches
    if not recipe.reconstructs:
        raise Refused(
            f'lut steers the visible tokens of a masked reconstruction, and {base} has none; choose another config.base.'
        )
    if symmetric and 2 * visible > patches:
        raise Refused(
            f'lut.symmetric shows two disjoint sets of {visible} patches, more than the {patches} there are; mask at least '
            f'half of them ({base}.mask_ratio), or set lut.symmetric=False.'
        )


def _check_readings(recipe: Recipe, supervision: str, context: str, pooled: str) -> None:
    if supervision == 'token' and (context, pooled) != ('pool', 'unmasked'):
        raise Refused("lut.context and lut.pooled choose what context is, and lut.supervision='token' has none.")
    if context == 'cls' and pooled == 'both':
        raise Refused(
            "lut.pooled='both' pools masked tokens, and lut.context='cls' pools nothing; set one of them back."
        )
    if context == 'cls' and not recipe.encoder.cls:
        raise Refused(
            f"lut.context='cls' reads a CLS token, which {recipe.papers[0]}'s encoder has not; use lut.context='pool'."
        )
    places = recipe.mixed_places()
    if pooled == 'both' and len(places) != 1:
        raise Refused(
            f"lut.pooled='both' pools the masked tokens of one network, and {recipe.papers[0]} has them in {len(places)}; "
            "use lut.pooled='unmasked'."
        )


def _check_numbers(alpha: float, temperature: float, head_width: int, momentum: float) -> None:
    if alpha <= 0 and alpha != -1:
        raise Refused(f'lut.alpha={alpha} must be above 0, save for -1, which leaves the choice to the width.')
    if temperature <= 0:
        raise Refused(f'lut.temperature={temperature} must be above 0.')
    if head_width < 1:
        raise Refused(f'lut.head_width={head_width} must be at least 1.')
    if not 0 <= momentum <= 1:
        raise Refused(f'lut.momentum={momentum} must be at least 0 and at most 1.')
