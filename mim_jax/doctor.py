"""Check this machine before a long run: `python -m mim_jax.doctor --config configs/mae.py[:variant] [--workdir DIR]`.

Looks at versions, configuration, devices, dataset, workdir, effective batch and learning rate, then compiles and runs one
real train step. Goes on after a fault; every fault comes with what to do. Exit status 0: all well, 2: at least one fault.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from packaging.requirements import Requirement

from mim_jax.command import agree_on_run, describe_machine, explain_shortages, join_and_parse, read_config, run_program
from mim_jax.config import check_devices, peak_lr
from mim_jax.data.images import decode
from mim_jax.data.sources import Source, open_source
from mim_jax.data.subsets import open_training
from mim_jax.errors import UserError, WorkdirError
from mim_jax.evals.watchers import check_probes
from mim_jax.parallel.agreement import exchange
from mim_jax.parallel.hosts import to_global
from mim_jax.parallel.mesh import make_mesh
from mim_jax.parallel.startup import describe_host, is_joined, prefix_host
from mim_jax.paths import is_bucket, open_path
from mim_jax.training import perf
from mim_jax.training.assemble import assemble, make_loader, make_program
from mim_jax.training.loggers import format_duration
from mim_jax.training.state import to_tree
from mim_jax.training.workdir import check_contents, check_writable

TIMED_STEPS = 3
HUGE_PAGES = 'GLIBC_TUNABLES=glibc.malloc.hugetlb=1'


class Examination:
    """Runs checks in order, prints one line each, counts the faults. A check that needs a failed one is left out.

    A check that fails on one host has failed on all, and each host tells its own faults; the first one what is well.
    """

    def __init__(self):
        self.faults = 0

    def check(self, name: str, look: Callable[[], tuple[str, Any]]) -> Any:
        """look() -> (what was found, a value for later checks). A UserError is a fault; anything else is a bug."""
        try:
            with explain_shortages():
                found, value = look()
            fault = None
        except UserError as error:
            fault = str(error)
            print(f'{prefix_host()}FAULT {name}: {fault}', flush=True)
        faults = {host: told for host, told in enumerate(exchange(name, fault)) if told is not None}
        self.faults += bool(faults)
        if not faults:
            self.report(f'ok    {name}: {found}')
            return value
        if fault is None:
            host, told = next(iter(faults.items()))
            self.report(f'FAULT {name}, on {describe_host(host)}: {told}')
        return None

    def report(self, line: str) -> None:
        """Print at once, from the first host only."""
        if jax.process_index() == 0:
            print(line, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run every check that can be run. Returns the exit status."""
    parser = argparse.ArgumentParser(prog='python -m mim_jax.doctor', description='Check this machine for a run.')
    parser.add_argument(
        '--config', required=True, help='as for mim_jax.train, with the same --config.key=value overrides'
    )
    parser.add_argument('--workdir', type=open_path, help='the folder the run will use, or gs://bucket/folder')
    options, overrides = join_and_parse(arguments, parser)

    exam = Examination()
    exam.check('versions', check_versions)
    exam.check('devices', check_machine)
    needed = None
    config = exam.check('config', lambda: check_settings(options.config, overrides))
    if config is not None:
        train = exam.check('dataset', lambda: check_dataset(config))
        size = None if train is None else len(train)
        if is_joined() and train is not None:
            exam.check('hosts', lambda: check_hosts(config, train, options.workdir))
        fits = exam.check('batch and learning rate', lambda: check_batch(config, size))
        if size is not None and fits:
            needed = exam.check('one train step', lambda: check_step(config))
    if options.workdir is not None:
        exam.check('workdir', lambda: check_folder(options.workdir, config, needed))
    exam.report(f'{exam.faults} fault{"" if exam.faults == 1 else "s"} found.' if exam.faults else 'All well.')
    return 2 if exam.faults else 0


def check_versions() -> tuple[str, None]:
    """Every requirement of this package against what is installed."""
    wrong = []
    for text in metadata.requires('mim_jax') or ():
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({'extra': ''}):
            continue  # of an extra
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f'{requirement.name} is not installed')
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f'{requirement.name} is {installed}, not {requirement.specifier}')
    if wrong:
        raise UserError(f'{"; ".join(wrong)}. Run: pip install -r requirements.txt')
    versions = describe_machine()['versions']
    return ', '.join(f'{name} {version}' for name, version in versions.items()), None


def check_machine() -> tuple[str, None]:
    """What JAX sees."""
    devices = jax.devices()
    statistics = jax.local_devices()[0].memory_stats() or {}
    memory = statistics.get('bytes_limit')
    each = '' if memory is None else f', {memory / 2**30:.1f} GiB each'
    peak = perf.find_peak(devices[0].device_kind)
    speed = 'peak speed unknown, so no mfu' if peak is None else f'{peak / 1e12:.0f} TFLOP/s each in bf16'
    advice = (
        '' if devices[0].platform != 'cpu' or has_huge_pages() else f'; faster with {HUGE_PAGES} (README, On a CPU)'
    )
    return f'{len(devices)} x {devices[0].device_kind}{each}, {speed}; {jax.process_count()} host(s){advice}', None


