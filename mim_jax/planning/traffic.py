"""Bytes between a device's main memory and its cores in one step, as far as a compiled program's text tells."""

from __future__ import annotations

from collections.abc import Mapping

from mim_jax.planning.hlo import Instruction, Module, visit_instructions

FREE = {  # nothing moves, or what moves is counted inside
    *('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id', 'replica-id'),
    *('while', 'conditional', 'call', 'optimization-barrier', 'custom-call'),
}
SLICES = ('dynamic-slice', 'slice', 'gather')  # read as much as they give


def count_bytes(module: Module) -> float:
    """What every instruction reads and writes of main memory, loops' bodies as often as they run.

    A fusion reads its operands and writes its results once; where it only takes a slice of an operand (a layer of stacked
    parameters), the slice, and where it only updates a part of one, the part. Arrays that the TPU compiler keeps on the chip
    are not counted. Custom calls, whose traffic is not in the text, are left out.
    """
    return sum(
        visit.times * count_instruction(module, module.computations[visit.computation], visit.instruction)
        for visit in visit_instructions(module)
    )


def count_instruction(module: Module, table: Mapping[str, Instruction], one: Instruction) -> float:
    """Bytes that one instruction of a computation reads and writes."""
    if one.opcode in FREE:
        return 0.0
    if one.opcode.endswith('-start'):  # the end writes; a slice's source is counted there too
        return 0.0 if one.opcode == 'slice-start' else sum(_main(table[name]) for name in one.operands if name in table)
    if one.opcode.endswith('-done'):
        return _main(one) + (_whole(one) if one.opcode == 'slice-done' else 0.0)
    if one.opcode in SLICES:
        return _whole(one) + _main(one) if _main(table[one.operands[0]]) else _main(one)
    if one.opcode == 'dynamic-update-slice':
        update = _whole(table[one.operands[1]])
        return update + (update if _main(one) else 0.0)
    reads = [table[name] for name in one.operands]
    if one.opcode != 'fusion':
        return sum(map(_main, reads)) + _main(one)
    fused = module.computations[one.called('calls')[0]]
    return sum(min(_main(read), _used(fused, number)) for number, read in enumerate(reads) if _main(read)) + _written(
        fused, one
    )


def _whole(one: Instruction) -> float:
    return sum(array.size for array in one.arrays)


def _main(one: Instruction) -> float:
    """Of its results, those in main memory."""
    return sum(array.size for array in one.arrays if array.space == 0)


def _used(fused: Mapping[str, Instruction], number: int) -> float:
    """What a fusion reads of its parameter: the slices taken, nothing of what is only overwritten in part, else all."""
    parameter = next(one for one in fused.values() if one.opcode == 'parameter' and one.inside == str(number))
    users = [one for one in fused.values() if parameter.name in one.operands]
    total = 0.0
    for user in users:
        if user.opcode in SLICES and user.operands[0] == parameter.name:
            total += _whole(user)
        elif user.opcode != 'dynamic-update-slice' or user.operands[0] != parameter.name:
            return float('inf')
    return total


def _written(fused: Mapping[str, Instruction], one: Instruction) -> float:
    """What a fusion writes: its results, or of one that is an updated operand, the update."""
    root = next(inner for inner in fused.values() if inner.root)
    results = [fused[name] for name in root.operands] if root.opcode == 'tuple' else [root] * len(one.arrays)
    total = 0.0
    for result, array in zip(results, one.arrays, strict=True):
        if array.space == 0:
            updated = result.opcode == 'dynamic-update-slice'
            total += _whole(fused[result.operands[1]]) if updated else array.size
    return total
