"""Does a run fit, and how? `python -m mim_jax.compile --config configs/mae.py:vit_l16 --topology v5e:16x16 [--search]`.

Compiles the real train step for a TPU that need not be there (libtpu needed: requirements-compile.txt), or without --topology
for this machine's devices, and prints memory, FLOPs, collectives and bounds of the step time. Nothing is run; no data set and
no weights are read. Exit status: 0 it fits, or --search found what does; 2 it does not, or there is something to mend.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from mim_jax.command import parse_arguments, read_config, run_program
from mim_jax.data.subsets import open_training
from mim_jax.errors import DataError, UserError
from mim_jax.planning.measure import Fit, measure_fit
from mim_jax.planning.report import describe, describe_changes
from mim_jax.planning.search import Changes, list_remedies
from mim_jax.planning.topology import describe_devices, find_version

TRIES = 6
PUBLISHED_SIZES = {  # of TFDS datasets: images of the split train, classes
    'imagenet2012': (1_281_167, 1000),
    'cifar10': (50_000, 10),
    'cifar100': (50_000, 100),
}


def main(arguments: Sequence[str]) -> int:
    """Compile, print, search. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m mim_jax.compile',
        description='Compile the train step for devices that need not be there: does it fit, and how?',
        epilog='Any key of the config can be set: --config.mesh.fsdp=16 --config.encoder.remat=full',
    )
    parser.add_argument('--config', required=True, help='as for mim_jax.train')
    parser.add_argument('--topology', default='', help='such as v5e:16x16; default: the devices of this machine')
    parser.add_argument('--slices', type=int, default=1, help='how many of that topology, joined by the network')
    searches = f'if it does not fit, compile up to {TRIES} changes (all), or up to the first that fits (first)'
    parser.add_argument('--search', nargs='?', choices=('all', 'first'), const='all', default='', help=searches)
    parser.add_argument('--images', type=int, default=0, help='of the dataset, where it is not on this machine')
    parser.add_argument('--classes', type=int, default=0, help='likewise')
    parser.add_argument('--out', type=Path, help='write what was found as JSON')
    parser.add_argument('--hlo', type=Path, help="write the compiled program's text")
    options, overrides = parse_arguments(arguments, parser)

    for path in filter(None, (options.out, options.hlo)):
        if not path.absolute().parent.is_dir():
            raise UserError(f'{path} cannot be written: there is no folder {path.parent}; make it, or choose another.')
    config, _ = read_config(options.config, overrides)
    devices = describe_devices(options.topology, options.slices)
    images, classes, description = find_size(config, options.images, options.classes)
    print(f'Compiling the train step for {options.topology or "this machine"}; {description}.', flush=True)

    def measure(changes: Changes) -> Fit:
        more = [f'--config.{key}={value}' for key, value in changes.items()]
        changed, _ = read_config(options.config, [*overrides, *more])
        fit = measure_fit(changed, images, classes, devices)
        for line in describe(fit):
            print(line, flush=True)
        return fit

    start = time.monotonic()
    tried = [({}, measure({}))]
    if not tried[0][1].fits:
        tried += advise(config, tried[0][1], measure, options.search)
    compiler = f', libtpu {find_version()}' if options.topology else ''
    print(f'{len(tried)} compiled in {time.monotonic() - start:.0f} s by jax {jax.__version__}{compiler}.')
    changes, best = min(tried, key=lambda pair: pair[1].step_seconds)
    if options.out:
        write_findings(options.out, options, overrides, tried, changes if best.fits else None)
    if options.hlo and best.hlo:
        options.hlo.write_text(best.hlo)
    return 0 if best.fits else 2


def advise(config: Any, fit: Fit, measure: Callable[[Changes], Fit], search: str) -> list[tuple[Changes, Fit]]:
    """Say what would, or might, make a run fit; with `search` (all, first) what was tried, up to the first that fits or all."""
    remedies = list_remedies(config, fit)
    if not search:
        print('What might make it fit, batch and learning rate unchanged (--search compiles them):')
        print('\n'.join(f'  {describe_changes(changes)}' for changes in remedies) or '  nothing; take more devices.')
        if config.encoder.scan:
            print('encoder.scan=false may need less memory too; it compiles longer.')
        return []
    tried = []
    for changes in remedies[:TRIES]:
        try:
            tried.append((changes, measure(changes)))
        except UserError as error:  # such as statistics over more images than a micro-batch has: no remedy here
            print(f'{describe_changes(changes)}: not possible. {error}', flush=True)
            continue
        fits = tried[-1][1].fits
        print(f'{describe_changes(changes)}: {"fits" if fits else "does not fit"}.', flush=True)
        if fits and search == 'first':
            break
    best, found = min(tried, key=lambda pair: pair[1].step_seconds, default=({}, fit))
    if found.fits:
        print(f'The fastest that fits, by the bounds: {describe_changes(best)}')
    else:
        print('Nothing that was tried fits: take more devices, or a smaller batch_size.')
    return tried


def find_size(config: Any, images: int, classes: int) -> tuple[int, int, str]:
    """(images, classes, a description) of the training images: as given, as they are here, or as published.

    Raises DataError where none of the three is known.
    """
    if images:
        return images, classes, f'a dataset of {images:,} images and {classes} classes, as given'
    try:
        source = open_training(config.data)
    except DataError as error:
        data = config.data
        whole = data.source == 'tfds' and data.split == 'train' and data.share == 1 and not data.list
        if not whole or data.name not in PUBLISHED_SIZES:
            raise DataError(f'{error} Or give its size: --images N --classes K.') from error
        images, classes = PUBLISHED_SIZES[data.name]
        published = f'its published {images:,} images in {classes} classes'
        return images, classes, f'{data.name} is not on this machine: {published}'
    return len(source), source.num_classes, source.description


def write_findings(
    path: Path,
    options: argparse.Namespace,
    overrides: Sequence[str],
    tried: Sequence[tuple[Changes, Fit]],
    best: Changes | None,
) -> None:
    """JSON: the command, what was tried, and the changes of the fastest that fits (None: nothing does)."""

    def to_json(fit: Fit) -> dict[str, Any]:
        found = dataclasses.asdict(dataclasses.replace(fit, hlo=''))
        del found['hlo']
        return found

    findings = {
        'config': options.config,
        'overrides': list(overrides),
        'topology': options.topology,
        'slices': options.slices,
        'jax': jax.__version__,
        'libtpu': find_version() if options.topology else None,
        'tried': [{'changes': changes, **to_json(fit)} for changes, fit in tried],
        'best': best,
    }
    path.write_text(json.dumps(findings, indent=1) + '\n')


if __name__ == '__main__':
    run_program(main)
