"""From a checked config to the parts of a run: dataset, recipe, loader, and the program that trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mim_jax.config import check_devices, peak_lr
from mim_jax.data.augment import Crop
from mim_jax.data.cache import cache_source
from mim_jax.data.loader import Loader
from mim_jax.data.rand_augment import parse_rand_augment
from mim_jax.data.sources import Source
from mim_jax.data.subsets import open_training
from mim_jax.forward import create_parameters
from mim_jax.methods import build
from mim_jax.parallel.agreement import together
from mim_jax.parallel.hosts import are_several, local_rows, place
from mim_jax.parallel.mesh import batch_sharding
from mim_jax.parallel.rules import shardings
from mim_jax.recipe import Recipe
from mim_jax.teachers import describe_frozen, load_frozen
from mim_jax.training.optim import learning_rate, make_optimizer
from mim_jax.training.state import TrainState, abstract_state, init_state, state_shardings
from mim_jax.training.step import jit_train_step, make_train_step


def open_run(config: Any) -> tuple[Recipe, Source]:
    """The recipe and its training images. Raises ConfigError, DataError or Refused before any device is used.

    What one host cannot open, none can.
    """
    source = together('the dataset', lambda: open_training(config.data))
    check_devices(config, jax.device_count(), len(source))
    return build(config, len(source), source.num_classes), source


def assemble(config: Any) -> tuple[Recipe, Source]:
    """The recipe and its training images, in memory where the config says so. Raises as `open_run`."""
    recipe, source = open_run(config)
    cached = together('the cache', lambda: cache_source(source, config.data.cache, config.data.threads))
    return recipe, cached


def make_loader(recipe: Recipe, source: Source, mesh: Mesh) -> Loader:
    """This host's rows of every global batch; each crop of the recipe has its own random stream."""
    config, data = recipe.config, recipe.config.data
    crop = Crop(
        *(
            data.crop,
            config.image_size,
            data.interpolation,
            tuple(data.scale),
            tuple(data.ratio),
            data.padding,
            data.flip,
        ),
        parse_rand_augment(data.rand_augment, data.mean, data.interpolation) if data.rand_augment else None,
    )
    return Loader(
        source,
        dict.fromkeys(recipe.crops, crop),
        config.batch_size,
        config.seed,
        rows=local_rows(mesh, config.batch_size),
        threads=data.threads,
        workers=data.workers,
        on_bad_image=data.on_bad_image,
    )


@dataclass(frozen=True)
class Program:
    """The train step of a recipe on a mesh, not yet compiled, and the state it needs, not yet allocated.

    abstract: the state's shapes, dtypes and shardings; frozen: fixed teachers' parameters, placed; step: (state, frozen,
    {crop: u8[B,S,S,3], and 'label': i32[B] where labels are read}) -> (state, logs), jitted, its state donated; with
    several hosts it is also given what they ask of each other (requests.py).
    """

    recipe: Recipe
    mesh: Mesh
    optimizer: optax.GradientTransformation
    abstract: TrainState
    frozen: Any
    step: Callable

    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The step's batch, not yet there: what to lower or trace it with."""
        config, placed = self.recipe.config, batch_sharding(self.mesh)
        image = jax.ShapeDtypeStruct((config.batch_size, *(config.image_size,) * 2, 3), 'uint8', sharding=placed)
        label = jax.ShapeDtypeStruct((config.batch_size,), 'int32', sharding=placed)
        return {name: label if name == 'label' else image for name in self.recipe.inputs}

    def init(self) -> TrainState:
        """The state at step 0: a function of the seed alone."""
        return init_state(self.recipe, self.optimizer, self.abstract)

    def untrained(self) -> TrainState:
        """The parameters and statistics of step 0 alone, to be looked at beside a state that is being trained."""
        placed = state_shardings(self.abstract)
        create = jax.jit(
            lambda key: create_parameters(self.recipe, key)[:2], out_shardings=(placed.params, placed.batch_stats)
        )
        key = jax.random.key(self.recipe.config.seed)
        params, batch_stats = create(key)
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, (), {}, key)


def make_schedule(config: Any) -> Callable[..., jax.Array]:
    """(optimizer step, multiplier = 1) -> learning rate, of a recipe's config (the length of the run filled in).

    A multiplier, such as a layer's, acts on the whole curve, or with optim.same_ends on the peak alone.
    """
    optim, peak = config.optim, peak_lr(config)

    def curve(peak: Any) -> Callable[[Any], jax.Array]:
        return learning_rate(
            optim.schedule,
            peak,
            optim.min_lr,
            optim.warmup_epochs * config.steps_per_epoch,
            config.steps,
            optim.warmup_lr * peak_lr(config) / optim.base_lr,
            tuple(epoch * config.steps_per_epoch for epoch in optim.step_epochs),
            optim.step_factor,
        )

    def rate_at(step: Any, multiplier: Any = 1.0) -> jax.Array:
        return curve(multiplier * peak)(step) if optim.same_ends else multiplier * curve(peak)(step)

    return rate_at


def make_program(recipe: Recipe, mesh: Mesh) -> Program:
    """Schedule, optimizer, shardings, teachers, step, all as the recipe's config says."""
    frozen = together('the frozen teachers', lambda: load_frozen(recipe))
    return _put_together(recipe, mesh, place(frozen, shardings(frozen, mesh, whole=False)))


def plan_program(recipe: Recipe, mesh: Mesh) -> Program:
    """The same program for devices that need not exist: frozen teachers are shapes alone, so it can be compiled, not run."""
    frozen = describe_frozen(recipe)
    placed = shardings(frozen, mesh, whole=False)
    shapes = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), frozen, placed)
    return _put_together(recipe, mesh, shapes)


def _put_together(recipe: Recipe, mesh: Mesh, frozen: Any) -> Program:
    config, optim = recipe.config, recipe.config.optim
    rate_at = make_schedule(config)
    optimizer = make_optimizer(optim, rate_at, recipe.decay, recipe.rate)
    abstract = abstract_state(recipe, optimizer, mesh)
    placement = state_shardings(abstract).params
    step = make_train_step(recipe, optimizer, rate_at, config.accumulate, placement)
    jitted = jit_train_step(step, abstract, frozen, mesh, requests=are_several())
    return Program(recipe, mesh, optimizer, abstract, frozen, jitted)
