"""What papers cost on a base, from the compiled train step. python benchmarks/papers.py [base] [--config.key=value ...]

ViT-B/16 at 224 pixels with the base's own configuration and data of noise: FLOPs of the compiled step (bf16 and unrolled, so
that no loop body is counted once), temporaries at --memory images (default 256; nothing of that size is run), and seconds of a
step of --batch images in fp32, the forms interleaved for --rounds, as ratios to the base. --tpu v5p:2x2x1 compiles memory for
one chip of that TPU instead (needs libtpu), --papers lut,mff takes that stack alone, --skip-time and
--skip-memory leave parts out.
Numbers with machine and date: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import jax
import numpy as np

from mim_jax.config import check_config, load_config
from mim_jax.methods import BASES, PAPERS, build
from mim_jax.parallel.hosts import to_global
from mim_jax.parallel.mesh import batch_sharding, make_mesh
from mim_jax.training.assemble import make_program

ROOT = Path(__file__).parents[1]
# XLA:CPU orders a program for its threads, and so makes all layers' affinities again together; accelerators save memory.
CPU_ORDER = {'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED'}
STACKS = [(), ('mff',), ('mto',), ('lut',), ('mff', 'mto')]
OVERRIDES: list[str] = []  # of the command line


def make(base: str, papers: tuple[str, ...], batch: int, dtype: str, mesh: jax.sharding.Mesh):
    """(program, abstract batch) of a stack."""
    methods = {**BASES, **PAPERS}
    overrides = [
        f'--config.papers={",".join(papers)}',
        f'--config.batch_size={batch}',
        f'--config.dtype={dtype}',
        *(one for one in OVERRIDES if one.removeprefix('--config.').partition('.')[0] not in {*PAPERS} - {*papers}),
    ]
    config, _ = load_config(f'{ROOT}/configs/{base}.py', overrides, methods)
    check_config(config, methods)
    recipe = build(config, 1_281_167, 1000)
    side, sharding = recipe.config.image_size, batch_sharding(mesh)
    image = jax.ShapeDtypeStruct((batch, side, side, 3), 'uint8', sharding=sharding)
    return make_program(recipe, mesh), dict.fromkeys(recipe.crops, image)


def compile_step(base: str, papers: tuple[str, ...], batch: int, dtype: str, mesh: jax.sharding.Mesh, **options: str):
    """(program, compiled step)."""
    program, images = make(base, papers, batch, dtype, mesh)
    return program, program.step.lower(program.abstract, program.frozen, images).compile(compiler_options=options)


def tpu_mesh(topology: str) -> jax.sharding.Mesh:
    """One device of a TPU topology, described without one."""
    from jax.experimental import topologies

    described = topologies.get_topology_desc(platform='tpu', topology_name=topology)
    return make_mesh(devices=described.devices[:1])


def report_memory(base: str, batch: int, mesh: jax.sharding.Mesh) -> None:
    """FLOPs and memory of every stack, beside the base's."""
    first = None
    for papers in STACKS:
        start = time.perf_counter()
        order = CPU_ORDER if mesh.devices.flat[0].platform == 'cpu' else {}
        _, compiled = compile_step(base, papers, batch, 'bfloat16', mesh, **order)
        memory, flops = compiled.memory_analysis(), compiled.cost_analysis()['flops']
        found = flops, memory.temp_size_in_bytes, memory.peak_memory_in_bytes
        first = first or found
        print(
            f'{"+".join((base, *papers)):24} {flops / batch / 1e9:8.2f} GFLOP an image ({flops / first[0]:.4f}); '
            f'temporaries {found[1] / 2**30:.3f} GiB ({(found[1] - first[1]) / 2**20:+.0f} MiB), '
            f'peak {found[2] / 2**30:.3f} GiB ({(found[2] - first[2]) / 2**20:+.0f} MiB); '
            f'compiled in {time.perf_counter() - start:.0f} s',
            flush=True,
        )


def report_time(base: str, batch: int, rounds: int, mesh: jax.sharding.Mesh) -> None:
    """Seconds of a step of every stack, interleaved; ratios within each round."""
    runs = {}
    for papers in STACKS:
        program, compiled = compile_step(base, papers, batch, 'float32', mesh)
        side = program.recipe.config.image_size
        pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
        runs['+'.join((base, *papers))] = [
            compiled,
            program.init(),
            program.frozen,
            to_global(mesh, dict.fromkeys(program.recipe.crops, pixels)),
        ]
    seconds = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run[1], logs = run[0](*run[1:])
            jax.block_until_ready((run[1].params, logs))
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    plain = next(iter(seconds.values()))
    for name, times in seconds.items():
        ratios = sorted(t / p for t, p in zip(times, plain, strict=True))
        print(
            f'{name:24} median {statistics.median(times):.3f} s, least {min(times):.3f} s; ratio to the base, by round: '
            f'median {statistics.median(ratios):.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}; of the least: '
            f'{min(times) / min(plain):.3f}'
        )


def main() -> None:
    parser = argparse.ArgumentParser(description='What papers cost on a base.')
    parser.add_argument('base', nargs='?', default='mae', choices=sorted(set(BASES) - {'supervised'}))
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--memory', type=int, default=256)
    parser.add_argument('--tpu', default='')
    parser.add_argument('--papers', default='', help='one stack, such as lut,mff, in place of several')
    parser.add_argument('--skip-time', action='store_true')
    parser.add_argument('--skip-memory', action='store_true')
    options, OVERRIDES[:] = parser.parse_known_args()
    if options.papers:
        STACKS[1:] = [tuple(options.papers.split(','))]
    mesh = make_mesh(devices=jax.devices()[:1])
    print(f'{jax.devices()[0].device_kind}, jax {jax.__version__}, {options.base}, ViT-B/16')
    if not options.skip_memory:
        print(f'memory and FLOPs: {options.memory} images, bf16, {options.tpu or "this device"}')
        report_memory(options.base, options.memory, tpu_mesh(options.tpu) if options.tpu else mesh)
    if not options.skip_time:
        print(f'time: {options.batch} images, fp32, {options.rounds} rounds')
        report_time(options.base, options.batch, options.rounds, mesh)


if __name__ == '__main__':
    main()
