"""MAE's train step, ours beside what people use today. .venv-parity/bin/python benchmarks/step.py (make test-parity makes it).

Ours against transformers' ViTMAE and a MAE of timm's blocks, in PyTorch, each eager and through torch.compile: same weights,
images, mask noise, precision, optimizer and number of threads. Every contestant is a process of its own that sleeps while
another is timed; turns are interleaved in random order. That all do the same work is checked: their losses, step after step,
must agree. Writes benchmarks/results/step.json, whose `ratio_to_best_peer` is the best peer's time over ours, at its worst
over the sizes (above 1: we are faster).

On a GPU: --device gpu --dtype bfloat16 --sizes vit_b16 vit_l16 --batch 256, where both jax and torch see it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'benchmarks' / 'results' / 'step.json'
PEERS = ('transformers', 'transformers compiled', 'timm', 'timm compiled')
OURS = 'mim_jax'
SIZES = {'vit_s16': (16, ''), 'vit_t4': (64, 'cifar10,'), 'vit_b16': (16, ''), 'vit_l16': (8, '')}  # images; dataset
OPTIM = {'lr': 1e-4, 'b1': 0.9, 'b2': 0.95, 'eps': 1e-8, 'weight_decay': 0.05}
HUGE_PAGES = 'glibc.malloc.hugetlb=1'  # as the Makefile sets it: README, "On a CPU"
AGREE = {'float32': 2e-4, 'bfloat16': 3e-2}  # relative, of a loss, after tens of steps that round differently


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sizes', nargs='+', default=['vit_s16', 'vit_t4'], choices=sorted(SIZES))
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--steps', type=int, default=2, help='in a turn')
    parser.add_argument('--batch', type=int, default=0, help='images; default: by size')
    parser.add_argument('--dtype', default='float32', choices=sorted(AGREE))
    parser.add_argument('--device', default='cpu', choices=('cpu', 'gpu'))
    parser.add_argument(
        '--threads', type=int, default=len(os.sched_getaffinity(0)), help='CPU cores for each contestant'
    )
    parser.add_argument('--contestants', nargs='+', default=[OURS, *PEERS], choices=[OURS, *PEERS])
    parser.add_argument('--huge-pages', action=argparse.BooleanOptionalAction, default=True, help='for all contestants')
    parser.add_argument('--out', type=Path, default=RESULTS)
    parser.add_argument('--serve', default='', help=argparse.SUPPRESS)  # a contestant: this process is its own
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    if options.serve:
        serve(options.serve, options.sizes[0], options)
        return
    cases = {size: measure(size, options) for size in options.sizes}
    ratios = [case['ratio_to_best_peer'] for case in cases.values() if 'ratio_to_best_peer' in case]
    found = {
        'ratio_to_best_peer': min(ratios, default=None),
        'command': ' '.join(['python', 'benchmarks/step.py', *sys.argv[1:]]),
        'date': time.strftime('%Y-%m-%d'),
        'huge_pages': options.huge_pages,
        'machine': f'{platform.machine()}, {options.threads} cores, {describe_processor()}',
        'cases': cases,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + '\n')
    print(f'ratio_to_best_peer {found["ratio_to_best_peer"]}, in {options.out}')


def measure(size: str, options: argparse.Namespace) -> dict[str, Any]:
    """One size: every contestant's seconds of a step, by rounds."""
    served = {name: Contestant(name, size, options) for name in options.contestants}
    try:
        facts = {name: one.ask('warm') for name, one in served.items()}
        seconds: dict[str, list[float]] = {name: [] for name in served}
        losses = {name: list(facts[name]['losses']) for name in served}
        for turn in range(options.rounds):
            order = list(served)
            random.Random(turn).shuffle(order)
            for name in order:
                answer = served[name].ask(str(options.steps))
                seconds[name].append(answer['seconds'] / options.steps)
                losses[name] += answer['losses']
    finally:
        for one in served.values():
            one.close()
    check_equal(losses, AGREE[options.dtype])
    return summarise(size, facts, seconds, losses)


