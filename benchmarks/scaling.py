"""What do more devices send each other? python benchmarks/scaling.py [--devices 1 2 4 8 16 32] [--topology v5e:2x2 v5e:4x4 ...]

MAE ViT-B/16, a fixed number of images a device, compiled by `python -m mim_jax.compile` for so many fake devices of this CPU,
or for TPUs that are not there (libtpu needed), on three meshes: data alone, fsdp over all devices, fsdp over 4. For each: bytes
that a device sends in a step, by kind of collective, and its memory. Nothing is run, so nothing here is a time. Prints a
Markdown table and writes benchmarks/results/scaling.json (scaling_tpu.json with --topology), a cell at a time; cells that are
there are not compiled again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'benchmarks' / 'results'
MESHES = {'data': 1, 'fsdp of 4': 4, 'fsdp of all': 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--devices', type=int, nargs='+', default=[1, 2, 4, 8, 16, 32])
    parser.add_argument('--topology', nargs='+', default=[])
    parser.add_argument('--images', type=int, default=8, help='on a device')
    parser.add_argument('--config', default='configs/mae.py:vit_b16')
    options = parser.parse_args()
    out = RESULTS / ('scaling_tpu.json' if options.topology else 'scaling.json')
    found = json.loads(out.read_text()) if out.exists() else {'cells': {}}
    found |= {'command': ' '.join(sys.argv), 'date': time.strftime('%Y-%m-%d'), 'jax': version('jax')}
    places = options.topology or [str(count) for count in options.devices]
    for place in places:
        count = math.prod(map(int, place.partition(':')[2].split('x'))) if options.topology else int(place)
        for name, fsdp in MESHES.items():
            cell = f'{options.config}, {options.images} images/{place}/{name}'
            if cell not in found['cells'] and (fsdp or count) <= count and (count > 1 or name == 'data'):
                found['cells'][cell] = compile_cell(options, place, count, fsdp or count)
                save(out, found)
                print(cell, f'{found["cells"][cell]["seconds"]:.0f} s', file=sys.stderr, flush=True)
    save(out, found)
    print('\n'.join(write_table(found['cells'])))


def save(out: Path, found: dict[str, Any]) -> None:
    """What was found so far."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + '\n')


def compile_cell(options: argparse.Namespace, place: str, count: int, fsdp: int) -> dict[str, Any]:
    """Memory and collectives of one mesh, as mim_jax.compile finds them."""
    words = ['--config', options.config, '--images=1281167', '--classes=1000', '--config.encoder.scan=true']
    words += [f'--config.batch_size={options.images * count}', f'--config.mesh.fsdp={fsdp}']
    environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
    if options.topology:
        words += ['--topology', place]
    else:
        environment['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={count}'
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / 'found.json'
        command = [sys.executable, '-m', 'mim_jax.compile', *words, '--out', str(out)]
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if not out.exists():
            raise SystemExit(f'{" ".join(command)} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}')
        fit = json.loads(out.read_text())['tried'][0]
    return {key: fit[key] for key in ('devices', 'mesh', 'memory', 'collectives', 'seconds')}


def write_table(cells: dict[str, dict[str, Any]]) -> list[str]:
    """A row for each cell: MiB that a device sends in a step, and how many collectives that are."""
    lines = [
        '| devices | mesh | parameters and optimizer, MiB a device | sent, MiB a device and step |',
        '|---|---|---|---|',
    ]
    for cell, found in cells.items():
        _, place, name = cell.rsplit('/', 2)
        held = (found['memory']['parameters'] + found['memory']['optimizer']) / 2**20
        told = '; '.join(
            f'{row["count"]} {row["kind"]} among {row["group"]}: {row["sent"] / 2**20:.1f}'
            for row in found['collectives']
        )
        lines.append(f'| {place} | {name} | {held:.0f} | {told or "nothing"} |')
    return lines


if __name__ == '__main__':
    main()
