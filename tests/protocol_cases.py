"""The cases of the protocols' parity tests, and our side of them: ten steps of fine-tuning, ten of the linear probe.

Crops of real photographs, weights by the rule of parity_rules, mixup and cutmix as our own step draws them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from base_ours import shapes_of
from mae_ours import fill_tree, to_arrays
from parity_rules import draw_weights, photographs, uniform
from tiny_runs import QUICK, to_host

from mim_jax.config import default_config
from mim_jax.evals.accuracy import make_predict
from mim_jax.interop.timm import TIMM_VIT, packed_bias, timm_blocks
from mim_jax.methods.finetune import finetune
from mim_jax.methods.linear_probe import linear_probe
from mim_jax.methods.mae import mae
from mim_jax.mixing import draw_mix
from mim_jax.networks import named_key
from mim_jax.parallel.hosts import to_global
from mim_jax.parallel.mesh import make_mesh
from mim_jax.recipe import Recipe
from mim_jax.training.assemble import make_program
from mim_jax.training.state import TrainState, create_state, state_shardings
from mim_jax.weights.encoders import encoder_shapes, save_encoder
from mim_jax.weights.layout import PATCHES, Entry, Form, Layout, linear, norm

Arrays = dict[str, np.ndarray]

SIDE, PATCH, CLASSES, STEPS, BATCH = 32, 8, 10, 10, 12
SIZES = {'width': 48, 'depth': 3, 'heads': 3}
EPOCHS, WARMUP = 5.0, 2.0  # two steps each
FINETUNE = {'layer_decay': 0.65, 'label_smoothing': 0.1, 'mixup': 0.8, 'cutmix': 1.0, 'switch_probability': 0.5}
ADAMW = {'peak': 1e-3, 'floor': 1e-4, 'decay': 0.5, 'betas': (0.9, 0.999)}  # ten times MAE's decay, to be seen
LARS = {'peak': 6.4, 'momentum': 0.9}
SETTLED = 1e-4  # share of a parameter's largest gradient, below which Adam's step is the sign of rounding

CLS_FREE = Form(lambda a: a[:, 1:], lambda a: np.concatenate([np.zeros_like(a[:, :1]), a], axis=1))
FINETUNED = Layout(  # models_vit.VisionTransformer(global_pool=True).state_dict(); our positions have no row for CLS
    name='fine-tuned VisionTransformer',
    entries=(
        *linear('encoder/patch_embed', 'patch_embed.proj', form=PATCHES),
        Entry('encoder/cls_token', 'cls_token'),
        Entry('encoder/pos_embed', 'pos_embed', CLS_FREE),
        *timm_blocks('encoder', 'blocks'),
        packed_bias('encoder', 'blocks'),
        *norm('objectives/classify/head/norm', 'fc_norm'),
        *linear('objectives/classify/head/linear', 'head'),
    ),
)
PROBED = Layout(  # the encoder of MAE, and the linear layer of head = Sequential(BatchNorm1d, Linear)
    name='probed VisionTransformer',
    entries=(*TIMM_VIT.entries, *linear('objectives/probe/linear_00', 'head.1')),
    constants=TIMM_VIT.constants,
)


def make_config(optim: Mapping[str, Any], sizes: Mapping[str, int] = SIZES, **encoder: Any) -> Any:
    config = default_config()
    config.image_size, config.dtype, config.steps, config.batch_size = SIDE, 'float32', STEPS, BATCH
    config.steps_per_epoch, config.classes = STEPS / EPOCHS, CLASSES
    config.encoder.update({'patch_size': PATCH, **sizes, **encoder})
    config.optim.update({'lr_scaling': 'none', 'warmup_epochs': WARMUP, **optim})
    return config


def finetune_recipe(sizes: Mapping[str, int] = SIZES, **options: Any) -> Recipe:
    """MAE's fine-tuning without what is drawn for each image."""
    b1, b2 = ADAMW['betas']
    optim = {'base_lr': ADAMW['peak'], 'min_lr': ADAMW['floor'], 'weight_decay': ADAMW['decay'], 'b1': b1, 'b2': b2}
    config = make_config({**optim, 'decay_exclude': 'simmim'}, sizes, positions='learned')
    return finetune(mae(config), erase_probability=0.0, **{**FINETUNE, **options})


def probe_recipe(weights: Path, sizes: Mapping[str, int] = SIZES, **options: Any) -> Recipe:
    """MAE's linear probe of the encoder in a file."""
    optim = {'name': 'lars', 'base_lr': LARS['peak'], 'b1': LARS['momentum'], 'weight_decay': 0.0}
    return linear_probe(mae(make_config(optim, sizes)), weights=str(weights), **options)


