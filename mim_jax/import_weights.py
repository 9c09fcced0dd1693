"""Begin a run with weights from elsewhere: `python -m mim_jax.import_weights --config SPEC --weights FILE --workdir DIR`.

Writes the checkpoint of step 0; `mim_jax.train` with the same config and workdir goes on from there, `mim_jax.export` writes
it in another format. Says what became of every array, and compares features on a real image.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mim_jax.command import explain_shortages, parse_arguments, read_config, run_program
from mim_jax.errors import WorkdirError
from mim_jax.interop.account import Account
from mim_jax.interop.blocks import stack_blocks, unstack_blocks, unstack_shapes
from mim_jax.interop.compare import NOT_COMPARED, compare_imported, encoder_features, load_images
from mim_jax.interop.formats import Format, formats_of, recognise
from mim_jax.interop.hf import check_config_beside
from mim_jax.interop.runs import build_recipe
from mim_jax.interop.transfer import export_arrays, import_arrays
from mim_jax.networks import prune_tree
from mim_jax.parallel.mesh import make_mesh
from mim_jax.parallel.rules import flatten_with_paths
from mim_jax.recipe import Recipe
from mim_jax.training.assemble import Program, make_program
from mim_jax.training.checkpoint import Checkpoints
from mim_jax.training.state import to_tree
from mim_jax.training.workdir import CHECKPOINTS, Workdir
from mim_jax.weights.files import Weights, read_weights
from mim_jax.weights.layout import Arrays


def main(arguments: Sequence[str]) -> int:
    """Read, match, check, save. Returns the exit status; raises UserError for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog='python -m mim_jax.import_weights',
        description='Make the first checkpoint of a run from weights of another library.',
        epilog='Any key of the config can be set: --config.encoder.positions=learned',
    )
    parser.add_argument('--config', required=True, help='configs/mae.py, or configs/mae.py:vit_l16')
    parser.add_argument('--weights', required=True, type=Path, help='.safetensors; or .pth where PyTorch is installed')
    parser.add_argument('--workdir', required=True, type=Path, help='folder of the run to be; without checkpoints')
    parser.add_argument('--layout', default='auto', help='whose names the file has; recognised without it')
    parser.add_argument('--part', default='all', choices=('all', 'encoder'), help='what to take of what is in the file')
    parser.add_argument(
        '--ignore', action='append', default=[], help='pattern of names to leave aside; may be repeated'
    )
    parser.add_argument('--image', type=Path, help='image to compare features on; an embedded one without it')
    options, overrides = parse_arguments(arguments, parser)
    config, _ = read_config(options.config, overrides)
    if (options.workdir / CHECKPOINTS).is_dir() and any((options.workdir / CHECKPOINTS).iterdir()):
        raise WorkdirError(f'{options.workdir} holds checkpoints already; choose another --workdir.')

    with explain_shortages():
        recipe = build_recipe(config)
        program = make_program(recipe, make_mesh(devices=jax.devices()[:1]))
        weights = read_weights(options.weights)
        like = wanted_arrays(program, options.part)
        form, state = recognise(weights.arrays, formats_of(recipe, like), options.layout)
        print(f'{weights.path}: {len(weights.arrays)} arrays, layout {form.name} ({form.layout.name}).')
        for note in [*weights.notes, *(check_config_beside(weights.path, recipe) if form.name == 'hf' else ())]:
            print(f'            {note}')
        arrays, account = import_arrays(state, form, recipe, like, options.ignore, weights.half)
        for line in account.lines():
            print(line)
        print(compare(recipe, form, state, arrays, account, options.image))
        workdir = Workdir(options.workdir, config)
        try:
            save(program, arrays, weights, workdir)
        finally:
            workdir.close()
    print(f'Saved as step 0 in {options.workdir}. To go on:')
    command = [
        'python',
        '-m',
        'mim_jax.train',
        '--config',
        options.config,
        '--workdir',
        str(options.workdir),
        *overrides,
    ]
    print(f'  {shlex.join(command)}')
    return 0


def wanted_arrays(program: Program, part: str) -> dict[str, jax.ShapeDtypeStruct]:
    """{our unstacked path: shape} of the parameters and running statistics that may be imported."""
    abstract = program.abstract
    leaves = unstack_shapes(dict(flatten_with_paths(abstract.params)) | dict(flatten_with_paths(abstract.batch_stats)))
    return {path: leaf for path, leaf in leaves.items() if part == 'all' or path.startswith('encoder/')}


def compare(
    recipe: Recipe,
    form: Format,
    state: Mapping[str, np.ndarray],
    arrays: Arrays,
    account: Account,
    image: Path | None,
) -> str:
    """A line: features beside timm's or transformers' own with the file's arrays, else what a round trip changes."""
    if not account.resized:
        images, name = load_images(recipe, image)
        line = compare_imported(recipe, form, state, arrays, images, encoder_features(recipe, arrays, images))
        if line is not None and not line.startswith(NOT_COMPARED):
            return f'On {name}, {line}.'
    back, _ = import_arrays(export_arrays(arrays, form, recipe)[0], form, recipe, arrays)
    worst = max(float(np.abs(back[path] - array).max()) for path, array in arrays.items())
    return f'Back to {form.layout.name} and here again: arrays differ by {worst:.1e}.'


def save(program: Program, arrays: Arrays, weights: Weights, workdir: Workdir) -> None:
    """The state of step 0 with these arrays in it, saved. Teachers become copies of the student."""
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
    extra = {'wall_seconds': 0.0, 'owed': False, 'dataset': None, 'bad_images': {}, 'imported': str(weights.path)}
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
    placed = [jax.device_put(np.asarray(stacked[path], leaf.dtype), leaf.sharding) for path, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(tree), placed)


if __name__ == '__main__':
    run_program(main)
