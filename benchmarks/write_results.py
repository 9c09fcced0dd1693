"""benchmarks/RESULTS.md from benchmarks/results/*.json, every number as measured. python benchmarks/write_results.py"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import scaling  # beside this file

HERE = Path(__file__).parent
HEADER = '# Results\n\nMade by `python benchmarks/write_results.py` from what each script leaves in `results/`.\n'

RATIOS = {
    'ratio': 'the same files',
    'ratio_prepared': 'ours prepared, theirs as they are',
    'ratio_both_prepared': 'both prepared',
}


def write_step(found: Mapping[str, Any]) -> Iterable[str]:
    """step.py: one table for each size."""
    yield f'## The train step: MAE, ours beside PyTorch\n\n`{found["command"]}`, {found["date"]}; {found["machine"]}'
    yield f'Huge pages for all: {found["huge_pages"]}. Our speed-up: theirs over ours in the same round, median and range.\n'
    for size, case in found['cases'].items():
        rows = case['rows']
        versions = {name: version for row in rows.values() for name, version in row['versions'].items()}
        told = ', '.join(f'{name} {version}' for name, version in sorted(versions.items()))
        yield f'{size}, {case["batch"]} images a step; {told}\n'
        yield '| | s a step, median (range) | of its own matrix-product rate | our speed-up |\n|---|---|---|---|'
        for name, row in rows.items():
            share = row['gflops'] / row['matmul_gflops']
            ratio = '{:.3f} ({:.3f} to {:.3f})'.format(*row['ratio']) if 'ratio' in row else ''
            yield f'| {name} | {row["seconds"]:.3f} ({row["least"]:.3f} to {row["most"]:.3f}) | {share:.2f} | {ratio} |'
        yield ''


def write_input(found: Mapping[str, Any]) -> Iterable[str]:
    """input.py: rates and ratios of each folder of photos."""
    yield '## The input\n'
    for name, case in found.items():
        yield f'{name} for the prepared; `{case["command"]}`, {case["date"]}; cores: {case["cores"]}\n'
        yield '| | images a second and core, median (range) |\n|---|---|'
        for contestant, rates in case['rates'].items():
            each = [rate / case['cores'] for rate in rates]
            yield f'| {contestant} | {median(each):.0f} ({min(each):.0f} to {max(each):.0f}) |'
        yield '\n| ours over theirs | median (range) |\n|---|---|'
        for key, told in RATIOS.items():
            yield '| {} | {:.2f} ({:.2f} to {:.2f}) |'.format(told, *case[key])
        yield ''


def write_compile_time(found: Mapping[str, Any]) -> Iterable[str]:
    """compile_time.py: a row for each size and form."""
    yield f'## Compiling the step\n\n`{found["command"]}`, {found["date"]}; {found["cores"]} cores\n'
    yield '| size | form | devices | trace s | compile s (range) | temporaries GiB |\n|---|---|---|---|---|---|'
    for cell, row in found['cells'].items():
        size, form = cell.split('/')
        times = f'{row["compile"]:.1f} ({row["least"]:.1f} to {row["most"]:.1f})'
        yield f'| {size} | {form} | {row["devices"]} | {row["trace"]:.1f} | {times} | {row["temporaries"] / 2**30:.2f} |'
    yield ''


def write_scaling(found: Mapping[str, Any]) -> Iterable[str]:
    """scaling.py: its table, for fake devices or for TPUs that are not there."""
    yield f'## What devices send each other\n\n`{found["command"]}`, {found["date"]}; jax {found["jax"]}\n'
    yield from scaling.write_table(found['cells'])
    yield ''


WRITERS = {
    'step': write_step,
    'input': write_input,
    'compile_time': write_compile_time,
    'scaling': write_scaling,
    'scaling_tpu': write_scaling,
}


def main() -> None:
    parts = [HEADER]
    for name, write in WRITERS.items():
        path = HERE / 'results' / f'{name}.json'
        if path.exists():
            parts += write(json.loads(path.read_text()))
    (HERE / 'RESULTS.md').write_text('\n'.join(parts).rstrip() + '\n')


if __name__ == '__main__':
    main()
