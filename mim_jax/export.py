"""Write a run's weights for others: `python -m mim_jax.export --checkpoint WORKDIR --format timm --out encoder.safetensors`.

Formats: timm (one file for timm.create_model), hf (a folder for transformers' from_pretrained), safetensors (our own names).
Reads the file back, compares features, or a classifier's logits, on a real image, and prints the Python line that opens it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mim_jax.command import find_commit, parse_arguments, run_program
from mim_jax.config import to_json
from mim_jax.errors import UserError, WorkdirError
from mim_jax.interop.account import collapse, describe_parts
from mim_jax.interop.blocks import unstack_blocks
from mim_jax.interop.compare import compare_exported, describe_difference, load_images, network_outputs
from mim_jax.interop.formats import Format, export_format
from mim_jax.interop.hf import hf_config, hf_line, hf_preprocessor
from mim_jax.interop.runs import choose_arrays, find_teacher, read_run_config, saved_recipe
from mim_jax.interop.timm import timm_line
from mim_jax.interop.transfer import export_arrays, import_arrays
from mim_jax.paths import is_bucket, open_path, replacing
from mim_jax.recipe import Recipe
from mim_jax.training.checkpoint import read_arrays
from mim_jax.training.workdir import CHECKPOINTS
from mim_jax.weights.files import read_weights, write_safetensors
from mim_jax.weights.layout import Arrays


def main(arguments: Sequence[str]) -> int:
    """Read, choose, write, check. Returns the exit status; raises UserError for what the user can mend."""
    parser = argparse.ArgumentParser(prog='python -m mim_jax.export', description='Write weights for other libraries.')
    parser.add_argument(
        '--checkpoint', required=True, type=open_path, help="a run's folder: the --workdir of mim_jax.train"
    )
    parser.add_argument('--step', type=int, help='of the checkpoint; the newest without it')
    parser.add_argument('--format', required=True, choices=('timm', 'hf', 'safetensors'))
    parser.add_argument('--out', required=True, type=open_path, help='file to write; for hf, a folder')
    parser.add_argument('--part', default='encoder', choices=('encoder', 'full', 'teacher'))
    parser.add_argument('--teacher', help='which momentum teacher, where there are several; also with --part full')
    parser.add_argument('--image', type=Path, help='image to compare features on; an embedded one without it')
    parser.add_argument('--force', action='store_true', help='replace what is at --out')
    options, unknown = parse_arguments(arguments, parser)
    if unknown:
        raise UserError(
            f'Unknown options: {" ".join(unknown)}. A checkpoint has its own config, so none can be changed.'
        )
    check_target(options.out, options.format == 'hf', options.force)

    config, with_teacher = read_run_config(options.checkpoint), options.part == 'teacher' or options.teacher
    if options.teacher and options.part == 'encoder':
        raise UserError(f'--teacher {options.teacher} has no effect on --part encoder; use --part teacher, or full.')
    parts = ('params', *(['batch_stats'] if options.part == 'full' else []), *(['teachers'] if with_teacher else []))
    saved, step, _ = read_arrays(str(options.checkpoint / CHECKPOINTS), options.step, parts)
    recipe = saved_recipe(config, saved)
    name = find_teacher(recipe, options.teacher) if with_teacher else None
    arrays, notes = choose_arrays(saved, options.part, name)
    form = export_format(recipe, options.format, options.part, arrays)
    state, left_out = export_arrays(arrays, form, recipe)
    images, shown = load_images(recipe, options.image)

    count = sum(array.size for array in arrays.values())
    print(f'{recipe.name} at step {step}: {options.part}, {len(arrays)} arrays of {count:,} numbers.')
    file = write(options, recipe, state, step)
    print(f'Wrote {options.out}: {len(state)} arrays ({form.layout.name}), {file.stat().st_size:,} bytes.')
    for line in [*notes, *describe_left_out(saved, arrays, left_out, form)]:
        print(line)
    written = {path: array for path, array in arrays.items() if path not in left_out}
    expected = network_outputs(recipe, arrays, images)
    print(f'{check(recipe, form, written, file, images, expected)}, on {shown}.')
    if options.format != 'safetensors':
        print(f'{compare_exported(recipe, options.format, options.out, images, expected)}.')
        full = options.part == 'full'
        line = timm_line(recipe, options.out) if options.format == 'timm' else hf_line(recipe, full, options.out)
        print(f'Open it with:\n  model = {line}')
        print(f'  pixels in 0..1, less the mean {recipe.mean}, divided by {recipe.std}, {config_size(recipe)}')
    return 0


def config_size(recipe: Recipe) -> str:
    """'224 x 224'."""
    return f'{recipe.config.image_size} x {recipe.config.image_size}'


def check_target(out: Path, is_folder: bool, force: bool) -> None:
    """Raise WorkdirError when --out is taken, or is a folder where a file is wanted, or the other way round."""
    if is_bucket(out):
        raise WorkdirError(f'--out {out}: other libraries read files, so export to a folder and copy it there.')
    if not is_folder and out.suffix != '.safetensors':
        raise WorkdirError(f'--out {out}: give it a name that ends in .safetensors, by which timm and others know it.')
    if out.exists() and out.is_dir() != is_folder:
        raise WorkdirError(f'--out {out} is a {"file" if is_folder else "folder"}; this format writes the other kind.')
    if out.exists() and not force:
        raise WorkdirError(f'--out {out} exists; choose another name, or add --force to replace it.')


def describe_left_out(saved: Mapping[str, Any], arrays: Arrays, left_out: list[str], form: Format) -> list[str]:
    """Lines on what of the checkpoint's parameters was not asked for, or has no place."""
    everything = unstack_blocks({p.removeprefix('params/'): a for p, a in saved.items() if p.startswith('params/')})
    others = sorted(everything.keys() - arrays.keys())
    return [
        *([f'Left out, not part of it: {describe_parts(others)}.'] if others else []),
        *([f'Left out, no place in {form.layout.name}: {", ".join(collapse(left_out))}.'] if left_out else []),
    ]


def write(options: argparse.Namespace, recipe: Recipe, state: Arrays, step: int) -> Path:
    """The file of arrays, written; for hf the two others of its folder first."""
    about = {'recipe': recipe.name, 'step': str(step), 'part': options.part, 'config': to_json(recipe.config)}
    about['commit'] = find_commit() or 'unknown'
    # Older versions of transformers refuse a file that does not say it comes from PyTorch.
    about |= {'format': 'mim_jax' if options.format == 'safetensors' else 'pt'}
    folder = options.out if options.format == 'hf' else options.out.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkdirError(f'--out {options.out} cannot be made ({error.strerror}); choose another place.') from error
    if options.format != 'hf':
        write_safetensors(options.out, state, about)
        return options.out
    for name, content in {
        'config.json': hf_config(recipe, options.part == 'full'),
        'preprocessor_config.json': hf_preprocessor(recipe),
    }.items():
        with replacing(options.out / name) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + '\n')
    write_safetensors(options.out / 'model.safetensors', state, about)
    return options.out / 'model.safetensors'


def check(recipe: Recipe, form: Format, written: Arrays, file: Path, images: np.ndarray, expected: np.ndarray) -> str:
    """A line on the file, read back into our names: its arrays, and its features or logits, beside the checkpoint's."""
    back, _ = import_arrays(read_weights(file).arrays, form, recipe, written)
    worst = max(float(np.abs(back[path] - array).max()) for path, array in written.items())
    found = network_outputs(recipe, back, images)
    return f'Read back: arrays differ by {worst:.1e}, {describe_difference(found, expected)}'


if __name__ == '__main__':
    run_program(main)
