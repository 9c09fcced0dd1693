"""The train step. One function for every method: it never asks which one it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mim_jax.forward import Forward, Surroundings, evaluate
from mim_jax.networks import Networks, merge_trees, named_key
from mim_jax.parallel.activations import split_by_image
from mim_jax.parallel.mesh import batch_sharding, replicated
from mim_jax.recipe import Recipe
from mim_jax.teachers import move_teachers
from mim_jax.training.requests import LOGS, asked_sharding
from mim_jax.training.state import TrainState, state_shardings

Logs = dict[str, jax.Array]
Tree = dict[str, Any]


def compute_loss(
    recipe: Recipe, params: Tree, batch_stats: Tree, state: TrainState, frozen: Tree, batch: Mapping, rows: jax.Array
) -> tuple[jax.Array, tuple[Logs, Tree]]:
    """Total loss f32[] of one micro-batch; logs; BatchNorm statistics after it.

    batch: {crop: u8[B,S,S,3]}, and 'label' i32[B] where the recipe reads labels; rows i32[B]: the examples' places in the
    global batch, which key all of their noise.
    """
    key = named_key(state.root_key, 'step', state.step)
    networks = Networks(recipe, params, batch_stats, named_key(key, rows[0]), 'train')
    around = Surroundings(batch, rows, key, state.step, state.teachers, frozen)
    forward = Forward(recipe, networks, around)
    total, logs = evaluate(forward)
    return total, (logs, networks.batch_stats)


def make_train_step(
    recipe: Recipe,
    optimizer: optax.GradientTransformation,
    rate_at: Callable[[Any], jax.Array],
    accumulate: int = 1,
    placement: Tree | None = None,
) -> Callable[[TrainState, Tree, Mapping], tuple[TrainState, Logs]]:
    """(state, frozen, batch) -> (next state, logs): gradients, optimizer, teachers, once for the whole global batch.

    With accumulation, micro-batch m holds rows m, m + accumulate, ... so that no example changes device; gradients and
    logs are means over micro-batches, BatchNorm statistics move with each, the teachers once. placement: the parameters'
    shardings; gradients are held to them, so that FSDP need never have a whole gradient anywhere.
    """
    gradient = jax.value_and_grad(compute_loss, argnums=1, has_aux=True)

    def accumulated(state: TrainState, frozen: Tree, batch: Mapping, rows: jax.Array) -> tuple[Tree, Logs, Tree]:
        def split(x: jax.Array) -> jax.Array:
            return x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1)

        def one(carry: tuple, micro: tuple) -> tuple:
            grads, batch_stats = carry
            (_, (logs, batch_stats)), new = gradient(recipe, state.params, batch_stats, state, frozen, *micro)
            return (jax.tree.map(jnp.add, grads, new), batch_stats), logs

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        (grads, batch_stats), logs = jax.lax.scan(one, (zeros, state.batch_stats), jax.tree.map(split, (batch, rows)))
        return jax.tree.map(lambda g: g / accumulate, grads), jax.tree.map(lambda x: x.mean(0), logs), batch_stats

    def train_step(state: TrainState, frozen: Tree, batch: Mapping) -> tuple[TrainState, Logs]:
        batch = {name: batch[name] for name in recipe.inputs}
        rows = jnp.arange(next(iter(batch.values())).shape[0], dtype=jnp.int32)
        if accumulate == 1:
            (_, (logs, batch_stats)), grads = gradient(
                recipe, state.params, state.batch_stats, state, frozen, batch, rows
            )
        else:
            grads, logs, batch_stats = accumulated(state, frozen, batch, rows)
        if placement is not None:
            grads = jax.lax.with_sharding_constraint(grads, placement)
        batch_stats = merge_trees(batch_stats, state.batch_stats)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        teachers = move_teachers(recipe, state.teachers, params, batch_stats, state.step)
        logs = {**logs, 'grad_norm': optax.global_norm(grads), 'lr': rate_at(state.step)}
        moved = state.replace(
            step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, teachers=teachers
        )
        return moved, logs

    return train_step


def jit_train_step(
    step: Callable, abstract: TrainState, frozen: Tree, mesh: Mesh, requests: bool = False
) -> Callable[..., tuple[TrainState, Logs]]:
    """The step as one donated, sharded program; rows of batch and activations over all devices, logs replicated.

    requests: it has a fourth argument, what hosts ask of each other (training/requests.py), and adds it up in the logs.
    """
    state = state_shardings(abstract)

    def train_step(state: TrainState, frozen: Tree, batch: Mapping, *asked: jax.Array) -> tuple[TrainState, Logs]:
        with split_by_image(mesh):
            state, logs = step(state, frozen, batch)
        for rows in asked:
            logs = logs | dict(zip(LOGS, rows.sum(axis=0), strict=True))
        return state, logs

    held = jax.tree.map(lambda x: x.sharding, frozen)
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(state, held, batch_sharding(mesh), *([asked_sharding(mesh)] if requests else [])),
        out_shardings=(state, replicated(mesh)),
    )
