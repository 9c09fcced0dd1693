"""Tiny recipes of every base with weights by rule, and files of weights made of them."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from parity_rules import draw_weights

from mim_jax.config import check_config, load_config
from mim_jax.forward import create_parameters
from mim_jax.interop.blocks import unstack_shapes
from mim_jax.interop.formats import Format, formats_of
from mim_jax.interop.transfer import MASK_TOKEN, export_arrays
from mim_jax.methods import BASES, PAPERS, build
from mim_jax.parallel.rules import flatten_with_paths
from mim_jax.recipe import Recipe
from mim_jax.weights.layout import Arrays

METHODS = {**BASES, **PAPERS}
CONFIGS = Path(__file__).parents[2] / 'configs'
SMALL = ('--config.encoder.width=32', '--config.encoder.depth=2', '--config.encoder.heads=2')
SHAPES: dict[int, dict[str, Any]] = {}


@functools.cache
def make_recipe(base: str, *overrides: str) -> Recipe:
    """A base at 32 pixels with 8 x 8 patches, in its smoke variant with a smaller encoder; overrides as 'image_size=48'."""
    settings = [*SMALL, *(f'--config.{one}' for one in overrides)]
    config, _ = load_config(f'{CONFIGS / base}.py:smoke', settings, METHODS)
    check_config(config, METHODS)
    return build(config, 1000, 10)


def shapes_of(recipe: Recipe) -> dict[str, Any]:
    """{unstacked path: shape} of parameters and running statistics."""
    if id(recipe) not in SHAPES:  # recipes cannot be hashed; those of make_recipe live on
        params, batch_stats, _ = jax.eval_shape(lambda key: create_parameters(recipe, key), jax.random.key(0))
        SHAPES[id(recipe)] = unstack_shapes(dict(flatten_with_paths(params)) | dict(flatten_with_paths(batch_stats)))
    return SHAPES[id(recipe)]


def draw_encoder(recipe: Recipe) -> Arrays:
    """What an exported encoder consists of."""
    return {path: a for path, a in draw_arrays(recipe, 'encoder/').items() if path != MASK_TOKEN}


def draw_arrays(recipe: Recipe, part: str = '') -> Arrays:
    """Weights by rule of the paths that begin with `part`; variances are positive."""
    drawn = draw_weights({path: leaf.shape for path, leaf in shapes_of(recipe).items() if path.startswith(part)})
    return {path: np.abs(a) + np.float32(0.1) if path.endswith('/var') else a for path, a in drawn.items()}


def find_format(recipe: Recipe, name: str) -> Format:
    """The first format of this name."""
    return next(form for form in formats_of(recipe, shapes_of(recipe)) if form.layout.name == name or form.name == name)


def make_state(recipe: Recipe, name: str, part: str = '') -> tuple[Arrays, Format, Arrays]:
    """(a state in the format of this name, the format, our arrays in it)."""
    form = find_format(recipe, name)
    positions = form.positions and form.positions.ours
    drawn = draw_arrays(recipe, part).items()
    arrays = {p: a for p, a in drawn if form.layout.covers(p) or 'attn' in p or p == positions}
    state, left_out = export_arrays(arrays, form, recipe)
    return state, form, {path: a for path, a in arrays.items() if path not in left_out}


def assert_same(found: Arrays, expected: Arrays) -> None:
    """Same paths, same bits."""
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)
