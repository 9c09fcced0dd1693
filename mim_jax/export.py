"""Write a run's weights for others: `python -m mim_jax.export --checkpoint WORKDIR --format timm --out encoder.safetensors`.

Formats: timm (one file for timm.create_model), hf (a folder for transformers' from_pretrained), safetensors (our own names).
Reads the file back, compares features on a real image, and prints the Python line that opens it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mim_jax.command import find_commit, parse_arguments, run_program
from mim_jax.config import check_config, from_json, to_json
from mim_jax.errors import Refused, UserError, WorkdirError
from mim_jax.interop.account import collapse, count_roles
from mim_jax.interop.blocks import unstack_blocks
from mim_jax.interop.compare import compare_exported, describe_difference, encoder_features, load_images
from mim_jax.interop.files import read_weights, replacing, write_safetensors
from mim_jax.interop.formats import Format, export_format
from mim_jax.interop.hf import hf_config, hf_line, hf_preprocessor
from mim_jax.interop.layout import Arrays
from mim_jax.interop.timm import timm_line
from mim_jax.interop.transfer import MASK_TOKEN, export_arrays, import_arrays
from mim_jax.methods import BASES, PAPERS, build
from mim_jax.recipe import Recipe
from mim_jax.training.checkpoint import read_arrays
from mim_jax.training.workdir import CHECKPOINTS, CONFIG

DATASET_SIZE = 1_281_167  # any will do: it decides the length of a run, not its arrays


def main(arguments: Sequence[str]) -> int:
    """Read, choose, write, check. Returns the exit status; raises UserError for what the user can mend."""
    parser = argparse.ArgumentParser(prog='python -m mim_jax.export', description='Write weights for other libraries.')
    parser.add_argument('--checkpoint', required=True, type=Path, help="a run's folder: the --workdir of mim_jax.train")
    parser.add_argument('--step', type=int, help='of the checkpoint; the newest without it')
    parser.add_argument('--format', required=True, choices=('timm', 'hf', 'safetensors'))
    parser.add_argument('--out', required=True, type=Path, help='file to write; for hf, a folder')
    parser.add_argument('--part', default='encoder', choices=('encoder', 'full', 'teacher'))
    parser.add_argument('--teacher', help='which momentum teacher, where there are several')
    parser.add_argument('--image', type=Path, help='image to compare features on; an embedded one without it')
    parser.add_argument('--force', action='store_true', help='replace what is at --out')
    options, unknown = parse_arguments(arguments, parser)
    if unknown:
        raise UserError(
            f'Unknown options: {" ".join(unknown)}. A checkpoint has its own config, so none can be changed.'
        )
    check_target(options.out, options.format == 'hf', options.force)

    recipe = read_recipe(options.checkpoint)
    parts = ('params', *{'full': ('batch_stats',), 'teacher': ('teachers',)}.get(options.part, ()))
    saved, step, _ = read_arrays(str(options.checkpoint / CHECKPOINTS), options.step, parts)
    name = find_teacher(recipe, options.teacher) if options.part == 'teacher' else None
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
    expected = encoder_features(recipe, arrays, images)
    print(f'{check(recipe, form, written, file, images, expected)}, on {shown}.')
    if options.format != 'safetensors':
        print(f'{compare_exported(recipe, options.format, options.out, images, expected)}.')
    if options.format != 'safetensors':
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
    if out.exists() and out.is_dir() != is_folder:
        raise WorkdirError(f'--out {out} is a {"file" if is_folder else "folder"}; this format writes the other kind.')
    if out.exists() and not force:
        raise WorkdirError(f'--out {out} exists; choose another name, or add --force to replace it.')


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a run's folder. Raises WorkdirError when it is none."""
    file = folder / CONFIG
    if not file.is_file():
        raise WorkdirError(
            f'{folder} has no {CONFIG}: --checkpoint is the folder of a run, the --workdir of mim_jax.train.'
        )
    try:
        config = from_json(file.read_text()).unlock()
    except (ValueError, AttributeError) as error:
        raise WorkdirError(f'{file} is damaged ({error}); restore it.') from error
    check_config(config, {**BASES, **PAPERS})
    return build(config, DATASET_SIZE)


def find_teacher(recipe: Recipe, wanted: str | None) -> str:
    """The name of the momentum teacher to write. Raises Refused."""
    names = [name for name, teacher in recipe.teachers.items() if hasattr(teacher, 'rate_at')]
    if not names:
        raise Refused(f'{recipe.name} trains without a momentum teacher; use --part encoder.')
    if wanted is None and len(names) > 1:
        raise Refused(f'{recipe.name} has the teachers {", ".join(names)}; choose one with --teacher.')
    if wanted not in (None, *names):
        raise Refused(f'{recipe.name} has no teacher {wanted!r}, but {", ".join(names)}.')
    return wanted or names[0]


def choose_arrays(saved: Mapping[str, np.ndarray], part: str, teacher: str | None) -> tuple[Arrays, list[str]]:
    """What of a checkpoint is written, under unstacked role paths, and lines to say about it."""

    def under(prefix: str) -> Arrays:
        found = {path.removeprefix(prefix): array for path, array in saved.items() if path.startswith(prefix)}
        return unstack_blocks(found)

    everything = under('params/')
    if part == 'full':  # running statistics have names of their own, so they share the roles' paths
        return everything | under('batch_stats/'), []
    encoder = {path: a for path, a in everything.items() if path.startswith('encoder/') and path != MASK_TOKEN}
    if teacher is None:
        return encoder, []
    held = {path: a for path, a in under(f'teachers/{teacher}/params/').items() if path in encoder}
    borrowed = sorted(encoder.keys() - held.keys())
    why = f'The teacher holds only what is read through it; from the student: {", ".join(collapse(borrowed))}.'
    return {**encoder, **held}, [why] if borrowed else []


def describe_left_out(saved: Mapping[str, Any], arrays: Arrays, left_out: list[str], form: Format) -> list[str]:
    """Lines on what of the checkpoint's parameters was not asked for, or has no place."""
    everything = unstack_blocks({p.removeprefix('params/'): a for p, a in saved.items() if p.startswith('params/')})
    others = sorted(everything.keys() - arrays.keys())
    return [
        *([f'Left out, not part of it: {count_roles(others)} arrays.'] if others else []),
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
    """A line on the file, read back into our names: its arrays, and the encoder's features, beside the checkpoint's."""
    back, _ = import_arrays(read_weights(file).arrays, form, recipe, written)
    worst = max(float(np.abs(back[path] - array).max()) for path, array in written.items())
    found = encoder_features(recipe, back, images)
    return f'Read back: arrays differ by {worst:.1e}, {describe_difference(found, expected)}'


if __name__ == '__main__':
    run_program(main)
