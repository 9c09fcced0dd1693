"""One configuration on given devices: its real train step compiled, and what the compiler and its program say of it."""

from __future__ import annotations

import collections
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from mim_jax.config import check_devices
from mim_jax.methods import build
from mim_jax.parallel.mesh import make_mesh
from mim_jax.planning.chips import find_chip
from mim_jax.planning.collectives import Collective, find_collectives
from mim_jax.planning.hlo import parse_hlo
from mim_jax.planning.traffic import count_bytes
from mim_jax.training.assemble import Program, plan_program
from mim_jax.training.perf import count_flops, find_peak
from mim_jax.weights.towers import sizes_as_published

UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
AMOUNT = r'([\d.]+)([KMGT]?)'
OUT_OF_MEMORY = (  # in what the TPU compiler says: needed, then there is
    re.compile(rf'required for [^(]*\({AMOUNT}\) exceeds available \w+ \({AMOUNT}\)'),
    re.compile(rf'Used {AMOUNT} of {AMOUNT} hbm'),
)


@dataclass(frozen=True)
class Fit:
    """What is known of one configuration on one set of devices; plain values, so that it can be written as JSON.

    memory: bytes on a device; 'peak', 'temporaries' (what the peak has beyond the arguments) and 'program' (the code) are
    None where the program did not fit; needed: bytes that the compiler then asked for, 0 where it did not say; flops:
    'image' and 'device' by our count, 'compiler' by the compiler's, which counts loops' bodies once; collectives: rows of
    kind, group, crosses, count, size, sent (a step and device) and exact; bounds: seconds that a step takes at least, None
    where a figure is unknown; hlo: the compiled program's text.
    """

    recipe: str
    fits: bool
    devices: Mapping[str, Any]
    mesh: Mapping[str, int]
    batch: Mapping[str, int]
    memory: Mapping[str, float | None]
    needed: float | None
    flops: Mapping[str, float | None]
    collectives: Sequence[Mapping[str, Any]]
    bounds: Mapping[str, float | None]
    seconds: float
    hlo: str = ''

    @property
    def shards(self) -> int:
        """Into how many parts the batch is split."""
        return self.mesh['data'] * self.mesh['fsdp']

    @property
    def step_seconds(self) -> float:
        """The largest known bound: no step is faster. Infinite where the program does not fit."""
        known = [bound for bound in self.bounds.values() if bound is not None]
        return max(known, default=0.0) if self.fits else math.inf


def measure_fit(config: Any, images: int, classes: int, devices: Sequence[Any]) -> Fit:
    """Build, lower and compile for devices that need not exist; nothing is allocated, no data or weight file is read.

    Raises ConfigError for a batch or a mesh that does not fit the devices, as a run would.
    """
    check_devices(config, len(devices), images)
    with sizes_as_published():
        recipe = build(config, images, classes)
    program = plan_program(recipe, make_mesh(**config.mesh, devices=devices))
    start = time.monotonic()
    traced = program.step.trace(program.abstract, program.frozen, program.inputs())
    flops = count_flops(traced.jaxpr)
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        needed = read_shortage(str(error))
        if needed is None:
            raise
        return describe_fit(program, flops, None, needed, time.monotonic() - start)
    return describe_fit(program, flops, compiled, None, time.monotonic() - start)


def read_shortage(message: str) -> float | None:
    """Bytes that a compiler which ran out of device memory asked for, 0 where it does not say; None where it did not."""
    if 'RESOURCE_EXHAUSTED' not in message:
        return None
    for pattern in OUT_OF_MEMORY:
        if match := pattern.search(message):
            return float(match[1]) * UNITS[match[2]]
    return 0.0  # it ran out, and does not say by how much


