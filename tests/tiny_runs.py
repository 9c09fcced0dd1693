"""Tiny recipes, images and runs that several test modules share: 16 x 16 pixels, 16 patches, 4 of them visible."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from mim_jax.config import default_config
from mim_jax.forward import Forward, Surroundings, create_parameters
from mim_jax.methods.mae import mae
from mim_jax.networks import Networks
from mim_jax.parallel.hosts import to_global
from mim_jax.parallel.mesh import make_mesh
from mim_jax.recipe import Recipe
from mim_jax.training import optim, state, step

SIDE, PATCHES, VISIBLE, STEPS = 16, 16, 4, 20
# Compiles in about a third of the time: the fusion emitters alone take half of it. The partitioner is not affected.
QUICK = {'xla_backend_optimization_level': '0'}
if (0, 10) <= jax.__version_info__ < (0, 11):  # others may not know the option, which is an error
    QUICK['xla_cpu_use_fusion_emitters'] = False


def tiny_config(encoder: Mapping = {}, optim: Mapping = {}, **top: Any) -> ConfigDict:
    """The default configuration with everything small, in fp32; sections and keys on top of it."""
    config = default_config()
    config.update({'image_size': SIDE, 'dtype': 'float32', 'steps': STEPS, **top})
    config.steps_per_epoch, config.classes = 5.0, 10
    config.encoder.update({'patch_size': 4, 'width': 16, 'depth': 2, 'heads': 2, **encoder})
    config.optim.update(optim)
    return config


def tiny_mae(config: ConfigDict | None = None) -> Recipe:
    """MAE with a decoder of one block."""
    return mae(config or tiny_config(), decoder_width=16, decoder_depth=1, decoder_heads=2)


def random_batch(recipe: Recipe, seed: int = 0, count: int = 16) -> dict[str, np.ndarray]:
    """{crop: u8[count,16,16,3]}, and 'label' i32[count] where labels are read; what is drawn depends on its name alone."""
    draws = {name: np.random.default_rng([seed, *name.encode()]) for name in recipe.inputs}
    images = {crop: draws[crop].integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8) for crop in recipe.crops}
    labels = {'label': draws['label'].integers(0, 10, count, dtype=np.int32)} if recipe.labels else {}
    return images | labels


def random_parameters(module: nn.Module, *inputs: Any) -> dict:
    """Normal draws of deviation 0.3 in place of a module's initial parameters; nothing is compiled."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)['params']
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(0.3 * draw.normal(size=a.shape), a.dtype), shapes)


def trace_forward(recipe: Recipe, read: Any) -> Any:
    """What `read(forward)` returns, abstractly, on a forward pass that creates its parameters; nothing is compiled."""

    def run(key: jax.Array) -> Any:
        batch = jax.tree.map(jnp.zeros_like, random_batch(recipe, count=2))
        around = Surroundings(batch, jnp.arange(2), key, jnp.zeros((), jnp.int32), {}, {})
        return read(Forward(recipe, Networks(recipe, {}, {}, key, 'create'), around))

    return jax.eval_shape(run, jax.random.key(0))


def init_plain(recipe: Recipe) -> state.TrainState:
    """A state on one device, without an optimizer."""
    params, batch_stats, teachers = jax.jit(lambda key: create_parameters(recipe, key), compiler_options=QUICK)(
        jax.random.key(0)
    )
    return state.TrainState(jnp.zeros((), jnp.int32), params, batch_stats, (), teachers, jax.random.key(0))


class Run(NamedTuple):
    """A compiled step, its state before any step (on the host) and that state's place."""

    mesh: Any
    step: Any
    first: state.TrainState
    abstract: state.TrainState

    def fresh_state(self) -> state.TrainState:
        """The first state on the devices; a new copy each time, as the step donates what it is given."""
        key = jax.random.wrap_key_data(np.array(jax.random.key_data(self.first.root_key)))  # donated too: a copy
        return jax.device_put(self.first.replace(root_key=key), state.state_shardings(self.abstract))

    def train(self, batches: list[dict], frozen: Mapping = {}) -> tuple[state.TrainState, list[dict]]:
        """Steps over `batches` -> the last state and every step's logs as numpy."""
        now, logs = self.fresh_state(), []
        for batch in batches:
            now, out = self.step(now, frozen, to_global(self.mesh, batch))
            logs.append(jax.device_get(out))
        return now, logs


def start(
    recipe: Recipe,
    data: int = 1,
    fsdp: int = 1,
    accumulate: int = 1,
    first: Any = None,
    frozen: Any = (),
    schedule: str = 'cosine',
    model: int = 1,
) -> Run:
    """A run on data x fsdp x model of the eight fake devices; `first`, another's first state, saves compiling its creation.

    The learning rate rises to 1e-3 in two steps; after STEPS it is 0, or with schedule='constant' still there.
    """
    mesh = make_mesh(data, fsdp, model, devices=jax.devices()[: data * fsdp * model])
    rate = optim.learning_rate(schedule, 1e-3, 0.0, 2, STEPS)
    optimizer = optim.make_optimizer(recipe.config.optim, rate, recipe.decay)
    abstract = state.abstract_state(recipe, optimizer, mesh)
    if first is None:
        first = to_host(state.init_state(recipe, optimizer, abstract))
    frozen, batch = dict(frozen), to_global(mesh, random_batch(recipe))
    program = step.jit_train_step(step.make_train_step(recipe, optimizer, rate, accumulate), abstract, frozen, mesh)
    return Run(mesh, program.lower(abstract, frozen, batch).compile(compiler_options=QUICK), first, abstract)


def to_host(now: state.TrainState) -> state.TrainState:
    """A state of numpy arrays, and a copy of its key."""
    key = jax.random.wrap_key_data(np.array(jax.random.key_data(now.root_key)))
    return jax.device_get(now.replace(root_key=())).replace(root_key=key)


def random_state(recipe: Recipe) -> state.TrainState:
    """A first state with arbitrary parameters, on the host; for recipes without BatchNorm. Nothing is compiled."""
    optimizer = optim.make_optimizer(recipe.config.optim, lambda step: 1e-3)
    abstract = state.abstract_state(recipe, optimizer, make_mesh(devices=jax.devices()[:1]))
    draw, key = np.random.default_rng(0), jax.random.key(recipe.config.seed)
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), abstract.replace(root_key=()))
    params = jax.tree.map(lambda a: 0.1 * draw.normal(size=a.shape).astype(a.dtype), abstract.params)
    return zeros.replace(params=params, root_key=key)


def leaves(tree: Any) -> dict[str, np.ndarray]:
    """{path: numpy array}."""
    return {path: np.array(leaf) for path, leaf in state.flatten_with_paths(tree)}
