"""Begin a run with weights from elsewhere: `python -m mim_jax.import_weights --config SPEC --weights FILE --workdir DIR`.

Writes the checkpoint of step 0; `mim_jax.train` with the same config and workdir goes on from there, `mim_jax.export` writes
it in another format. Says what became of every array, and compares features, or a classifier's logits, on a real image.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from mim_jax.command import explain_shortages, parse_arguments, read_config, run_program
from mim_jax.errors import WorkdirError
from mim_jax.interop.account import Account
from mim_jax.interop.begin import save_first, wanted_arrays
from mim_jax.interop.classifier import CLASSIFIERS, count_classes_in
from mim_jax.interop.compare import NOT_COMPARED, compare_imported, load_images
from mim_jax.interop.formats import Format, formats_of, recognise
from mim_jax.interop.hf import check_config_beside
from mim_jax.interop.runs import build_recipe
from mim_jax.interop.transfer import export_arrays, import_arrays
from mim_jax.parallel.mesh import make_mesh
from mim_jax.paths import open_path
from mim_jax.recipe import Recipe
from mim_jax.training.assemble import make_program
from mim_jax.training.workdir import CHECKPOINTS, Workdir
from mim_jax.weights.files import read_weights
from mim_jax.weights.layout import Arrays


def main(arguments: Sequence[str]) -> int:
    """Read, match, check, save. Returns the exit status; raises UserError for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog='python -m mim_jax.import_weights',
        description='Make the first checkpoint of a run from weights of another library.',
        epilog='Any key of the config can be set: --config.encoder.positions=learned',
    )
    parser.add_argument('--config', required=True, help='configs/mae.py, or configs/mae.py:vit_l16')
    parser.add_argument(
        '--weights', required=True, type=open_path, help='.safetensors; or .pth where PyTorch is installed'
    )
    parser.add_argument(
        '--workdir',
        required=True,
        type=open_path,
        help='folder of the run to be, without checkpoints',
    )
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
        weights = read_weights(options.weights)
        recipe = build_recipe(config, count_classes_in(weights.arrays))
        program = make_program(recipe, make_mesh(devices=jax.devices()[:1]))
        like = wanted_arrays(program, options.part)
        form, state = recognise(weights.arrays, formats_of(recipe, like), options.layout)
        print(f'{weights.path}: {len(weights.arrays)} arrays, layout {form.name} ({form.layout.name}).')
        for note in [*weights.notes, *(check_config_beside(weights.path, recipe) if form.name == 'hf' else ())]:
            print(f'            {note}')
        arrays, account = import_arrays(state, form, recipe, like, options.ignore, weights.half)
        for line in account.lines():
            print(line)
        if any(path.startswith(CLASSIFIERS) for path in account.missing):
            method = 'finetune' if 'finetune' in recipe.papers else recipe.papers[0]
            print(
                f'            Made for {recipe.config.classes} classes; set {method}.classes where the dataset has others.'
            )
        print(compare(recipe, form, state, arrays, account, options.image))
        workdir = Workdir(options.workdir, config)
        try:
            save_first(program, arrays, workdir, {'weights': str(weights.path)})
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


def compare(
    recipe: Recipe,
    form: Format,
    state: Mapping[str, np.ndarray],
    arrays: Arrays,
    account: Account,
    image: Path | None,
) -> str:
    """A line: outputs beside timm's or transformers' own with the file's arrays, else what a round trip changes."""
    if not account.resized:
        images, name = load_images(recipe, image)
        line = compare_imported(recipe, form, state, arrays, images)
        if line is not None and not line.startswith(NOT_COMPARED):
            return f'On {name}, {line}.'
    back, _ = import_arrays(export_arrays(arrays, form, recipe)[0], form, recipe, arrays)
    worst = max(float(np.abs(back[path] - array).max()) for path, array in arrays.items())
    return f'Back to {form.layout.name} and here again: arrays differ by {worst:.1e}.'


if __name__ == '__main__':
    run_program(main)
