"""Compiled programs as text (HLO after all passes), parsed: computations, instructions, and how often each of them runs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

BITS = {'pred': 8, 'token': 0, 'opaque': 0}  # of an element whose type's name does not end with them
HEADER = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$')
START = re.compile(r'(?:ROOT )?%?([\w.\-]+) = ')
ARRAY = re.compile(r'([a-z]+\d*\w*)\[([\d,]*)\](?:\{([^}]*)\})?')
INDEX_COMMENT = re.compile(r'/\*index=\d+\*/')


@dataclass(frozen=True)
class Array:
    """Bytes of an array, padding left out; space: 0 is the device's main memory, others are on the chip (TPU: S(1))."""

    size: float
    space: int = 0


@dataclass(frozen=True)
class Instruction:
    """name = arrays opcode(operands), attributes."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    inside: str  # what stands between the parentheses, such as a constant's value
    attributes: str
    root: bool = False

    def called(self, *roles: str) -> list[str]:
        """The computations that it names under these attributes, such as 'body'."""
        found = []
        for role in roles:
            match = re.search(rf'\b{role}=(\{{[^}}]*\}}|%?[\w.\-]+)', self.attributes)
            found += re.findall(r'[\w.\-]+', match[1]) if match else []
        return found


@dataclass(frozen=True)
class Module:
    """computations: {name: {name of an instruction: it, in order}}; entry: the name of the one that runs."""

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str


@dataclass(frozen=True)
class Visit:
    """An instruction that runs `times` times in its computation; exact: no loop around it has an unknown length."""

    instruction: Instruction
    computation: str
    times: int
    exact: bool


def parse_hlo(text: str) -> Module:
    """The text of jax.stages.Compiled.as_text(). Raises ValueError where there is no entry computation."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = '', None
    for line in text.splitlines():
        if current is None:
            if match := HEADER.match(line):
                current = computations.setdefault(match[2], {})
                entry = match[2] if match[1] else entry
        elif line.startswith('}'):
            current = None
        elif instruction := parse_instruction(line.strip()):
            current[instruction.name] = instruction
    if not entry:
        raise ValueError('not the text of a compiled program: it has no ENTRY computation')
    return Module(computations, entry)


def parse_instruction(line: str) -> Instruction | None:
    """One line of a computation; None where it is none."""
    match = START.match(line)
    if match is None:
        return None
    rest = line[match.end() :]
    length = _close(rest, 0) if rest.startswith('(') else rest.index(' ')
    kind, rest = rest[:length], rest[length:].lstrip()
    opening = rest.index('(')
    closing = _close(rest, opening)
    inside = rest[opening + 1 : closing - 1]
    operands = re.findall(r'%([\w.\-]+)', INDEX_COMMENT.sub('', inside))
    arrays = tuple(_read_array(*found) for found in ARRAY.findall(INDEX_COMMENT.sub('', kind)))
    return Instruction(
        match[1], rest[:opening], arrays, tuple(operands), inside, rest[closing:], line.startswith('ROOT ')
    )


def _close(text: str, opening: int) -> int:
    """Just behind the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r'[()]').finditer(text, opening):
        depth += 1 if match[0] == '(' else -1
        if depth == 0:
            return match.end()
    raise ValueError(f'a parenthesis is never closed: {text[:80]}')


def _read_array(dtype: str, sides: str, layout: str) -> Array:
    digits = re.search(r'\d+', dtype)
    bits = BITS[dtype] if dtype in BITS else int(digits[0]) if digits else 0
    space = re.search(r'S\((\d+)\)', layout)
    return Array(math.prod(map(int, filter(None, sides.split(',')))) * bits / 8, int(space[1]) if space else 0)


def visit_instructions(module: Module) -> Iterator[Visit]:
    """What runs, loops' bodies as often as they do; every branch of a conditional once. Fusions are one instruction."""
    yield from _visit(module, module.entry, 1, True)


def _visit(module: Module, name: str, times: int, exact: bool) -> Iterator[Visit]:
    for instruction in module.computations[name].values():
        yield Visit(instruction, name, times, exact)
        if instruction.opcode == 'while':
            trips = count_trips(module, name, instruction)
            for body in instruction.called('body'):
                yield from _visit(module, body, times * (trips or 1), exact and trips is not None)
        elif instruction.opcode in ('conditional', 'call', 'async-start'):
            roles = ('branch_computations', 'true_computation', 'false_computation', 'to_apply', 'calls')
            for called in instruction.called(*roles):
                yield from _visit(module, called, times, exact)


def count_trips(module: Module, computation: str, loop: Instruction) -> int | None:
    """How often a while's body runs: as the compiler says, or from a condition `i < constant`; None where neither tells.

    jax.lax.scan counts from 0 by 1, so that the constant is the count.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
        return int(known[1])
    condition = module.computations[loop.called('condition')[0]]
    root = next(instruction for instruction in condition.values() if instruction.root)
    if root.opcode != 'compare' or 'direction=LT' not in root.attributes:
        return None
    counter, bound = (condition.get(name) for name in root.operands)
    if counter is None or counter.opcode != 'get-tuple-element' or bound is None or bound.opcode != 'constant':
        return None
    return int(bound.inside)
