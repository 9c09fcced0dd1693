"""The accuracy of a recipe that predicts classes, on all images of the test split, as a watcher of the loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from mim_jax.data.augment import Crop
from mim_jax.data.sources import Source
from mim_jax.errors import DataError
from mim_jax.evals.counting import count_correct
from mim_jax.evals.features import read_split
from mim_jax.forward import Forward, Surroundings
from mim_jax.networks import Networks
from mim_jax.parallel.mesh import replicated
from mim_jax.recipe import Recipe
from mim_jax.training.loop import Session, Watcher, period_of
from mim_jax.training.state import TrainState


def make_predict(
    recipe: Recipe, photometric: Callable | None = None
) -> Callable[[TrainState, Any, jax.Array], dict[str, jax.Array]]:
    """(state, frozen, images u8[B,S,S,3]) -> {name: logits f32[B,K]}: no augmentation, running statistics.

    photometric: takes the place of the views' own, where the images of a test are changed on the device.
    """
    views = {name: replace(view, photometric=photometric) for name, view in recipe.views.items()}
    plain = replace(recipe, views=views, labels=False)

    def predict(state: TrainState, frozen: Any, images: jax.Array) -> dict[str, jax.Array]:
        rows, key = jnp.arange(len(images)), state.root_key  # nothing is drawn
        batch = dict.fromkeys(recipe.crops, images)
        around = Surroundings(batch, rows, key, state.step, state.teachers, frozen)
        forward = Forward(plain, Networks(plain, state.params, state.batch_stats, key, 'evaluate'), around)
        return {name: logits.astype(jnp.float32) for name, logits in recipe.predict(forward).items()}

    return predict


def accuracy_watcher(session: Session, test: Source) -> Watcher:
    """Counts at the end, and every probe.every_epochs where that is not 0; keys 'test/top1', 'test/<name>/top1', ..."""
    recipe, config, mesh = session.recipe, session.config, session.mesh
    predict = jax.jit(make_predict(recipe), out_shardings=replicated(mesh))
    crop = Crop('center', config.image_size, config.data.interpolation)

    def look(state: TrainState, step: int) -> Mapping[str, float]:
        del step
        batches = read_split(test, crop, mesh, config)
        counts = count_correct(lambda images: predict(state, session.frozen, images), batches, mesh, test)
        return {f'test/{name}': value for name, value in counts.items()}

    return Watcher(look, period_of(config.probe.every_epochs, recipe) or math.inf)


def check_test(recipe: Recipe, test: Source) -> None:
    """Raise DataError unless the test split has exactly the classes of training: label k must mean the same in both.

    Of a saved classifier that was given more classes than its dataset has, only their number is known, and fewer will do.
    """
    classes = recipe.config.classes
    fewer = classes == recipe.config.get(recipe.papers[-1], {}).get('classes', 0) and 0 < test.num_classes < classes
    if test.num_classes != classes and not fewer:
        raise DataError(
            f'{test.description} has {test.num_classes} classes, the training split {recipe.config.classes}: set '
            'data.eval_split to labelled images of the same classes.'
        )