def describe_fit(program: Program, flops: int, compiled: Any, needed: float | None, seconds: float) -> Fit:
    """The record of a program that was compiled, or (compiled None) was not for want of memory."""
    config, mesh = program.recipe.config, program.mesh
    placed = mesh.devices.flatten().tolist()
    first, chip = placed[0], find_chip(placed[0].device_kind)
    slices = [getattr(device, 'slice_index', None) or 0 for device in placed]
    memory = measure_state(program) | {'capacity': read_capacity(first)}
    memory |= dict.fromkeys(('temporaries', 'peak', 'program'))
    counted, rows, moved, hlo = None, [], None, ''
    if compiled is not None:
        statistics, hlo = compiled.memory_analysis(), compiled.as_text()
        memory['peak'], memory['program'] = statistics.peak_memory_in_bytes, statistics.generated_code_size_in_bytes
        memory['temporaries'] = memory['peak'] - statistics.argument_size_in_bytes
        counted = compiled.cost_analysis().get('flops')
        module = parse_hlo(hlo)
        rows, moved = sum_collectives(find_collectives(module, slices)), count_bytes(module)
    per_device = flops / len(placed)
    sent = {far: sum(row['sent'] for row in rows if bool(row['crosses']) is far) for far in (False, True)}
    bounds = {
        'compute': divide(per_device, find_peak(first.device_kind)),
        'memory': divide(moved, chip.memory),
        'links': divide(sent[False], chip.links) if compiled else None,
        'network': divide(sent[True], chip.network) if compiled and len(set(slices)) > 1 else None,
    }
    short = memory['peak'] is not None and memory['capacity'] is not None and memory['peak'] > memory['capacity']
    return Fit(
        recipe=program.recipe.name,
        fits=compiled is not None and not short,
        devices={'kind': first.device_kind, 'count': len(placed), 'slices': len(set(slices))},
        mesh=dict(mesh.shape),
        batch={'images': config.batch_size, 'accumulate': config.accumulate},
        memory=memory,
        needed=needed,
        flops={'image': flops / config.batch_size, 'device': per_device, 'compiler': counted},
        collectives=rows,
        bounds=bounds,
        seconds=seconds,
        hlo=hlo,
    )


def measure_state(program: Program) -> dict[str, float]:
    """Bytes on one device of what the step is given, by our own count: padding is left out."""
    state = program.abstract
    parts = {
        'parameters': (state.params, state.batch_stats),
        'optimizer': state.opt_state,
        'teachers': state.teachers,
        'frozen': program.frozen,
        'batch': program.inputs(),
    }
    return {name: sum(map(size_on_device, jax.tree.leaves(tree))) for name, tree in parts.items()}


def size_on_device(leaf: jax.ShapeDtypeStruct) -> int:
    """Bytes of one device's part of an array."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def read_capacity(device: Any) -> float | None:
    """Bytes that a program may use of a device: a TPU's by the table, another's as it says itself; None where it does not."""
    if device.platform == 'tpu':  # one that is only described cannot be asked
        return find_chip(device.device_kind).capacity
    return (device.memory_stats() or {}).get('bytes_limit')


def sum_collectives(found: Sequence[Collective]) -> list[dict[str, Any]]:
    """A row for each kind, group size and crossing: how often, and bytes in a step on one device."""
    rows: dict[tuple, dict[str, Any]] = collections.defaultdict(
        lambda: {'count': 0, 'size': 0.0, 'sent': 0.0, 'exact': True}
    )
    for one in found:
        row = rows[one.kind, one.group, one.crosses]
        row['count'] += one.times
        row['size'] += one.times * one.size
        row['sent'] += one.times * one.sent
        row['exact'] &= one.exact
    ordered = sorted(rows.items(), key=lambda item: -item[1]['sent'])
    return [{'kind': kind, 'group': group, 'crosses': crosses, **row} for (kind, group, crosses), row in ordered]


def divide(amount: float | None, rate: float | None) -> float | None:
    """amount / rate, None where either is not known."""
    return None if amount is None or rate is None else amount / rate
