"""Our side of the MAE parity tests: the same quantities as vitmae_reference.run_reference, from this repository."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mae_cases import ADAMW, MEAN, STD, STEPS, Case

from mim_jax.config import default_config
from mim_jax.forward import Forward, Surroundings, evaluate
from mim_jax.methods.mae import mae
from mim_jax.networks import Networks
from mim_jax.parallel.hosts import to_global
from mim_jax.parallel.mesh import make_mesh
from mim_jax.parallel.rules import flatten_with_paths
from mim_jax.recipe import Recipe
from mim_jax.tokens import sincos_positions
from mim_jax.training.optim import learning_rate, make_optimizer
from mim_jax.training.state import TrainState, abstract_state, state_shardings
from mim_jax.training.step import jit_train_step, make_train_step

Arrays = dict[str, np.ndarray]


def make_recipe(case: Case, norm_pix_loss: bool, noise: np.ndarray) -> Recipe:
    """The base recipe in fp32 with the given sizes, optimizer settings and mask noise."""
    config = default_config()
    config.image_size, config.dtype, config.steps = case.image_size, 'float32', max(STEPS)
    config.encoder.update(patch_size=case.patch_size, width=case.width, depth=case.depth, heads=case.heads)
    config.data.update(mean=MEAN, std=STD)
    config.optim.update(
        b1=ADAMW['betas'][0], b2=ADAMW['betas'][1], eps=ADAMW['eps'], weight_decay=ADAMW['weight_decay']
    )
    recipe = mae(
        config,
        norm_pix_loss=norm_pix_loss,
        decoder_width=case.decoder_width,
        decoder_depth=case.decoder_depth,
        decoder_heads=case.decoder_heads,
    )
    return replace(recipe, masking=replace(recipe.masking, scores=rows_of(noise)))


def rows_of(noise: np.ndarray) -> Callable[[Forward, str], jax.Array]:
    """A Masking.scores that gives every example of the global batch its row of `noise`."""
    return lambda forward, view: jnp.asarray(noise)[forward.around.rows]


def run_ours(
    case: Case, norm_pix_loss: bool, images: np.ndarray, noise: np.ndarray, weights: Arrays, steps: int = max(STEPS)
) -> dict[str, Any]:
    """Loss, prediction, mask, gradients, and parameters after up to `steps` train steps; names are our paths."""
    recipe = make_recipe(case, norm_pix_loss, noise)
    rate = learning_rate('constant', ADAMW['lr'], 0.0, 0.0, max(STEPS))
    optimizer = make_optimizer(recipe.config.optim, rate)
    mesh = make_mesh(devices=jax.devices()[:1])
    abstract = abstract_state(recipe, optimizer, mesh)
    params = fill_tree(abstract.params, weights)
    (_, seen), gradients = jax.jit(jax.value_and_grad(make_loss(recipe, images), has_aux=True))(params)
    found = {name: np.asarray(value) for name, value in seen.items()}
    found['gradients'] = to_arrays(gradients)
    found['after'] = {}
    train_step = jit_train_step(make_train_step(recipe, optimizer, rate), abstract, {}, mesh)
    root_key = jax.random.key(recipe.config.seed)
    state = TrainState(jnp.zeros((), jnp.int32), params, {}, optimizer.init(params), {}, root_key)
    state = jax.device_put(state, state_shardings(abstract))
    for step in range(1, steps + 1):
        state, _ = train_step(state, {}, to_global(mesh, {'main': images}))
        if step in STEPS:
            found['after'][step] = to_arrays(state.params)
    found['positions'] = [
        np.concatenate([np.zeros((1, width), np.float32), sincos_positions(*recipe.grid, width)])
        for width in (case.width, case.decoder_width)
    ]
    return found


def make_loss(recipe: Recipe, images: np.ndarray) -> Callable:
    """params -> total loss and what the reference reports beside it."""

    def loss(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        key = jax.random.key(0)
        around = Surroundings({'main': jnp.asarray(images)}, jnp.arange(len(images)), key, jnp.zeros((), int), {}, {})
        forward = Forward(recipe, Networks(recipe, params, {}, key, 'train'), around)
        total, _ = evaluate(forward)
        plan = forward.plan()
        seen = {'prediction': forward.prediction('pixels'), 'masked': plan.masked, 'restore': plan.restore}
        return total, {'loss': total, **seen}

    return loss


def fill_tree(like: Any, arrays: Arrays) -> Any:
    """A tree like `like` with the arrays at its paths: exactly these paths and shapes, or an assertion fails."""
    expected = {path: leaf.shape for path, leaf in flatten_with_paths(like)}
    assert expected == {path: value.shape for path, value in arrays.items()}
    leaves = [jnp.asarray(arrays[path], jnp.float32) for path in expected]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def to_arrays(tree: Any) -> Arrays:
    """{path: array}, copied, because a train step donates its state."""
    return {path: np.array(leaf) for path, leaf in flatten_with_paths(tree)}
