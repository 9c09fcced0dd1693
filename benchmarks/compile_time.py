"""How long does the train step take to trace and to compile, unrolled and scanned? python benchmarks/compile_time.py

MAE in bf16 at each of --sizes, on this machine's devices or with --topology v5e:4x4 on a TPU that is not there (libtpu needed).
Each cell is a process of its own without a compilation cache, --rounds times, the forms in turn. Prints a Markdown table and
writes benchmarks/results/compile_time.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'benchmarks' / 'results' / 'compile_time.json'
FORMS = {
    'unrolled': [],
    'scanned': ['--config.encoder.scan=true'],
    'scanned, remat': ['--config.encoder.scan=true', '--config.encoder.remat=full'],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sizes', nargs='+', default=['vit_b16', 'vit_l16'])
    parser.add_argument('--topology', default='')
    parser.add_argument('--batch', type=int, default=64, help='images, of all devices')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--out', type=Path, default=RESULTS)
    parser.add_argument('--cell', nargs=2, default=[], help=argparse.SUPPRESS)  # size, form: this process measures it
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(measure(*options.cell, options)))
        return
    cells: dict[str, list[dict[str, Any]]] = {f'{size}/{form}': [] for size in options.sizes for form in FORMS}
    for _ in range(options.rounds):
        for cell, found in cells.items():
            found.append(measure_apart(cell, options))
    rows = {cell: summarise(found) for cell, found in cells.items()}
    report = {'command': ' '.join(sys.argv), 'date': time.strftime('%Y-%m-%d'), 'cores': len(os.sched_getaffinity(0))}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report | {'cells': rows}, indent=1) + '\n')
    print('| size | form | trace s | compile s (least to most) | temporaries GiB |\n|---|---|---|---|---|')
    for cell, row in rows.items():
        size, form = cell.split('/')
        print(
            f'| {size} | {form} | {row["trace"]:.1f} | {row["compile"]:.1f} ({row["least"]:.1f} to {row["most"]:.1f}) '
            f'| {row["temporaries"] / 2**30:.2f} |'
        )


def measure_apart(cell: str, options: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a new process, so that nothing is compiled or traced yet."""
    given = ['--cell', *cell.split('/'), '--batch', str(options.batch), '--topology', options.topology]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    environment = os.environ | {'PYTHONPATH': path, 'JAX_ENABLE_COMPILATION_CACHE': 'false'}
    ended = subprocess.run([sys.executable, __file__, *given], env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def measure(size: str, form: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds to trace and lower, seconds to compile, bytes of temporaries."""
    import jax

    from mim_jax.config import check_config, load_config
    from mim_jax.methods import BASES, PAPERS, build
    from mim_jax.parallel.mesh import make_mesh
    from mim_jax.training.assemble import plan_program

    devices = jax.devices()
    if options.topology:
        from jax.experimental import topologies

        devices = topologies.get_topology_desc(platform='tpu', topology_name=options.topology).devices
    methods = {**BASES, **PAPERS}
    config, _ = load_config(
        f'{ROOT}/configs/mae.py:{size}', [f'--config.batch_size={options.batch}', *FORMS[form]], methods
    )
    check_config(config, methods)
    program = plan_program(build(config, 1_281_167, 1000), make_mesh(devices=devices))
    start = time.perf_counter()
    lowered = program.step.lower(program.abstract, program.frozen, program.inputs())
    traced = time.perf_counter()
    compiled = lowered.compile()
    ended = time.perf_counter()
    return {
        'trace': traced - start,
        'compile': ended - traced,
        'temporaries': compiled.memory_analysis().temp_size_in_bytes,
        'devices': f'{len(devices)} x {devices[0].device_kind}',
        'jax': jax.__version__,
    }


def summarise(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and spread of one cell."""
    times = [one['compile'] for one in found]
    spread = {'compile': statistics.median(times), 'least': min(times), 'most': max(times)}
    return found[0] | spread | {'trace': statistics.median(one['trace'] for one in found)}


if __name__ == '__main__':
    main()