def encoder_weights(sizes: Mapping[str, int] = SIZES) -> Arrays:
    """{'encoder/...': value} of the whole encoder, by rule."""
    shapes = encoder_shapes(mae(make_config({}, sizes)).encoder)
    return draw_weights({path: leaf.shape for path, leaf in shapes.items()})


def head_weights(recipe: Recipe) -> Arrays:
    """{path: value} of everything that is trained, by rule."""
    return draw_weights(shapes_of(recipe))


def make_batches(name: str, steps: int = STEPS) -> list[dict[str, np.ndarray]]:
    """Batches of crops of the four photographs, nine each, and the crops' numbers modulo 10 as their labels."""
    corners = range(0, 112 - SIDE + 1, 40)
    crops = [p[y : y + SIDE, x : x + SIDE] for p in photographs(112, 4) for y in corners for x in corners]
    orders = [np.argsort(uniform(f'{name}/{step}', (len(crops),)))[:BATCH] for step in range(steps)]
    return [{'main': np.stack(crops)[rows], 'label': (rows % CLASSES).astype(np.int32)} for rows in orders]


def draw_mixes(steps: int = STEPS) -> dict[str, np.ndarray]:
    """weight f32[steps], cut bool[steps], box i32[steps,4] (top, bottom, left, right): how our steps mix their batches."""
    mixes = []
    for step in range(steps):
        images = named_key(jax.random.key(0), 'step', jnp.int32(step), 'photometric', 'main')
        key = jax.random.fold_in(jax.random.fold_in(images, 0), 2)  # the first image's, and then the batch's
        mixes.append(draw_mix(key, SIDE, FINETUNE['mixup'], FINETUNE['cutmix'], FINETUNE['switch_probability']))
    return {
        'weight': np.array([mix.weight for mix in mixes], np.float32),
        'cut': np.array([mix.cut for mix in mixes]),
        'box': np.array([[int(edge) for edge in mix.box] for mix in mixes], np.int32),
    }


def train_ours(recipe: Recipe, weights: Arrays, batches: list, held_out: np.ndarray) -> dict[str, Any]:
    """losses [steps]; parameters {path: array} after them; statistics likewise; logits f32[B,K] of u8 images held out."""
    mesh = make_mesh(devices=jax.devices()[:1])
    program = make_program(recipe, mesh)
    params = fill_tree(program.abstract.params, weights)
    stats = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), program.abstract.batch_stats)
    stats = jax.tree_util.tree_map_with_path(lambda path, a: a + (path[-1].key == 'var'), stats)
    state = TrainState(
        jnp.zeros((), jnp.int32), params, stats, program.optimizer.init(params), {}, jax.random.key(recipe.config.seed)
    )
    state = jax.device_put(state, state_shardings(program.abstract))
    placed = [to_global(mesh, batch) for batch in batches]
    step = program.step.lower(program.abstract, program.frozen, placed[0]).compile(compiler_options=QUICK)
    losses, rates = [], []
    for batch in placed:
        state, logs = step(state, program.frozen, batch)
        losses.append(float(logs['loss/total']))
        rates.append(float(logs['lr']))
    predict = jax.jit(make_predict(recipe), compiler_options=QUICK)
    return {
        'losses': np.array(losses),
        'rates': np.array(rates),
        'parameters': to_arrays(state.params),
        'statistics': to_arrays(state.batch_stats),
        'logits': np.asarray(predict(state, program.frozen, held_out)['']),
    }


def save_rule_encoder(path: Path, sizes: Mapping[str, int] = SIZES) -> Path:
    """The file that a linear probe reads."""
    save_encoder(path, encoder_weights(sizes), {})
    return path


class Trained(NamedTuple):
    """first: the state before any step, on the host; params: {path: array} after every step."""

    state: TrainState
    logs: list[dict[str, np.ndarray]]
    params: list[Arrays]
    first: TrainState


def run_program(recipe: Recipe, batches: list, devices: int = 1, first: TrainState | None = None) -> Trained:
    """A step for each batch, by the run's own optimizer and schedule."""
    mesh = make_mesh(devices=jax.devices()[:devices])
    program = make_program(recipe, mesh)
    if first is None:
        create = jax.jit(lambda key: create_state(recipe, program.optimizer, key), compiler_options=QUICK)
        first = to_host(create(jax.random.key(recipe.config.seed)))
    key = jax.random.wrap_key_data(np.array(jax.random.key_data(first.root_key)))  # donated, so a copy
    state = jax.device_put(first.replace(root_key=key), state_shardings(program.abstract))
    placed = [to_global(mesh, batch) for batch in batches]
    step = program.step.lower(program.abstract, program.frozen, placed[0]).compile(compiler_options=QUICK)
    logs, params = [], []
    for batch in placed:
        state, told = step(state, program.frozen, batch)
        logs.append(jax.device_get(told))
        params.append(to_arrays(state.params))
    return Trained(state, logs, params, first)
