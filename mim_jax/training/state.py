"""The state of a run: made sharded from the start, and turned into a plain tree only at the checkpoint's border."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct, traverse_util
from jax.sharding import Mesh

from mim_jax.errors import ConfigError
from mim_jax.forward import create_parameters
from mim_jax.parallel.mesh import replicated
from mim_jax.parallel.rules import flatten_with_paths, shardings
from mim_jax.recipe import Frozen, Recipe

Tree = dict[str, Any]


@struct.dataclass
class TrainState:
    """step i32[]: optimizer steps done; params, batch_stats: {role: tree}, fp32; teachers: {name: {'params', 'batch_stats'}}.

    root_key never changes and is never checkpointed: it is jax.random.key(config.seed), and every draw of the run is
    derived from it by (step, name, row).
    """

    step: jax.Array
    params: Tree
    batch_stats: Tree
    opt_state: Any
    teachers: Tree
    root_key: jax.Array


def create_state(recipe: Recipe, optimizer: optax.GradientTransformation, root_key: jax.Array) -> TrainState:
    """Step 0. Call it through `init_state`, so that no parameter is ever whole on one device."""
    params, batch_stats, teachers = create_parameters(recipe, root_key)
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), teachers, root_key)


def abstract_state(recipe: Recipe, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state; nothing is allocated. Raises ConfigError where the mesh does not fit."""
    key = jax.random.key(recipe.config.seed)
    shapes = jax.eval_shape(lambda key: create_state(recipe, optimizer, key), key)
    check_heads(recipe, shapes.params, mesh.shape['model'])
    whole = 'encoder' in shapes.params  # a frozen one is not part of the state
    specs = shardings(shapes.replace(root_key=()), mesh, whole=whole).replace(root_key=replicated(mesh))
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, specs)


def check_heads(recipe: Recipe, params: Tree, model: int) -> None:
    """Raise ConfigError where `model` devices cannot share the heads of a part evenly; params {role: tree}, of shapes."""
    attending = [role for role, tree in params.items() if any('/attn/' in f'/{p}' for p, _ in flatten_with_paths(tree))]
    heads = {role: recipe.module(role).heads for role in attending}
    frozen = {name: t.encoder for name, t in recipe.teachers.items() if isinstance(t, Frozen)}
    heads |= {f'teacher {name}': encoder.heads for name, encoder in frozen.items()}
    if any(number % model for number in heads.values()):
        listed = ', '.join(f'{part} {number}' for part, number in heads.items())
        fits = math.gcd(*heads.values())
        divisors = ', '.join(str(n) for n in range(1, fits + 1) if fits % n == 0)
        raise ConfigError(
            f'mesh.model={model} must divide the heads of every attention, and there are: {listed}; it can be {divisors}.'
        )


def state_shardings(abstract: TrainState) -> TrainState:
    """The sharding of every leaf."""
    return jax.tree.map(lambda a: a.sharding, abstract)


def init_state(recipe: Recipe, optimizer: optax.GradientTransformation, abstract: TrainState) -> TrainState:
    """The state at step 0, created in place by every device that will hold it."""
    create = jax.jit(lambda key: create_state(recipe, optimizer, key), out_shardings=state_shardings(abstract))
    return create(jax.random.key(recipe.config.seed))


def to_tree(state: TrainState) -> Tree:
    """A nested dict of arrays for a checkpoint: roles become folders, the key stays out."""
    return traverse_util.unflatten_dict(dict(flatten_with_paths(state.replace(root_key=()))), sep='/')


def from_tree(tree: Tree, like: TrainState) -> TrainState:
    """The inverse of `to_tree`; `like` gives the structure, its root_key must be real or abstract as wanted."""
    flat = traverse_util.flatten_dict(tree, sep='/')
    bare = like.replace(root_key=())
    leaves = [flat[path] for path, _ in flatten_with_paths(bare)]
    restored = jax.tree.unflatten(jax.tree.structure(bare), leaves)
    return restored.replace(root_key=like.root_key)
