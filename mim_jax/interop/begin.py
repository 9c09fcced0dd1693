"""The first checkpoint of a run that begins with weights from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mim_jax.interop.blocks import stack_blocks, unstack_blocks, unstack_shapes
from mim_jax.networks import prune_tree
from mim_jax.parallel.hosts import place
from mim_jax.parallel.rules import flatten_with_paths
from mim_jax.paths import replace_file
from mim_jax.training.assemble import Program
from mim_jax.training.checkpoint import Checkpoints
from mim_jax.training.state import to_tree
from mim_jax.training.workdir import IMPORTED, Workdir
from mim_jax.weights.layout import Arrays


def wanted_arrays(program: Program, part: str) -> dict[str, jax.ShapeDtypeStruct]:
    """{our unstacked path: shape} of the parameters and running statistics that may be imported."""
    abstract = program.abstract
    leaves = unstack_shapes(dict(flatten_with_paths(abstract.params)) | dict(flatten_with_paths(abstract.batch_stats)))
    return {path: leaf for path, leaf in leaves.items() if part == 'all' or path.startswith('encoder/')}


def save_first(program: Program, arrays: Arrays, workdir: Workdir, origin: Mapping[str, Any]) -> None:
    """The checkpoint of step 0 with these arrays in it. Teachers become copies of the student.

    origin: where they are from, {'weights': path} and what else tells them from others.

    imported.json, which is there before the checkpoint, keeps the run from ever beginning with random weights instead.
    """
    replace_file(workdir.path / IMPORTED, json.dumps(dict(origin)) + '\n')
    state = program.init()
    params, batch_stats = (replace_leaves(tree, arrays) for tree in (state.params, state.batch_stats))
    teachers = {
        name: {
            'params': {role: prune_tree(params[role], tree) for role, tree in held['params'].items()},
            'batch_stats': {role: prune_tree(batch_stats[role], tree) for role, tree in held['batch_stats'].items()},
        }
        for name, held in state.teachers.items()
    }
    state = state.replace(params=params, batch_stats=batch_stats, teachers=teachers)
    # Without a dataset: the first training session binds the run to its own.
    extra = {'wall_seconds': 0.0, 'owed': False, 'dataset': None, 'bad_images': {}, 'imported': origin['weights']}
    checkpoints = Checkpoints(str(workdir.checkpoints), program.recipe.config.checkpoint.keep)
    try:
        checkpoints.save(0, to_tree(state), extra)
    finally:
        checkpoints.close()


def replace_leaves(tree: Any, arrays: Arrays) -> Any:
    """A tree with the arrays at their paths; other leaves, and every leaf's place, stay."""
    leaves = dict(flatten_with_paths(tree))
    known = unstack_blocks(leaves) | arrays
    stacked = stack_blocks(known, leaves)
    placed = [place(np.asarray(stacked[path], leaf.dtype), leaf.sharding) for path, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(tree), placed)
