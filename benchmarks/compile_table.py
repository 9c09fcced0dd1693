"""Does every paper fit on every TPU? python benchmarks/compile_table.py [--cells mae:b:v5e ...] [--seconds 3600] [--table]

{mae, mff, lut, mr_mae, mto} x {B, L, H} x {v4-32, v5e-256, v5p-64 chips, v6e-64}: each configuration at its own batch, with
encoder.scan=true (it compiles in a fraction of the time; peak memory is higher than unrolled), and where it does not fit, the
first change that makes it fit. Each cell is `python -m mim_jax.compile` in a process of its own; a cell that is in
benchmarks/compile_table.jsonl already is not done again. --table only writes benchmarks/compile_table.md from what is there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CELLS, TABLE = (Path(__file__).with_suffix(suffix) for suffix in ('.jsonl', '.md'))
TOPOLOGIES = {'v4': 'v4:2x2x4', 'v5e': 'v5e:16x16', 'v5p': 'v5p:4x4x4', 'v6e': 'v6e:8x8'}
NAMES = {'v4': 'v4-32 (16 chips)', 'v5e': 'v5e-256', 'v5p': 'v5p, 64 chips', 'v6e': 'v6e-64'}
SIZES = {'b': 'vit_b16', 'l': 'vit_l16', 'h': 'vit_h14'}
CONVOLUTIONAL = {'b': 'cvit_b16', 'l': 'cvit_l16', 'h': 'cvit_h16'}
PAPERS = ('mae', 'mff', 'lut', 'mr_mae', 'mto')
IMAGENET = ('--images=1281167', '--classes=1000')
GIB = 2**30


def list_cells() -> list[str]:
    """'mae:b:v5e' and so on: MAE first, then by size, as the larger ones take longest."""
    order = [('mae', size) for size in SIZES] + [(paper, size) for size in SIZES for paper in PAPERS if paper != 'mae']
    return [f'{paper}:{size}:{chip}' for paper, size in order for chip in TOPOLOGIES]


def read_cells() -> dict[str, dict[str, Any]]:
    """{cell: its record}; a later line replaces an earlier one."""
    lines = CELLS.read_text().splitlines() if CELLS.exists() else []
    return {record['cell']: record for record in map(json.loads, lines)}


def describe_arguments(cell: str) -> list[str]:
    """The arguments of `python -m mim_jax.compile` for a cell."""
    paper, size, chip = cell.split(':')
    variant = (CONVOLUTIONAL if paper == 'mr_mae' else SIZES)[size]
    where = ['--config', f'configs/{paper}.py:{variant}', '--topology', TOPOLOGIES[chip]]
    return [*where, *IMAGENET, '--config.encoder.scan=true']


def compile_cell(cell: str, seconds: float, texts: Path | None) -> dict[str, Any]:
    """The record of one cell: what the program found, or how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / 'found.json'
        command = [
            sys.executable,
            '-m',
            'mim_jax.compile',
            *describe_arguments(cell),
            '--search=first',
            '--out',
            str(out),
        ]
        command += ['--hlo', str(texts / f'{cell.replace(":", "_")}.txt')] if texts else []
        start = time.monotonic()
        try:
            ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return {'cell': cell, 'error': f'not compiled within {seconds:.0f} s'}
        if not out.exists():
            return {'cell': cell, 'error': ended.stderr.strip().splitlines()[-1]}
        return {'cell': cell, 'seconds': round(time.monotonic() - start), **json.loads(out.read_text())}


def write_table(records: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row per cell, in order."""
    rows = [
        '| paper | size | TPU | images a step (a chip) | fits | peak GiB of | GFLOP an image | collectives: MiB sent a step |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for cell in sorted(
        list_cells(), key=lambda cell: PAPERS.index(cell.partition(':')[0])
    ):  # stable: sizes stay in order
        paper, size, chip = cell.split(':')
        row = [paper, size.upper(), NAMES[chip], *describe_cell(records.get(cell))]
        rows.append(f'| {" | ".join(row)} |')
    return '\n'.join(rows) + '\n'


def describe_cell(record: dict[str, Any] | None) -> list[str]:
    """Its last five columns."""
    if record is None or 'error' in record:
        return ['', record['error'] if record else 'not compiled yet', '', '', '']
    plain, fitting = record['tried'][0], next((one for one in record['tried'] if one['fits']), None)
    shown = fitting or plain
    images = f'{shown["batch"]["images"]} ({shown["batch"]["images"] // shown["devices"]["count"]})'
    needed = f'needs {plain["needed"] / GIB:.1f} GiB; ' if not plain['fits'] else ''
    changes = ', '.join(f'{key.rpartition(".")[2]}={value}' for key, value in shown['changes'].items())
    fits = 'as it is' if fitting is plain else f'{needed}with {changes}' if fitting else f'{needed}no change tried fits'
    flops, capacity = f'{shown["flops"]["image"] / 1e9:.1f}', shown['memory']['capacity'] / GIB
    if fitting is None:
        return [images, fits, f'- of {capacity:.2f}', flops, '']
    told = '; '.join(
        f'{row["count"]} {row["kind"]} among {row["group"]}: {row["sent"] / 2**20:.0f}' for row in shown['collectives']
    )
    return [images, fits, f'{shown["memory"]["peak"] / GIB:.2f} of {capacity:.2f}', flops, told or 'none']


def main() -> None:
    parser = argparse.ArgumentParser(description='Does every paper fit on every TPU?')
    parser.add_argument('--cells', nargs='*', default=list_cells())
    parser.add_argument('--seconds', type=float, default=3600, help='for one cell')
    parser.add_argument('--texts', type=Path, help='a folder for the compiled programs')
    parser.add_argument('--table', action='store_true')
    options = parser.parse_args()
    for cell in [] if options.table else options.cells:
        if 'tried' not in read_cells().get(cell, {}):
            record = compile_cell(cell, options.seconds, options.texts)
            with CELLS.open('a') as file:
                file.write(json.dumps(record) + '\n')
            print(cell, record.get('error') or f'{record["seconds"]} s, best {record["best"]}', flush=True)
    TABLE.write_text(write_table(read_cells()))


if __name__ == '__main__':
    main()
