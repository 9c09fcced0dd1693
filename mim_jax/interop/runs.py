"""What a run's folder offers to be written elsewhere: its recipe, and the arrays of a part of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mim_jax.config import check_config, from_json
from mim_jax.errors import Refused, WorkdirError
from mim_jax.interop.account import collapse
from mim_jax.interop.blocks import unstack_blocks
from mim_jax.interop.transfer import MASK_TOKEN
from mim_jax.methods import METHODS, build
from mim_jax.recipe import EMA, Recipe
from mim_jax.training.workdir import CONFIG
from mim_jax.weights.layout import Arrays


def build_recipe(config: Any) -> Recipe:
    """The recipe without its dataset: ImageNet's size stands in, which decides a run's length; so do its 1000 classes, unless
    the base's own section names how many its classifier has."""
    return build(config, 1_281_167, config.get(config.base, {}).get('classes', 0) or 1000)


def read_run_config(folder: Path) -> Any:
    """The checked config of a run's folder, unlocked. Raises WorkdirError when it is none."""
    file = folder / CONFIG
    if not file.is_file():
        raise WorkdirError(
            f'{folder} has no {CONFIG}: --checkpoint is the folder of a run, the --workdir of mim_jax.train.'
        )
    try:
        config = from_json(file.read_text()).unlock()
    except (ValueError, AttributeError) as error:
        raise WorkdirError(f'{file} is damaged ({error}); restore it.') from error
    check_config(config, METHODS)
    return config


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a run's folder. Raises WorkdirError when it is none."""
    return build_recipe(read_run_config(folder))


def find_teacher(recipe: Recipe, wanted: str | None) -> str:
    """The name of the momentum teacher to write. Raises Refused."""
    names = [name for name, teacher in recipe.teachers.items() if isinstance(teacher, EMA)]
    if not names:
        raise Refused(f'{recipe.name} trains without a momentum teacher; use --part encoder.')
    if wanted is None and len(names) > 1:
        raise Refused(f'{recipe.name} has the teachers {", ".join(names)}; choose one with --teacher.')
    if wanted not in (None, *names):
        raise Refused(f'{recipe.name} has no teacher {wanted!r}, but {", ".join(names)}.')
    return wanted or names[0]


def choose_arrays(saved: Mapping[str, np.ndarray], part: str, teacher: str | None) -> tuple[Arrays, list[str]]:
    """What of a checkpoint is written, under unstacked role paths, and lines to say about it."""

    def under(prefix: str) -> Arrays:
        found = {path.removeprefix(prefix): array for path, array in saved.items() if path.startswith(prefix)}
        return unstack_blocks(found)

    everything = under('params/')
    if part == 'full':  # running statistics have names of their own, so they share the roles' paths
        return everything | under('batch_stats/'), []
    encoder = {path: a for path, a in everything.items() if path.startswith('encoder/') and path != MASK_TOKEN}
    if teacher is None:
        return encoder, []
    held = {path: a for path, a in under(f'teachers/{teacher}/params/').items() if path in encoder}
    borrowed = sorted(encoder.keys() - held.keys())
    why = f'The teacher holds only what is read through it; from the student: {", ".join(collapse(borrowed))}.'
    return {**encoder, **held}, [why] if borrowed else []
