"""For MR-MAE's tests: passes with frozen teachers, and equation 2 in float64 NumPy, fed with the tokens of the same pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mto_ours import OPTIONS, make_weights
from parity_rules import photographs
from tiny_runs import SIDE, tiny_config

from mim_jax.forward import Forward, Surroundings
from mim_jax.methods import BASES
from mim_jax.methods.mr_mae import mr_mae
from mim_jax.networks import Networks
from mim_jax.recipe import Recipe
from mim_jax.teachers import load_frozen

IMAGES = 3
RANDOM = ('random',)
TEACHER = 'mimic_random'
EPSILONS = {TEACHER: 1e-5, 'mimic_clip': 1e-5, 'mimic_dino': 1e-12}  # of their norms


def make_base(base: str, depth: int = 2, **encoder: Any) -> Recipe:
    """16 patches, 4 of them visible."""
    return BASES[base](tiny_config({'depth': depth, **encoder}, base=base, steps=80), **OPTIONS.get(base, {}))


def make_student(base: str, depth: int = 2, **options: Any) -> Recipe:
    """The base with the random teacher, unless `options` say otherwise."""
    return mr_mae(make_base(base, depth), **{'teachers': RANDOM, **options})


def make_parts(recipe: Recipe) -> tuple[Any, Any, Any, Any]:
    """params, batch_stats and teachers by rule; frozen as the recipe loads it."""
    return *make_weights(recipe), load_frozen(recipe)


def make_forward(recipe: Recipe, parts: tuple, images: Mapping[str, Any] | None = None) -> Forward:
    """A pass over photographs, in training mode."""
    params, batch_stats, teachers, frozen = parts
    key = jax.random.key(3)
    batch = images or dict.fromkeys(recipe.crops, jnp.asarray(photographs(SIDE, IMAGES)))
    around = Surroundings(batch, jnp.arange(IMAGES), key, jnp.zeros((), jnp.int32), teachers, frozen)
    return Forward(recipe, Networks(recipe, params, dict(batch_stats), key, 'train'), around)


def apply_norm(x: np.ndarray, params: Mapping[str, Any], epsilon: float) -> np.ndarray:
    """A layer norm over the last axis, f64."""
    x = np.asarray(x, np.float64)
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * params['scale'] + params['bias']


def expected_target(
    last: np.ndarray, teacher: Mapping[str, Any], feature: str, norm: str, epsilon: float = 1e-5
) -> np.ndarray:
    """F f64[B,N,C] from the teacher's last block f[B,N,W]: raw, after the final norm, or projected; then normalised."""
    target = np.asarray(last, np.float64)
    if feature != 'pre_ln':
        target = apply_norm(target, teacher['norm'], epsilon)
    if feature == 'proj':
        target = target @ np.asarray(teacher['projection']['kernel'], np.float64)
    if norm == 'layer_norm':
        centred = target - target.mean(-1, keepdims=True)
        target = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    if norm == 'l2':
        target = target / np.sqrt((target**2).sum(-1, keepdims=True))
    return target


def expected_mimicry(tokens: np.ndarray, head: Mapping[str, Any], target: np.ndarray, places: np.ndarray) -> float:
    """Equation 2, one image and one token after the other: (1/l) sum of |L(E) - F|^2, over C for a mean of channels.

    tokens f[B,T,D]: those that predict; target f[B,N,C]; places i32[B,T]: which patch each is.
    """
    kernel, bias = (np.asarray(head['linear'][name], np.float64) for name in ('kernel', 'bias'))
    squares = [
        (np.asarray(token, np.float64) @ kernel + bias - target[image][place]) ** 2
        for image in range(len(tokens))
        for token, place in zip(tokens[image], places[image], strict=True)
    ]
    return float(sum(square.sum() for square in squares) / len(squares) / target.shape[-1])
