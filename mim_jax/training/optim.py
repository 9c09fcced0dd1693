"""AdamW and LARS with decay masks, schedules, global-norm clipping: optax parts, put together as the papers do."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mim_jax.parallel.rules import path_of

# Which parameters weight decay leaves alone: (one-dimensional ones?, pattern over the parameter path).
DECAY_EXCLUDE: dict[str, tuple[bool, str]] = {
    'mae': (True, r'/bias$'),  # facebookresearch/mae, MCMAE, LUT: CLS and mask tokens *are* decayed
    'mmpretrain': (
        False,
        r'/(bias|scale|pos_embed|cls_token|mask_token)$',
    ),  # MFF, PixMIM: a one-dimensional logit is decayed
    'simmim': (True, r'/(bias|pos_embed|cls_token)$'),  # SimMIM, BootMAE, ConMIM: mask tokens are decayed
}


def decay_mask(params: Any, exclude: str, special: Mapping[str, bool] = {}) -> Any:
    """A tree of bools like `params`: True where weight decay acts. A stacked depth axis ('/blocks/') is not a dimension.

    exclude: a key of DECAY_EXCLUDE; special: {pattern over a whole path: whether it is decayed}, which goes first.
    """
    one_dimensional, pattern = DECAY_EXCLUDE[exclude]

    def decays(keypath: Any, leaf: Any) -> bool:
        path = path_of(keypath)
        for own, decayed in special.items():
            if re.fullmatch(own, path):
                return decayed
        dimensions = leaf.ndim - ('/blocks/' in path)
        return not ((one_dimensional and dimensions <= 1) or re.search(pattern, path))

    return jax.tree_util.tree_map_with_path(decays, params)


def learning_rate(
    schedule: str,
    peak: float,
    minimum: float,
    warmup_steps: float,
    total_steps: int,
    start: float = 0.0,
    milestones: tuple[float, ...] = (),
    factor: float = 0.1,
) -> Callable[[Any], jax.Array]:
    """step -> f32[]. Linear warm-up from `start` to `peak` over `warmup_steps` (may be fractional), then the schedule.

    'cosine': half a cosine from peak to minimum over the rest (facebookresearch/mae util/lr_sched.py, per iteration);
    'cosine_timm': the same as if it had begun at step 0, so that it starts below the peak (timm CosineLRScheduler, SimMIM);
    'cosine_beit': the same from a table of whole steps whose warm-up has reached the peak at its last step, one earlier
    (cosine_scheduler in utils.py of LightDXY/BootMAE and TencentARC/ConMIM); 'step': peak times `factor` for each of the
    `milestones`, in steps, that has been reached (microsoft/SimMIM lr_scheduler.py); 'constant': peak.
    """
    if schedule == 'cosine_beit':
        warmup_steps = round(warmup_steps)
    rise = warmup_steps - (schedule == 'cosine_beit')

    def rate_at(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        warm = start + (peak - start) * step / max(rise, 1e-9)
        if schedule == 'constant':
            rest = jnp.full((), peak, jnp.float32)
        elif schedule == 'step':
            rest = peak * factor ** jnp.sum(step >= jnp.asarray(milestones, jnp.float32))
        else:
            begun = 0.0 if schedule == 'cosine_timm' else warmup_steps
            progress = jnp.clip((step - begun) / max(total_steps - begun, 1e-9), 0.0, 1.0)
            rest = minimum + (peak - minimum) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return jnp.where(step < warmup_steps, warm, rest)

    return rate_at


def make_optimizer(
    optim: Any,
    rate_at: Callable[..., jax.Array],
    special: Mapping[str, bool] = {},
    multiplier: Callable[[str, tuple[int, ...]], Any] | None = None,
) -> optax.GradientTransformation:
    """Clip by global norm (if clip_norm > 0), then optim.name: AdamW as torch.optim.AdamW, or LARS as MoCo v3 defines it.

    adamw: p <- p - lr (m / (sqrt v + eps) + decay * p). lars: g + decay * p, scaled by .001 |p| / |g| where p has two
    dimensions or more, then m <- b1 m + g, then p <- p - lr m: the learning rate comes after the momentum, so that what is
    in m keeps no memory of it (facebookresearch/mae util/lars.py; optax.lars has it before).
    special: a recipe's `decay`, see decay_mask; multiplier: a recipe's `rate`. With one, rate_at takes it beside the step.
    """

    def decayed(params: Any) -> Any:
        return decay_mask(params, optim.decay_exclude, special)

    decay = optax.add_decayed_weights(optim.weight_decay, mask=decayed)
    clip = [optax.clip_by_global_norm(optim.clip_norm)] if optim.clip_norm else []
    direction = {
        'adamw': [optax.scale_by_adam(b1=optim.b1, b2=optim.b2, eps=optim.eps), decay],
        'lars': [decay, scale_by_trust(0.001), optax.trace(optim.b1)],
    }[optim.name]
    rate = scale_by_rates(rate_at, multiplier) if multiplier else optax.scale_by_learning_rate(rate_at)
    return optax.chain(*clip, *direction, rate)


def scale_by_trust(coefficient: float) -> optax.GradientTransformation:
    """LARS: g <- coefficient |p| / |g| g, unless either is 0, for parameters of two dimensions or more.

    Every layer of a stack ('/blocks/') has norms of its own.
    """

    def scale(keypath: Any, gradient: jax.Array, parameter: jax.Array) -> jax.Array:
        own = int('/blocks/' in path_of(keypath))
        if gradient.ndim - own < 2:
            return gradient
        axes = tuple(range(own, gradient.ndim))
        sizes = [jnp.sqrt(jnp.square(x).sum(axes, keepdims=True)) for x in (parameter, gradient)]
        trusted = (sizes[0] > 0) & (sizes[1] > 0)
        return gradient * jnp.where(trusted, coefficient * sizes[0] / jnp.where(trusted, sizes[1], 1.0), 1.0)

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        return jax.tree_util.tree_map_with_path(scale, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_rates(
    rate_at: Callable[..., jax.Array], multiplier: Callable[[str, tuple[int, ...]], Any]
) -> optax.GradientTransformation:
    """update <- -rate_at(step, multiplier(path, shape)) update: each parameter's own learning rate."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        scaled = jax.tree_util.tree_map_with_path(
            lambda keypath, u: -rate_at(state.count, multiplier(path_of(keypath), u.shape)) * u, updates
        )
        return scaled, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(lambda params: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)), update)
