"""What devices tell one another in a compiled program: kinds, counts, bytes, and whether it leaves a slice."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mim_jax.planning.hlo import Instruction, Module, visit_instructions

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'ragged-all-to-all', 'collective-permute')
BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
FUSED_SCATTER = 'all-reduce-scatter'  # how the TPU compiler names the computation of a reduce-scatter


@dataclass(frozen=True)
class Collective:
    """One collective instruction.

    times: how often it runs in a step; exact: False where a loop of unknown length is around it, counted once; size: bytes
    of the whole array on one device of a group: before a reduce-scatter, after an all-gather; group: devices that take part
    together; crosses: whether devices of different slices do, None where the program does not say who takes part.
    """

    kind: str
    times: int
    exact: bool
    size: float
    group: int
    crosses: bool | None

    @property
    def sent(self) -> float:
        """Bytes that a device sends, in one run, by the ring algorithm: the least there is, up to what latency prefers."""
        others = (self.group - 1) / self.group
        if self.kind == 'all-reduce':
            return 2 * others * self.size
        return self.size if self.kind == 'collective-permute' else others * self.size


def find_collectives(module: Module, slices: Sequence[int]) -> list[Collective]:
    """Every collective that runs. slices: the slice of each device, in the order of the program's device numbers.

    The TPU compiler spreads an asynchronous collective over fusions that repeat it, from async-collective-start over
    async_collective_fusion to async-collective-done: the first counts. A fusion of all-reduce and slice is a reduce-scatter.
    Between slices the hosts do the work: the program sends them what is to be reduced or gathered.
    """
    found = []
    for visit in visit_instructions(module):
        for kind, one, table in _look_inside(module, visit.computation, visit.instruction):
            size = sum(array.size for name in one.operands for array in table[name].arrays)
            if one.opcode == 'send':
                group, crosses = len(set(slices)), True
            else:
                groups = read_groups(one.attributes, len(slices))
                group = max(map(len, groups)) if groups else len(slices)
                crosses = None if groups is None else any(len({slices[i] for i in row}) > 1 for row in groups)
            if kind == 'all-gather':
                size *= group
            if group > 1:
                found.append(Collective(kind, visit.times, visit.exact, size, group, crosses))
    return found


def _look_inside(
    module: Module, computation: str, instruction: Instruction
) -> Iterable[tuple[str, Instruction, Mapping[str, Instruction]]]:
    """(kind, collective, the computation it stands in) of an instruction, or of what a fusion does first."""
    table = module.computations[computation]
    kind = instruction.opcode.removesuffix('-start')
    if kind in KINDS:
        yield kind, instruction, table
    if kind == 'send' and (transfer := BETWEEN_SLICES.search(instruction.attributes)):
        yield transfer[1].lower().replace('_', '-'), instruction, table
    if instruction.opcode != 'fusion' or instruction.name.startswith('async-collective-done'):
        return
    for called in instruction.called('calls'):
        if called.startswith('async_collective_fusion'):
            continue
        for inner in module.computations[called].values():
            for kind, one, place in _look_inside(module, called, inner):
                scattered = kind == 'all-reduce' and called.startswith(FUSED_SCATTER)
                yield 'reduce-scatter' if scattered else kind, one, place


def read_groups(attributes: str, devices: int) -> list[list[int]] | None:
    """The devices that take part together; None where all do and are not named, or where the form is not known.

    Forms: {{0,1},{2,3}}; [2,2]<=[4], or [2,2]<=[2,2]T(1,0): all numbers in order, reshaped, transposed and reshaped;
    mesh['a'=2,'b'=2] {'a'}, with or without device_ids=(...) in the second form: the axes that take part, whole. Of a
    collective-permute, the pairs.
    """
    if pairs := re.search(r'source_target_pairs=\{(\{.*?\})\}', attributes):
        return _read_braces(pairs[1])
    if listed := re.search(r'replica_groups=\{(\{.*?\})\}', attributes):
        return _read_braces(listed[1])
    if iota := re.search(r'replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)', attributes):
        return _read_iota(iota[1]).tolist()
    mesh = re.search(r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{}]*)\))? ?\{([^}]*)\}', attributes)
    if mesh is None or ':' in mesh[3]:  # parts of axes are not read
        return [list(range(devices))] if 'replica_groups={}' in attributes else None
    names, sides = zip(*re.findall(r"'(\w+)'=(\d+)", mesh[1]), strict=True)
    sides, taking = [int(side) for side in sides], re.findall(r"'(\w+)'", mesh[3])
    ids = np.arange(math.prod(sides)) if mesh[2] is None else _read_ids(mesh[2], math.prod(sides))
    if ids is None or not set(taking) <= set(names):
        return None
    order = sorted(range(len(names)), key=lambda axis: names[axis] in taking)
    size = math.prod(side for name, side in zip(names, sides, strict=True) if name in taking)
    return ids.reshape(sides).transpose(order).reshape(-1, size).tolist()


def _read_braces(text: str) -> list[list[int]]:
    return [[int(number) for number in row.split(',')] for row in re.findall(r'\{([\d,]+)\}', text)]


def _read_ids(text: str, count: int) -> np.ndarray | None:
    """A mesh's device numbers: '[16,16]T(1,0)' is '[256]<=[16,16]T(1,0)'."""
    return _read_iota(f'[{count}]<={text}') if re.fullmatch(r'\[[\d,]+\](?:T\([\d,]+\))?', text) else None


def _read_iota(text: str) -> np.ndarray:
    wanted, given, order = re.fullmatch(r'\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', text).groups()
    wanted, given = ([int(side) for side in sides.split(',')] for sides in (wanted, given))
    numbers = np.arange(math.prod(given)).reshape(given)
    if order:
        numbers = numbers.transpose([int(axis) for axis in order.split(',')])
    return numbers.reshape(wanted)
