"""Moving the momentum teachers, and by which momentum; loading the frozen ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mim_jax.networks import prune_tree
from mim_jax.recipe import Frozen, Recipe
from mim_jax.weights.encoders import describe_encoder

Tree = dict[str, Any]


def constant_momentum(momentum: float) -> Callable[[Any], jax.Array]:
    """EMA.rate_at, 1 - momentum: f32[], the same at every step."""
    return lambda step: jnp.full((), 1.0 - momentum, jnp.float32)


def cosine_momentum(start: float, steps: int) -> Callable[[Any], jax.Array]:
    """EMA.rate_at, 1 - momentum: the momentum is 1 + (start - 1)(1 + cos(pi step / steps)) / 2, from start to 1.

    Source: TencentARC/ConMIM engine_for_pretraining.py and naver-ai/lut, indexed by optimizer steps from 0.
    """
    return lambda step: (1.0 - start) * jnp.cos(0.5 * jnp.pi * jnp.asarray(step, jnp.float32) / steps) ** 2


def move_teachers(
    recipe: Recipe, teachers: Mapping[str, Tree], params: Mapping[str, Tree], batch_stats: Mapping[str, Tree], step: Any
) -> dict[str, Tree]:
    """teacher <- teacher + rate (student - teacher), once per optimizer step, in fp32, on what each teacher holds.

    `params` and `batch_stats` are the student's after the update; rate = 1 - momentum = rate_at(step), steps from 0.
    BatchNorm statistics are averaged at the same rate when the teacher uses them, and left alone otherwise.
    """
    moved = {}
    for name, held in teachers.items():
        teacher = recipe.teachers[name]
        rate = teacher.rate_at(step)
        moved[name] = {
            'params': _toward(held['params'], params, rate),
            'batch_stats': _toward(held['batch_stats'], batch_stats, rate)
            if teacher.average_batch_stats
            else held['batch_stats'],
        }
    return moved


def _toward(held: Tree, source: Mapping[str, Tree], rate: Any) -> Tree:
    wanted = {role: prune_tree(source[role], tree) for role, tree in held.items()}
    return jax.tree.map(lambda old, new: old + rate * (new - old), held, wanted)


def load_frozen(recipe: Recipe) -> dict[str, Tree]:
    """{name: parameters} of every frozen teacher; an argument of the step, never checkpointed."""
    return {name: teacher.load() for name, teacher in recipe.teachers.items() if isinstance(teacher, Frozen)}


def describe_frozen(recipe: Recipe) -> dict[str, Tree]:
    """{name: shapes and dtypes of what `load_frozen` gives}; no file is read."""
    teachers = recipe.teachers.items()
    return {name: describe_encoder(teacher.encoder) for name, teacher in teachers if isinstance(teacher, Frozen)}


def digest_frozen(recipe: Recipe) -> dict[str, str]:
    """{name: checksum of its file, '' where there is none} of every frozen teacher."""
    return {name: teacher.digest() for name, teacher in recipe.teachers.items() if isinstance(teacher, Frozen)}