def has_huge_pages(setting: Path = Path('/sys/kernel/mm/transparent_hugepage/enabled')) -> bool:
    """Whether a step's arrays lie in huge pages as it is, or cannot: the kernel gives none, or there is no such kernel."""
    asked = HUGE_PAGES.partition('=')[2] in os.environ.get('GLIBC_TUNABLES', '')
    return asked or not setting.exists() or '[madvise]' not in setting.read_text()


def check_settings(spec: str, overrides: Sequence[str]) -> tuple[str, Any]:
    """The configuration, as train would read it."""
    config, _ = read_config(spec, overrides)
    return f'{"+".join((config.base, *config.papers))}, image_size {config.image_size}', config


def check_dataset(config: Any) -> tuple[str, Source]:
    """Both splits found; the first and the last training image can be decoded."""
    train = open_training(config.data)
    loader_sizes = [f'{len(train)} images in {config.data.split}']
    for index in (0, len(train) - 1):
        if config.data.on_bad_image == 'stop':
            example = train[index]
            decode(example.image, example.name, index)
    if config.probe.every_epochs or config.pictures.every_epochs:
        test = open_source(config.data, config.data.eval_split)
        check_probes(config, train, test)
        loader_sizes.append(f'{len(test)} in {config.data.eval_split}')
    return f'{train.description}, {", ".join(loader_sizes)}', train


def check_hosts(config: Any, train: Source, workdir: Path | None) -> tuple[str, None]:
    """All hosts have the same settings, workdir and images; the versions were compared when they joined."""
    agree_on_run(config, workdir, train.fingerprint)
    return f'{jax.process_count()} have the same versions, settings and images', None


def check_batch(config: Any, dataset_size: int | None) -> tuple[str, bool]:
    """The effective batch and learning rate on these devices."""
    check_devices(config, jax.device_count(), dataset_size)
    group = config.mesh.model
    shards = jax.device_count() // group
    micro = config.batch_size // (shards * config.accumulate)
    over = f'{shards} devices' if group == 1 else f'{shards} groups of {group} devices'
    return (
        f'{micro} images x {over} x {config.accumulate} micro-batches = {config.batch_size} per step; '
        f'peak lr {peak_lr(config):.3g} = {config.optim.base_lr:.3g} by {config.optim.lr_scaling}. If memory runs out, '
        f'raise accumulate: batch and lr stay the same'
    ), True


def check_step(config: Any) -> tuple[str, int]:
    """Compile the real step and run it on real batches. The value is what a checkpoint holds, in bytes."""
    recipe, source = assemble(config)
    program = make_program(recipe, make_mesh(**config.mesh))
    state = program.init()
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(to_tree(program.abstract)))
    batches = make_loader(recipe, source, program.mesh).batches(0, 1 + TIMED_STEPS)
    times = []
    for batch in batches:
        start = time.perf_counter()
        taken = {name: batch[name] for name in recipe.inputs}
        state, logs = program.step(state, program.frozen, to_global(program.mesh, taken))
        loss = float(logs['loss/total'])
        times.append(time.perf_counter() - start)
    if not math.isfinite(loss):
        raise UserError(f'the loss is {loss} after {len(times)} steps; lower optim.base_lr or use dtype float32.')
    seconds = min(times[1:])
    return (
        f'compiled and ran in {times[0]:.1f} s, then {seconds:.3f} s a step ({config.batch_size / seconds:.0f} images/s), '
        f'loss {loss:.3f}; {recipe.config.steps} steps would take {format_duration(seconds * recipe.config.steps)} '
        'if the data keeps up'
    ), size


def check_folder(path: Path, config: Any | None, checkpoint: int | None) -> tuple[str, None]:
    """The workdir can be written, what it holds can go on with this config, and it has room for the checkpoints."""
    check_writable(path)
    if config is not None:
        check_contents(path, config)
    if is_bucket(path):
        return f'{path} is writable', None
    free = shutil.disk_usage(path).free
    found = f'{path} is writable, {free / 2**30:.0f} GiB free'
    if config is None or checkpoint is None:
        return found, None
    kept = config.checkpoint.keep + 1  # one more while it is being written
    if free < kept * checkpoint:
        raise WorkdirError(
            f'{path} has {free / 2**30:.2f} GiB free, but {kept} checkpoints of {checkpoint / 2**30:.2f} GiB need more: '
            'free some, choose another folder, or lower checkpoint.keep.'
        )
    return f'{found}, a checkpoint takes {checkpoint / 2**20:.0f} MiB', None


if __name__ == '__main__':
    run_program(main)
