"""How often does a loop of a compiled program run?

The text of a TPU program does not say it (libtpu 0.0.42 writes no `known_trip_count`). So it is worked out: the
condition compares a counter in the state of the loop, to which the body adds a constant, with a number.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from chinchilla_jax.base.hlo import SAME_VALUE, Computation, Instruction, Module

_DIRECTION = re.compile(r"direction=(\w+)")
_MIRRORED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}
_ENDS = {"LT": (1, 0), "LE": (1, 1), "GT": (-1, 0), "GE": (-1, -1)}  # sign of the steps; how far beyond the limit
_NUMBER = -1  # as the element of a `_Linear` that is a number


class _Linear(NamedTuple):
    """Element `element` of the state of a loop plus `offset`, or only `offset`."""

    element: int
    offset: int


@dataclasses.dataclass(frozen=True)
class _Scope:
    """A computation, with known elements of its state; of a fused one the fusion, and the scope where that stands."""

    module: Module
    computation: Computation
    known: Mapping[int, int] = dataclasses.field(default_factory=dict)
    call: tuple[_Scope, Instruction] | None = None


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
    body, condition = (module.computation(loop.called(role), loop.name) for role in ("body", "condition"))
    outside, start = _definition(_Scope(module, computation, known), loop.operands[0])
    inside, last = _definition(_Scope(module, body), body.root)
    if start.opcode != "tuple" or last.opcode != "tuple":
        return None, {}
    first = [_linear(outside, name) for name in start.operands]
    after = [_linear(inside, name) for name in last.operands]
    numbers = {i: value.offset for i, value in enumerate(first) if value and value.element == _NUMBER}
    constant = {i: number for i, number in numbers.items() if after[i] == (i, 0)}
    for counter, end, direction in _comparisons(_Scope(module, condition, constant)):
        change = after[counter] if counter in numbers else None
        if change and change.element == counter:
            return _turns(numbers[counter], change.offset, end, direction), constant
    return None, constant


def _comparisons(condition: _Scope) -> Iterator[tuple[int, int, str]]:
    """The comparison that the condition of a loop is, read from either side: an element, its limit, the direction."""
    scope, compare = _definition(condition, condition.computation.root)
    if compare.opcode == "compare" and (match := _DIRECTION.search(compare.attributes)):
        left, right = (_linear(scope, name) for name in compare.operands)
        mirrored = _MIRRORED.get(match[1], match[1])
        for counter, limit, direction in ((left, right, match[1]), (right, left, mirrored)):
            if counter and limit and limit.element == _NUMBER:
                yield counter.element, limit.offset - counter.offset, direction


def _turns(begin: int, step: int, limit: int, direction: str) -> int | None:
    """How often `begin`, `begin + step`, ... compares so with the limit; None if it always does."""
    if direction == "NE" and step and (limit - begin) % step == 0:
        direction = "LT" if step > 0 else "GT"
    sign, beyond = _ENDS.get(direction, (0, 0))
    return len(range(begin, limit + beyond, step)) if sign * step > 0 else None


def _definition(scope: _Scope, name: str) -> tuple[_Scope, Instruction]:
    """The instruction that makes a value, and its scope: found through what only passes the value on."""
    instruction = scope.computation.instructions[name]
    if instruction.opcode in SAME_VALUE:
        return _definition(scope, instruction.operands[0])
    if instruction.opcode == "fusion":
        called = scope.module.computation(instruction.called("calls"), name)
        return _definition(_Scope(scope.module, called, call=(scope, instruction)), called.root)
    if instruction.opcode == "parameter" and scope.call:
        outside, fusion = scope.call
        return _definition(outside, fusion.operands[int(instruction.argument)])
    if instruction.opcode == "get-tuple-element":
        place, source = _definition(scope, instruction.operands[0])
        if source.opcode == "tuple":
            return _definition(place, source.operands[instruction.index])
    return scope, instruction


def _linear(scope: _Scope, name: str) -> _Linear | None:
    """An integer as a linear function of the state of the loop; None if it is not known to be one."""
    scope, instruction = _definition(scope, name)
    opcode = instruction.opcode
    if opcode == "constant" and re.fullmatch(r"-?\d+", instruction.argument):
        return _Linear(_NUMBER, int(instruction.argument))
    if opcode == "get-tuple-element":
        place, source = _definition(scope, instruction.operands[0])
        index = instruction.index
        if source.opcode != "parameter":
            return None
        return _Linear(_NUMBER, place.known[index]) if index in place.known else _Linear(index, 0)
    if opcode not in ("add", "subtract") or instruction.type[0] not in "su":
        return None
    left, right = (_linear(scope, operand) for operand in instruction.operands)
    if left and right and right.element == _NUMBER:
        return _Linear(left.element, left.offset + (right.offset if opcode == "add" else -right.offset))
    if left and right and left.element == _NUMBER and opcode == "add":
        return _Linear(right.element, left.offset + right.offset)
    return None
