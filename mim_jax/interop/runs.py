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
from mim_jax.interop.classifier import MASK_TOKEN
from mim_jax.methods import METHODS, build
from mim_jax.recipe import EMA, Recipe
from mim_jax.training.classes import count_saved_classes
from mim_jax.training.workdir import CONFIG
from mim_jax.weights.layout import Arrays


def build_recipe(config: Any, classes: int = 0) -> Recipe:
    """The recipe without its dataset, for which ImageNet's size stands in: it decides a run's length.

    Its classifier, where there is one, has as many classes as the config names, else `classes`, else ImageNet's 1000.
    """
    owner = 'finetune' if 'finetune' in config.papers else config.base
    named = config.get(owner, {}).get('classes', 0)
    return build(config, 1_281_167, named or classes or 1000)


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


def saved_recipe(config: Any, saved: Mapping[str, np.ndarray]) -> Recipe:
    """The recipe of a run's checked config and the {path: array} of a checkpoint, whose classifier tells its classes.

    MR-MAE's teachers are replaced by the random one, which decides neither encoder, neck nor decoders: a run holds nothing of
    them, so their files need not be there. Raises Refused when the run has no encoder.
    """
    if 'linear_probe' in config.papers:
        raise Refused(
            f'This run holds a linear classifier and no encoder: the frozen one is that of {config.linear_probe.weights}, so '
            'export the run which that was made from.'
        )
    own = config.copy_and_resolve_references().unlock()
    if 'mr_mae' in config.papers:
        files = {key: '' for key in own.mr_mae if key.endswith('_weights')}
        own.mr_mae.update({'teachers': ('random',), **files})
    recipe = build_recipe(own, count_saved_classes(saved))
    if 'mr_mae' in config.papers:
        with recipe.config.unlocked():
            recipe.config.mr_mae = config.mr_mae
    return recipe


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

    student = under('params/')
    if part == 'full':  # running statistics have names of their own, so they share the roles' paths
        student |= under('batch_stats/')
    else:
        student = {path: a for path, a in student.items() if path.startswith('encoder/') and path != MASK_TOKEN}
    if teacher is None:
        return student, []
    held = under(f'teachers/{teacher}/params/') | under(f'teachers/{teacher}/batch_stats/')
    held = {path: a for path, a in held.items() if path in student}
    borrowed = sorted(student.keys() - held.keys())
    why = f'The teacher holds only what is read through it; from the student: {", ".join(collapse(borrowed))}.'
    return {**student, **held}, [why] if borrowed else []