class Contestant:
    """A process that trains one contestant when it is asked, and sleeps otherwise."""

    def __init__(self, name: str, size: str, options: argparse.Namespace):
        self.name = name
        own = ['--serve', name, '--sizes', size, '--threads', str(options.threads), '--device', options.device]
        own += ['--dtype', options.dtype, '--batch', str(options.batch)]
        platforms = {'JAX_PLATFORMS': 'cpu' if options.device == 'cpu' or name != OURS else 'cuda'}
        threads = {'OMP_NUM_THREADS': str(options.threads), 'PYTHONPATH': str(ROOT)}
        pages = {'GLIBC_TUNABLES': HUGE_PAGES} if options.huge_pages else {}
        self.child = subprocess.Popen(
            [sys.executable, __file__, *own],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | platforms | threads | pages,
        )

    def ask(self, what: str) -> dict[str, Any]:
        """Its answer to 'warm' or to a number of steps."""
        self.child.stdin.write(f'{what}\n')
        self.child.stdin.flush()
        for line in self.child.stdout:
            if line.startswith('{'):
                return json.loads(line)
        raise SystemExit(f'{self.name} ended with status {self.child.wait()}')

    def close(self) -> None:
        self.child.kill()
        self.child.wait()


def check_equal(losses: Mapping[str, list[float]], bound: float) -> None:
    """Every contestant's loss of every step is that of the first; else they did not do the same work."""
    first = next(iter(losses))
    for name, found in losses.items():
        apart = np.abs(np.array(found) / np.array(losses[first]) - 1).max()
        if not apart < bound:
            raise SystemExit(f'{name} does not train what {first} trains: losses are {apart:.1e} apart: {found}')


def summarise(size: str, facts: Mapping, seconds: Mapping, losses: Mapping) -> dict[str, Any]:
    """Medians, spreads, and the ratios within rounds; printed as a table."""
    rows, ours = {}, seconds.get(OURS)
    for name, times in seconds.items():
        rows[name] = {
            'seconds': statistics.median(times),
            'least': min(times),
            'most': max(times),
            'gflops': facts[name]['flops'] / statistics.median(times) / 1e9,
            'matmul_gflops': facts[name]['matmul'] / 1e9,
            'versions': facts[name]['versions'],
            'compiled_in': facts[name]['seconds'],
        }
        if ours and name != OURS:
            ratios = [theirs / mine for theirs, mine in zip(times, ours, strict=True)]
            rows[name]['ratio'] = [statistics.median(ratios), min(ratios), max(ratios)]
    case: dict[str, Any] = {'batch': facts[next(iter(facts))]['batch'], 'rows': rows}
    peers = [name for name in rows if name != OURS]
    if ours and peers:
        best = min(peers, key=lambda name: rows[name]['seconds'])
        case |= {'best_peer': best, 'ratio_to_best_peer': rows[best]['ratio'][0]}
    case['losses'] = {name: [found[0], found[-1]] for name, found in losses.items()}
    print(f'\n{size}, {case["batch"]} images a step')
    print(
        '| contestant | s a step, median | least to most | GFLOP/s | of its own matmul rate | our speed-up, median and range |'
    )
    print('|---|---|---|---|---|---|')
    for name, row in rows.items():
        ratio = '{:.3f} ({:.3f} to {:.3f})'.format(*row['ratio']) if 'ratio' in row else ''
        print(
            f'| {name} | {row["seconds"]:.3f} | {row["least"]:.3f} to {row["most"]:.3f} | {row["gflops"]:.1f} '
            f'| {row["gflops"] / row["matmul_gflops"]:.2f} | {ratio} |',
            flush=True,
        )
    return case


