"""Which tower a set of arrays is: its family, its layout and its sizes, from names and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mim_jax.models.towers import Tower
from mim_jax.weights.beside import Settings
from mim_jax.weights.files import WeightsError
from mim_jax.weights.layout import Layout, to_theirs
from mim_jax.weights.resize import square_grid
from mim_jax.weights.tower_layouts import FAMILIES, PATCH_KERNEL, POSITIONS, recognise

HEAD_WIDTH = 64  # of every published tower that is read without its config.json
MOST_BLOCKS = 100  # their numbers have two digits in our names


@dataclass(frozen=True)
class Described:
    """What the names and shapes of a file say: its layout, {name in the layout: in the file}, the tower on its own grid."""

    kind: str
    layout: Layout
    names: Mapping[str, str]
    tower: Tower


def describe(header: Mapping[str, jax.ShapeDtypeStruct], config: Settings, origin: str) -> Described:
    """The tower of which a file has the arrays. Heads, activation and epsilon are the config's, where it names them.

    Raises WeightsError: sizes that make no tower, or one list of every array missing, unknown, mis-shaped or not of floats.
    """
    kind, layout, names = recognise(header, origin)
    shapes = {name: header[theirs].shape for name, theirs in names.items()}
    tower = _read_sizes(kind, layout, shapes, config.inside('vision_config'), origin)
    expected = _expected_shapes(tower, layout)
    if problems := list(_find_problems(header, FAMILIES[kind].prefix, layout, names, expected)):
        listed = '\n  '.join(problems)
        raise WeightsError(
            f'{origin} does not fit {layout.name}, width {tower.width}, depth {tower.depth}:\n  {listed}'
        )
    return Described(kind, layout, {name: names[name] for name in expected}, tower)


def _read_sizes(kind: str, layout: Layout, shapes: Mapping[str, tuple], config: Settings, origin: str) -> Tower:
    """The tower, on the file's own grid."""
    patch, positions = (_shape_of(layout, shapes, path) for path in (PATCH_KERNEL, POSITIONS))
    grid = square_grid(positions[-2] - 1) if len(positions) > 1 and positions[-2] > 1 else None
    if len(patch) != 4 or patch[1] != 3 or patch[2] != patch[3] or grid is None:
        raise WeightsError(
            f'{origin}: a patch embedding of shape {patch} and positions of shape {positions} are not of RGB images in a '
            'square grid of square patches and CLS.'
        )
    width, depth, family = patch[0], _count_blocks(layout, shapes), FAMILIES[kind]
    if not depth:
        raise WeightsError(f'{origin} has the ends of a {kind} tower, but no layers.')
    if depth > MOST_BLOCKS:
        raise WeightsError(
            f'{origin} has an array of block {depth - 1}; towers of up to {MOST_BLOCKS} blocks are read.'
        )
    heads = config.get('num_attention_heads', width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 0)
    if heads and width % heads:
        raise WeightsError(
            f'{config.origin}: num_attention_heads is {heads}, which does not divide a width of {width}.'
        )
    if not heads:
        raise WeightsError(
            f'{origin}: how many heads share a width of {width} is not known; put its config.json beside it '
            '(num_attention_heads).'
        )
    hidden = _shape_of(layout, shapes, 'encoder/block_00/mlp/fc1/kernel')
    projection = _shape_of(layout, shapes, 'encoder/projection/kernel') if kind == 'clip' else ()
    return Tower(
        patch_size=patch[2],
        width=width,
        depth=depth,
        heads=heads,
        grid=grid,
        mlp_ratio=(hidden[0] + 0.5) / width if hidden else 4.0,  # what is hidden is rounded down
        pre_norm=kind == 'clip',
        layer_scale=kind == 'dinov2',
        projected=projection[0] if projection else 0,
        activation=config.get('hidden_act', family.activation),
        epsilon=config.get('layer_norm_eps', family.epsilon),
    )


def _find_problems(
    header: Mapping[str, jax.ShapeDtypeStruct],
    prefix: str,
    layout: Layout,
    names: Mapping[str, str],
    expected: Mapping[str, tuple[int, ...]],
) -> Iterator[str]:
    """A line on every array that is not as it should be."""
    prefix = prefix if any(theirs.startswith(prefix) for theirs in header) else ''
    yield from (f'{prefix}{name}: missing' for name in expected if name not in names)
    for name, theirs in names.items():
        leaf = header[theirs]
        if name not in expected:
            if not any(re.fullmatch(pattern, name) for pattern in layout.ignored):
                yield f'{theirs}: unknown'
        elif leaf.shape != expected[name]:
            yield f'{theirs}: shape {leaf.shape}, wanted {expected[name]}'
        elif not jnp.issubdtype(leaf.dtype, jnp.floating):
            yield f'{theirs}: stored as {leaf.dtype}, wanted floats'


def _shape_of(layout: Layout, shapes: Mapping[str, tuple], path: str) -> tuple[int, ...]:
    """Their shape of the array at one of our paths, () where it is not there."""
    entry, i = layout.find(path)
    return shapes.get(entry.names(i)[0], ())


def _count_blocks(layout: Layout, names: Iterable[str]) -> int:
    """One more than the highest block's number."""
    theirs = layout.find('encoder/block_00/norm1/scale')[0].theirs
    pattern = re.compile(re.escape(theirs[: theirs.index('{i}')]) + r'(\d+)\..*')
    return 1 + max((int(match[1]) for match in map(pattern.fullmatch, names) if match), default=-1)


def parameter_shapes(tower: Tower) -> dict[str, jax.ShapeDtypeStruct]:
    """{role path: shape} of all parameters."""
    image = jax.ShapeDtypeStruct((1, *(count * tower.patch_size for count in tower.grid), 3), jnp.float32)
    made = jax.eval_shape(tower.init, jax.random.key(0), image)['params']
    return {f'encoder/{path}': leaf for path, leaf in traverse_util.flatten_dict(made, sep='/').items()}


def _expected_shapes(tower: Tower, layout: Layout) -> dict[str, tuple[int, ...]]:
    """{their name: shape}, found by sending arrays without memory the way of an export."""
    empty = {path: np.broadcast_to(np.False_, leaf.shape) for path, leaf in parameter_shapes(tower).items()}
    return {name: array.shape for name, array in to_theirs(empty, layout).items()}
