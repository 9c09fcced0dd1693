"""Quick probes and pictures during pre-training, as watchers of the loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.data.augment import Crop
from mim_jax.data.loader import eval_batches
from mim_jax.data.sources import Source
from mim_jax.errors import ConfigError, DataError
from mim_jax.evals.accuracy import accuracy_watcher
from mim_jax.evals.features import extract_features, read_split
from mim_jax.evals.knn import knn_percents, summarise_percents
from mim_jax.evals.reconstruct import reconstruction_grid
from mim_jax.evals.ridge import few_shot, ridge_accuracy
from mim_jax.evals.subject import make_encode
from mim_jax.forward import Forward, Surroundings
from mim_jax.networks import Networks, named_key
from mim_jax.parallel.agreement import together
from mim_jax.parallel.hosts import is_first
from mim_jax.parallel.mesh import replicated
from mim_jax.recipe import Recipe
from mim_jax.training.charts import draw_charts
from mim_jax.training.curves import draw_curves
from mim_jax.training.journal import read_events
from mim_jax.training.loop import Session, Watcher, period_of
from mim_jax.training.state import TrainState


def make_watchers(session: Session, train: Source, test: Source | None) -> list[Watcher]:
    """What the config's `probe` and `pictures` sections ask for; `test` may be None when both are off.

    A recipe that predicts classes is tested in place of being probed.
    """
    probe, pictures, recipe = session.config.probe, session.config.pictures, session.recipe
    watchers = []
    if recipe.predict:
        watchers.append(accuracy_watcher(session, test))
    elif probe.every_epochs:
        watchers.append(Watcher(probe_watcher(session, train, test), period_of(probe.every_epochs, recipe), True))
    if pictures.every_epochs:
        watchers.append(Watcher(picture_watcher(session, test), period_of(pictures.every_epochs, recipe)))
    return watchers


def probe_watcher(session: Session, train: Source, test: Source) -> Callable[[TrainState, int], dict[str, float]]:
    """Quick probes of the frozen encoder: k-NN, ridge, few-shot ridge; keys 'probe/<name>', in percent."""
    config, probe = session.config, session.config.probe
    encode = jax.jit(make_encode(session.recipe, probe.pool), out_shardings=replicated(session.mesh))
    crop = Crop('center', config.image_size, config.data.interpolation)

    def look(state: TrainState, step: int) -> dict[str, float]:
        del step
        params = state.params['encoder']

        def features(source: Source, limit: int) -> tuple[np.ndarray, np.ndarray]:
            batches = read_split(source, crop, session.mesh, config, limit)
            return extract_features(lambda images: encode(params, images), batches, session.mesh)

        bank, queries = features(train, probe.train_images), features(test, probe.test_images)
        classes, found = train.num_classes, {}
        if probe.knn:
            found |= summarise_percents(knn_percents(*bank, *queries, classes))
        if probe.ridge:
            found |= ridge_accuracy(*bank, *queries, classes)
        if probe.few_shot:
            found |= few_shot(*bank, *queries, classes, probe.few_shot)
        return {f'probe/{name}': value for name, value in found.items()}

    return look


def check_probes(config: Any, train: Source, test: Source) -> None:
    """Raise DataError when probes are on and the two splits do not share classes."""
    if config.probe.every_epochs and not 0 < train.num_classes == test.num_classes:
        raise DataError(
            f'Probes need labelled splits with the same classes, but {config.data.split} has {train.num_classes} and '
            f'{config.data.eval_split} {test.num_classes}; set probe.every_epochs=0, or other splits.'
        )


def check_pool(recipe: Recipe) -> None:
    """Raise ConfigError when probes are to read a CLS token and the encoder has none."""
    probe = recipe.config.probe
    if probe.every_epochs and probe.pool == 'cls' and not recipe.encoder.cls:
        raise ConfigError(f'The encoder of {recipe.name} has no CLS token to probe; set probe.pool=mean.')


def picture_watcher(session: Session, test: Source) -> Callable[[TrainState, int], dict[str, float]]:
    """Reconstructions of fixed test images under fixed masks, and the curves so far, as PNG files."""
    recipe, config = session.recipe, session.config
    if not recipe.pictures:
        session.report(f'{recipe.name} predicts no pixels, so pictures.every_epochs draws curves only.')
    count = config.pictures.count
    crop = Crop('center', config.image_size, config.data.interpolation)
    data = config.data
    reading = eval_batches(test, crop, count, count, config.seed, data.threads, data.on_bad_image)
    shown = together('the pictures', lambda: next(reading))  # every host reads them all: they are few
    images = shown['image'][shown['weight'] > 0]

    @partial(jax.jit, out_shardings=replicated(session.mesh))
    def predict(state: TrainState, frozen: Any, images: jax.Array) -> dict[str, tuple[jax.Array, ...]]:
        key = named_key(state.root_key, 'pictures')
        around = Surroundings(
            dict.fromkeys(recipe.crops, images), jnp.arange(len(images)), key, state.step, state.teachers, frozen
        )
        forward = Forward(recipe, Networks(recipe, state.params, state.batch_stats, key, 'evaluate'), around)
        return {
            name: (
                forward.prediction(picture.decoder),
                forward.plan().masked,
                picture.target(forward) if picture.target else forward.images(),
            )
            for name, picture in recipe.pictures.items()
        }

    def look(state: TrainState, step: int) -> dict[str, float]:
        drawn = jax.device_get(predict(state, session.frozen, images))
        if not is_first():
            return {}
        for name, (prediction, masked, target) in drawn.items():
            reconstruction_grid(
                images / 255.0,
                prediction,
                masked,
                recipe.encoder.patch_size,
                recipe.pictures[name].norm_pix,
                recipe.mean,
                recipe.std,
                session.workdir.picture(f'{name}_step_{step:07d}'),
                f'{recipe.name}, step {step}',
                target,
            )
        draw_run_curves(session)
        return {}

    return look


def draw_run_curves(session: Session) -> None:
    """pictures/curves.png, and a picture per chart of the recipe, from the journal."""
    session.loggers.flush()
    events, recipe = read_events(session.loggers.journal.path), session.recipe
    draw_curves(events, session.workdir.picture('curves'), recipe.name)
    draw_charts(events, recipe.charts, session.workdir.picture, recipe.name)
