"""LUT on tiny bases, with arbitrary weights: what its tests share."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from test_precision import OPTIONS
from tiny_runs import QUICK, random_batch, tiny_config, trace_forward

from mim_jax.forward import Forward, Surroundings, create_parameters, evaluate
from mim_jax.methods import BASES
from mim_jax.methods.lut import lut
from mim_jax.networks import Networks

STEERABLE = ('mae', 'simmim', 'pixmim', 'bootmae', 'mcmae')
KEY = jax.random.key(3)


def make(base='mae', config=None, options=None, **settings):
    """LUT on a tiny base; options: the base's. Without augmentation, which takes longer to compile than all the rest."""
    recipe = BASES[base](config or tiny_config(), **{**OPTIONS[base], **(options or {})})
    made = lut(recipe, **{'head_width': 24, **settings})
    return replace(made, views={**made.views, 'lut': replace(made.views['lut'], photometric=None)})


def abstract_parts(recipe):
    """(params, batch_stats, teachers) as shapes."""
    return jax.eval_shape(lambda key: create_parameters(recipe, key), KEY)


def draw_parts(recipe):
    """The same with arbitrary values, variances positive; a teacher's differ from the student's. Nothing is compiled."""
    draw = np.random.default_rng(0)

    def fill(path, leaf):
        values = 0.3 * draw.normal(size=leaf.shape)
        return (np.abs(values) if path[-1].key == 'var' else values).astype(leaf.dtype)

    return jax.tree.map_with_path(fill, abstract_parts(recipe))


def forward_of(recipe, params, batch_stats, teachers, count=4):
    batch = {name: jnp.asarray(values) for name, values in random_batch(recipe, count=count).items()}
    around = Surroundings(batch, jnp.arange(count), KEY, jnp.zeros((), jnp.int32), teachers, {})
    return Forward(recipe, Networks(recipe, params, batch_stats, KEY, 'train'), around)


def run(recipe, read, parts=None):
    """What `read(forward)` returns, compiled."""
    program = jax.jit(lambda *parts: read(forward_of(recipe, *parts)), compiler_options=QUICK)
    return jax.device_get(program(*(parts or draw_parts(recipe))))


def run_logs(recipe, parts=None):
    return run(recipe, lambda forward: evaluate(forward)[1], parts)


def values_read(recipe, losses):
    """The names of what the losses of these objectives read; nothing is compiled."""
    found = []

    def read(forward):
        for name in losses:
            recipe.objectives[name].loss(forward)
        found.extend(forward._memo)

    trace_forward(recipe, read)
    return found


def transcribe(distance, outputs, targets):
    """A distance of outputs and targets f64[K,D] by its definition, row by row; InfoNCE at temperature 0.2."""
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (outputs, targets)]
    if distance == 'cosine':
        return np.mean([2 - 2 * (q @ z) for q, z in zip(*unit, strict=True)])
    if distance == 'infonce':
        rows = [[q @ z / 0.2 for z in unit[1]] for q in unit[0]]
        return np.mean([math.log(sum(map(math.exp, row))) - row[i] for i, row in enumerate(rows)])
    errors = np.abs(outputs - targets).ravel()
    return np.mean([e * e / 2 if e < 1 else e - 0.5 for e in errors])
