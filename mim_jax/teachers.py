"""Moving the momentum teachers; loading the frozen ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from mim_jax.networks import prune_tree
from mim_jax.recipe import Frozen, Recipe

Tree = dict[str, Any]


def move_teachers(
    recipe: Recipe, teachers: Mapping[str, Tree], params: Mapping[str, Tree], batch_stats: Mapping[str, Tree], step: Any
) -> dict[str, Tree]:
    """teacher <- m * teacher + (1 - m) * student, once per optimizer step, in fp32, on what each teacher holds.

    `params` and `batch_stats` are the student's after the update; m = momentum_at(step), step counted from 0.
    BatchNorm statistics are averaged with the same m when the teacher uses them, and left alone otherwise.
    """
    moved = {}
    for name, held in teachers.items():
        teacher = recipe.teachers[name]
        momentum = teacher.momentum_at(step)
        moved[name] = {
            'params': _toward(held['params'], params, momentum),
            'batch_stats': _toward(held['batch_stats'], batch_stats, momentum)
            if teacher.average_batch_stats
            else held['batch_stats'],
        }
    return moved


def _toward(held: Tree, source: Mapping[str, Tree], momentum: Any) -> Tree:
    wanted = {role: prune_tree(source[role], tree) for role, tree in held.items()}
    return jax.tree.map(lambda old, new: momentum * old + (1.0 - momentum) * new, held, wanted)


def load_frozen(recipe: Recipe) -> dict[str, Tree]:
    """{name: parameters} of every frozen teacher; an argument of the step, never checkpointed."""
    return {name: teacher.load() for name, teacher in recipe.teachers.items() if isinstance(teacher, Frozen)}
