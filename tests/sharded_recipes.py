"""Where every recipe's state lies on two TPU slices, at ViT-B's widths: a listing, from shapes alone, without a device."""

import collections
import re
from pathlib import Path

import jax
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from mim_jax.config import check_config, load_config
from mim_jax.methods import METHODS, build
from mim_jax.parallel.mesh import AXES
from mim_jax.parallel.rules import flatten_with_paths
from mim_jax.training.assemble import plan_program
from mim_jax.weights.towers import sizes_as_published

ROOT = Path(__file__).parents[1]
LISTING = ROOT / 'tests' / 'golden' / 'shardings.txt'
NAMES = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
MESHES = {'v4-32': {'data': 2, 'fsdp': 4, 'model': 2}, 'v5e-256': {'data': 16, 'fsdp': 16}}
ON_MCMAE = ('mcmae', 'mr_mae')


def list_shardings(name: str) -> str:
    """'recipe mesh', then a line per array of the state and of frozen teachers: path, shape, spec.

    ViT-B's widths, four blocks and a decoder of one: blocks that agree are one line, and so are moments and teachers that
    lie as their parameters do.
    """
    variant = 'cvit_b16' if name in ON_MCMAE else 'vit_b16'
    config, _ = load_config(f'{ROOT / "configs" / name}.py:{variant}', ['--config.encoder.depth=4'], METHODS)
    with config.unlocked():
        for section in config.values():
            if isinstance(section, ConfigDict) and 'decoder_depth' in section:
                section.decoder_depth = 1
    check_config(config, METHODS)
    with sizes_as_published():
        recipe = build(config, 1_281_167, 1000)
    parts = []
    for mesh, sizes in MESHES.items():
        program = plan_program(recipe, AbstractMesh(tuple(sizes.get(axis, 1) for axis in AXES), AXES))
        state = program.abstract
        parameters = {path: describe_leaf(leaf) for path, leaf in flatten_with_paths(state.params)}
        lines = {f'  {gather_blocks(f"params/{path}")} {place}': None for path, place in parameters.items()}
        followers = collections.Counter()
        others = {'opt_state': state.opt_state, 'teachers': state.teachers, 'batch_stats': state.batch_stats}
        for part, tree in (others | {'frozen': program.frozen}).items():
            for path, leaf in flatten_with_paths(tree):
                if leaf.shape and place_of_source(path, parameters) == describe_leaf(leaf):
                    followers[part] += 1
                elif leaf.shape:
                    lines[f'  {gather_blocks(f"{part}/{path}")} {describe_leaf(leaf)}'] = None
        lines |= {f'  {part}: {count} arrays as their parameters': None for part, count in followers.items()}
        parts.append('\n'.join([f'{name} {mesh}', *lines]))
    return '\n'.join(parts)


def gather_blocks(path: str) -> str:
    """'encoder/block_*/...' of every block."""
    return re.sub('block_[0-9]+', 'block_*', path)


def place_of_source(path: str, parameters: dict[str, str]) -> str | None:
    """The place of the parameter that a moment or a teacher's array is of."""
    steps = path.split('/')
    return next((parameters[end] for i in range(len(steps)) if (end := '/'.join(steps[i:])) in parameters), None)


def describe_leaf(leaf: jax.ShapeDtypeStruct) -> str:
    """'768,3072 fsdp,-': shape and spec."""
    spec = ','.join('+'.join(axis) if isinstance(axis, tuple) else axis or '-' for axis in leaf.sharding.spec)
    return f'{",".join(map(str, leaf.shape))} {spec or "whole"}'


def read_listing() -> dict[str, str]:
    """{recipe: its part of the golden}."""
    parts = LISTING.read_text().strip().split('\n\n')
    return {part.split()[0]: part for part in parts}
