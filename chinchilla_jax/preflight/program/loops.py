"""How often does a loop of a compiled program run?

The text of a TPU program does not say it (libtpu 0.0.42 writes no `known_trip_count`), so that it is worked out: the
condition compares a counter in the state of the loop, to which the body adds a constant, with a number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from chinchilla_jax.base.hlo import SAME_VALUE, Computation, Instruction, Module

_DIRECTION = re.compile(r"direction=(\w+)")
_MIRRORED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE", "EQ": "EQ"}
_DEEPEST = 32  # instructions that a scalar is followed through


class _Linear(NamedTuple):
    """`offset`, or element `index` of the state of a loop plus `offset`."""

    index: int | None
    offset: int


def trip_count(
    module: Module, computation: Computation, loop: Instruction, known: Mapping[int, int]
) -> tuple[int | None, dict[int, int]]:
    """How often a while loop runs, and those elements of its state that are known and stay what they are.

    Args:
      computation: where the loop stands.
      known: elements of that computation's own state with a known value, if it is the body of a loop.

    Returns:
      None as the count if it cannot be found.
    """
    body = module.computation(loop.called("body"), loop.name)
    condition = module.computation(loop.called("condition"), loop.name)
    last = body.instructions[body.root]
    start = computation.instructions.get(loop.operands[0])
    if start is None or start.opcode != "tuple" or last.opcode != "tuple":
        return None, {}
    first = {i: _number(module, computation, name, known) for i, name in enumerate(start.operands)}
    after = {i: _linear(module, body, name) for i, name in enumerate(last.operands)}
    constant = {i: value for i, value in first.items() if value is not None and after[i] == _Linear(i, 0)}

    compared = _comparison(module, condition, condition.instructions[condition.root], None)
    if compared is None:
        return None, constant
    direction, left, right = compared
    if left is not None and left.index in constant:
        left, right, direction = right, left, _MIRRORED[direction]
    if left is None or right is None or left.index is None:
        return None, constant
    limit = 0 if right.index is None else constant.get(right.index)
    begin, change = first[left.index], after[left.index]
    if begin is None or change is None or change.index != left.index or limit is None:
        return None, constant
    return _steps(begin, change.offset, limit + right.offset - left.offset, direction), constant


def _steps(begin: int, step: int, limit: int, direction: str) -> int | None:
    if direction in ("GT", "GE"):
        begin, step, limit, direction = -begin, -step, -limit, _MIRRORED[direction]
    if direction == "LE":
        limit, direction = limit + 1, "LT"
    if step <= 0 or direction not in ("LT", "NE") or (direction == "NE" and (limit - begin) % step):
        return None
    return max(0, -(-(limit - begin) // step))


def _number(module: Module, computation: Computation, name: str, known: Mapping[int, int]) -> int | None:
    value = _linear(module, computation, name)
    if value is None or value.index is None:
        return None if value is None else value.offset
    return known[value.index] + value.offset if value.index in known else None


def _linear(
    module: Module,
    computation: Computation,
    name: str,
    bound: Mapping[int, _Linear | None] | None = None,
    depth: int = _DEEPEST,
) -> _Linear | None:
    """A scalar as a linear function of the loop's state; `bound` are the parameters of a fused computation."""
    instruction = computation.instructions.get(name)
    if instruction is None or depth == 0:
        return None
    opcode = instruction.opcode
    if opcode == "constant":
        return _Linear(None, int(instruction.argument)) if re.fullmatch(r"-?\d+", instruction.argument) else None
    if opcode == "parameter":
        return bound.get(int(instruction.argument)) if bound else None
    if opcode == "get-tuple-element":
        return _element(module, computation, instruction, depth) if bound is None else None
    values = [_linear(module, computation, operand, bound, depth - 1) for operand in instruction.operands]
    if opcode == "fusion":
        callee = module.computation(instruction.called("calls"), instruction.name)
        return _linear(module, callee, callee.root, dict(enumerate(values)), depth - 1)
    return None if None in values or not values else _combined(opcode, values)


def _element(module: Module, computation: Computation, instruction: Instruction, depth: int) -> _Linear | None:
    """An element of the state, or of a tuple."""
    source = computation.instructions.get(instruction.operands[0])
    if source is not None and source.opcode == "parameter":
        return _Linear(instruction.index, 0)
    if source is not None and source.opcode == "tuple":
        return _linear(module, computation, source.operands[instruction.index], None, depth - 1)
    return None


def _combined(opcode: str, values: list[_Linear]) -> _Linear | None:
    """What an operation makes of linear functions, if that is one."""
    if opcode in SAME_VALUE:
        return values[0]
    if opcode not in ("add", "subtract", "multiply"):
        return None
    a, b = values
    if opcode == "multiply":
        return _Linear(None, a.offset * b.offset) if a.index is None and b.index is None else None
    if opcode == "subtract":
        return _Linear(a.index, a.offset - b.offset) if b.index is None else None
    if a.index is not None and b.index is not None:
        return None
    return _Linear(b.index if a.index is None else a.index, a.offset + b.offset)


def _comparison(
    module: Module, computation: Computation, instruction: Instruction, bound: Mapping[int, _Linear | None] | None
) -> tuple[str, _Linear | None, _Linear | None] | None:
    """Direction and both sides of a condition."""
    if instruction.opcode in SAME_VALUE:
        return _comparison(module, computation, computation.instructions[instruction.operands[0]], bound)
    if instruction.opcode == "fusion":
        values = [_linear(module, computation, name, bound) for name in instruction.operands]
        callee = module.computation(instruction.called("calls"), instruction.name)
        return _comparison(module, callee, callee.instructions[callee.root], dict(enumerate(values)))
    match = _DIRECTION.search(instruction.attributes)
    if instruction.opcode != "compare" or match is None:
        return None
    left, right = (_linear(module, computation, name, bound) for name in instruction.operands)
    return match[1], left, right