def describe_processor() -> str:
    """Its name, where the system tells."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.partition(':')[2].strip() for line in lines if line.startswith('model name')), platform.processor()
    )


# -- a contestant's process ----------------------------------------------------------------------------------------------
def serve(name: str, size: str, options: argparse.Namespace) -> None:
    """Answer on standard input: 'warm' (compile, two steps), or a number of steps to be timed after one that is not."""
    from mim_jax.config import check_config, load_config
    from mim_jax.methods import BASES, PAPERS, build

    methods = {**BASES, **PAPERS}
    batch, dataset = options.batch or SIZES[size][0], SIZES[size][1]
    settings = {
        'batch_size': batch,
        'dtype': options.dtype,
        'steps': 1000,
        'optim.lr_scaling': 'none',
        'optim.base_lr': OPTIM['lr'],
        'optim.schedule': 'constant',
        'optim.warmup_epochs': 0,
        'optim.min_lr': 0.0,
    }
    config, _ = load_config(
        f'{ROOT}/configs/mae.py:{dataset}{size}',
        [f'--config.{key}={value}' for key, value in settings.items()],
        methods,
    )
    check_config(config, methods)
    recipe = build(config, 50_000, 10)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (batch, config.image_size, config.image_size, 3), dtype=np.uint8)
    patches = (config.image_size // config.encoder.patch_size) ** 2
    noise = draw.random((batch, patches), dtype=np.float32)
    prepare = prepare_ours if name == OURS else prepare_peer
    flops, run, matmul, versions = prepare(name, recipe, images, noise, options)
    for line in sys.stdin:
        # What a contestant freed while it slept may be with the host of a virtual machine, which is slow to give it back; in
        # training no step comes after a pause.
        losses = run(1)
        start = time.perf_counter()
        losses += run(1 if line.strip() == 'warm' else int(line))
        answer: dict[str, Any] = {'seconds': time.perf_counter() - start, 'losses': losses}
        if line.strip() == 'warm':
            answer |= {'flops': flops, 'matmul': matmul(), 'versions': versions, 'batch': batch}
        print(json.dumps(answer), flush=True)


def least_seconds(call: Callable[[], None]) -> float:
    """Of five calls after a first one."""
    call()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def prepare_ours(name: str, recipe: Any, images: np.ndarray, noise: np.ndarray, options: argparse.Namespace):
    """The program that `python -m mim_jax.train` runs, with this noise in place of its own."""
    from dataclasses import replace

    import jax
    import jax.numpy as jnp

    from mim_jax.parallel.hosts import to_global
    from mim_jax.parallel.mesh import make_mesh
    from mim_jax.training.assemble import make_program
    from mim_jax.training.perf import count_flops

    recipe = replace(
        recipe,
        masking=replace(recipe.masking, scores=lambda forward, view: jnp.asarray(noise)[forward.around.rows]),
    )
    mesh = make_mesh(devices=jax.devices()[:1])
    program = make_program(recipe, mesh)
    batch = to_global(mesh, dict.fromkeys(recipe.crops, images))
    traced = program.step.trace(program.abstract, program.frozen, batch)
    state, compiled = program.init(), traced.lower().compile()

    def run(steps: int) -> list[float]:
        nonlocal state
        losses = []
        for _ in range(steps):
            state, logs = compiled(state, program.frozen, batch)
            losses.append(logs['loss/total'])
        jax.block_until_ready(state.params)
        return [float(loss) for loss in losses]

    def matmul() -> float:
        size = 8192 if options.device == 'gpu' else 2048
        a = jnp.ones((size, size), options.dtype)
        product = jax.jit(lambda a: a @ a)
        return 2 * size**3 / least_seconds(lambda: product(a).block_until_ready())

    return count_flops(traced.jaxpr), run, matmul, {'jax': jax.__version__}


def prepare_peer(name: str, recipe: Any, images: np.ndarray, noise: np.ndarray, options: argparse.Namespace):
    """A model in PyTorch, with the weights that our run begins with."""
    import jax
    import peers
    import timm
    import torch
    import transformers

    from mim_jax.forward import create_parameters
    from mim_jax.interop.hf import hf_config
    from mim_jax.interop.mae import MAE, VITMAE
    from mim_jax.interop.transfer import export_arrays
    from mim_jax.parallel.mesh import make_mesh
    from mim_jax.parallel.rules import flatten_with_paths
    from mim_jax.training.assemble import plan_program
    from mim_jax.training.perf import count_flops

    torch.set_num_threads(options.threads)
    library, _, compiled = name.partition(' ')
    params, _, _ = jax.jit(lambda key: create_parameters(recipe, key))(jax.random.key(recipe.config.seed))
    arrays = {path: np.asarray(leaf) for path, leaf in flatten_with_paths(params)}
    program = plan_program(recipe, make_mesh(devices=jax.devices()[:1]))
    flops = count_flops(program.step.trace(program.abstract, program.frozen, program.inputs()).jaxpr)
    form = find_form(recipe, arrays, VITMAE if library == 'transformers' else MAE)
    weights, _ = export_arrays(arrays, form, recipe)
    make = peers.make_transformers if library == 'transformers' else peers.make_timm
    model = make(hf_config(recipe, full=True), weights)
    pixels = (images / np.float32(255) - np.float32(recipe.mean)) / np.float32(recipe.std)
    device = 'cuda' if options.device == 'gpu' else 'cpu'
    chosen = {'device': device, 'dtype': options.dtype, 'compiled': bool(compiled)}
    trainer = peers.Trainer(model, pixels.astype(np.float32), noise, OPTIM, chosen)
    versions = {'torch': torch.__version__, 'timm': timm.__version__, 'transformers': transformers.__version__}
    return flops, trainer.run, lambda: peers.matmul_rate(device, options.dtype, least_seconds), versions


def find_form(recipe: Any, arrays: Mapping[str, np.ndarray], layout: Any) -> Any:
    """The format of this layout."""
    from mim_jax.interop.formats import formats_of

    return next(form for form in formats_of(recipe, arrays) if form.layout is layout)


if __name__ == '__main__':
    main()
