"""What does the text of a compiled module say? Computations of instructions, arrays with their bytes, trips of loops.

A small reader of the scheduled HLO that `compiled.as_text()` prints. The meter of kernels has its own
(`tools/tpu_meter/hlo.py`), which follows constants to their words and needs none of this.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\d\-]*)\((.*)")
_OPERAND = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([^\]]*)\](?:\{([^}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_BITS = re.compile(r"[a-z]+?(\d+)")
_PARTITIONS = re.compile(r"\bnum_partitions=(\d+)")
_REPLICAS = re.compile(r"\breplica_count=(\d+)")
_ALIAS = re.compile(r"\{(\d*)\}: \(\d+, ")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(r"\b(calls|to_apply|condition|body)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations=\{([^}]*)\}|true_computation=%?([\w.\-]+)"
                       r"|false_computation=%?([\w.\-]+))")  # fmt: skip
_DIRECTION = re.compile(r"direction=(\w+)")
_INDEX = re.compile(r"index=(\d+)")

# What only passes a value on.
SAME_VALUE = frozenset(("copy", "bitcast", "convert", "reshape", "optimization-barrier", "copy-start", "copy-done"))


class HloError(ValueError):
    """A text that this reader does not understand. Counting on would give a number that is wrong."""


@dataclasses.dataclass(frozen=True, slots=True)
class Array:
    """An array in a type. `space` is its memory: 0 is HBM, 1 is VMEM; tiles' padding is not in `bytes`."""

    dtype: str
    shape: tuple[int, ...]
    space: int
    bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
    """`name = type opcode(operands), attributes`. `argument` is the text between the parentheses."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    argument: str
    attributes: str

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of its result, those of a tuple one after the other."""
        return arrays(self.type)

    @property
    def op_name(self) -> str:
        """Where in the program it comes from; empty if the compiler does not say."""
        match = _OP_NAME.search(self.attributes)
        return match[1] if match else ""

    def called(self, role: str) -> str | None:
        """The computation it calls as `calls`, `to_apply`, `condition` or `body`."""
        return next((name for found, name in _CALLED.findall(self.attributes) if found == role), None)

    @property
    def branches(self) -> tuple[str, ...]:
        """The computations of a conditional."""
        found = [name for groups in _BRANCHES.findall(self.attributes) for name in groups if name]
        return tuple(name.strip(" %") for names in found for name in names.split(","))

    @property
    def index(self) -> int:
        """Which element a get-tuple-element takes."""
        match = _INDEX.search(self.attributes)
        if match is None:
            raise HloError(f"{self.name}: a get-tuple-element without an index")
        return int(match[1])


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order of the schedule, and the name of the last."""

    name: str
    instructions: Mapping[str, Instruction]
    root: str

    @functools.cached_property
    def users(self) -> Mapping[str, tuple[Instruction, ...]]:
        """The instructions that take each instruction as an operand."""
        found: dict[str, list[Instruction]] = {}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                found.setdefault(operand, []).append(instruction)
        return {name: tuple(users) for name, users in found.items()}

    @functools.cached_property
    def parameters(self) -> Mapping[int, str]:
        """Names of the parameters by their number."""
        return {int(i.argument): i.name for i in self.instructions.values() if i.opcode == "parameter"}


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program. `aliased` are the elements of its result that share the buffer of a donated argument."""

    computations: Mapping[str, Computation]
    entry: Computation
    devices: int
    aliased: frozenset[int]

    def computation(self, name: str | None, caller: str) -> Computation:
        """One that an instruction calls.

        Raises:
          HloError: it is not in the text.
        """
        if name not in self.computations:
            raise HloError(f"{caller}: calls the computation {name!r}, which is not in the text")
        return self.computations[name]


@functools.lru_cache(maxsize=65536)
def arrays(text: str) -> tuple[Array, ...]:
    """The arrays in a type.

    Raises:
      HloError: a type whose bytes are not known.
    """
    found = []
    for dtype, dims, layout in _ARRAY.findall(text):
        if dtype == "token":
            continue
        bits = 8 if dtype == "pred" else int(match[1]) if (match := _BITS.match(dtype)) else None
        if bits is None or not re.fullmatch(r"[\d,]*", dims):
            raise HloError(f"an array of unknown size: {dtype}[{dims}]")
        shape = tuple(int(extent) for extent in dims.split(",") if extent)
        space = _SPACE.search(layout)
        found.append(Array(dtype, shape, int(space[1]) if space else 0, -(-math.prod(shape) * bits // 8)))
    return tuple(found)


def parse_module(text: str) -> Module:
    """The module in a text.

    Raises:
      HloError: it is not the text of a scheduled module.
    """
    head = text[: text.find("\n")]
    if not head.startswith("HloModule") or "is_scheduled=true" not in head:
        raise HloError("not the text of a compiled program: it must begin with HloModule and be scheduled")
    computations: dict[str, Computation] = {}
    entry = name = root = None
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        if line.startswith(" "):
            if name is None or not (match := _INSTRUCTION.match(line)):
                continue
            is_root, instruction, kind, opcode, rest = match.groups()
            end = _closing(rest) if opcode == "constant" else rest.find(")")
            argument = rest[:end]
            operands = () if opcode in ("constant", "parameter") else tuple(_OPERAND.findall(argument))
            instructions[instruction] = Instruction(instruction, kind, opcode, operands, argument, rest[end + 1 :])
            root = instruction if is_root else root
        elif line.startswith("}") and name is not None and root is not None:
            computations[name] = Computation(name, instructions, root)
            name = root = None
        elif match := _HEAD.match(line):
            name, root, instructions = match[2], None, {}
            entry = name if match[1] else entry
    if entry not in computations:
        raise HloError("the text has no entry computation, or ends before its end")
    devices = [int(match[1]) for pattern in (_PARTITIONS, _REPLICAS) if (match := pattern.search(head))]
    alias = head[head.find("input_output_alias=") : head.find("entry_computation_layout=")]
    aliased = frozenset(int(index or 0) for index in _ALIAS.findall(alias)) if "input_output_alias=" in head else ()
    return Module(computations, computations[entry], math.prod(devices), frozenset(aliased))


def _closing(text: str) -> int:
    """Where the parenthesis that is open at the start of the text closes."""
    depth = 1
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)


@dataclasses.dataclass(frozen=True)
class _Linear:
    """`offset`, or element `index` of the state of a loop plus `offset`."""

    index: int | None
    offset: int


def trip_count(module: Module, computation: Computation, loop: Instruction,
               known: Mapping[int, int]) -> tuple[int | None, dict[int, int]]:  # fmt: skip
    """How often a while loop runs, and those elements of its state that are known and stay what they are.

    The loop must count: its condition compares an element of the state, to which the body adds a constant, with a
    number that can be found.

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
    after = {i: _linear(module, body, name, None) for i, name in enumerate(last.operands)}
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


_MIRRORED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE", "EQ": "EQ"}


def _steps(begin: int, step: int, limit: int, direction: str) -> int | None:
    if direction in ("GT", "GE"):
        begin, step, limit, direction = -begin, -step, -limit, _MIRRORED[direction]
    if direction == "LE":
        limit, direction = limit + 1, "LT"
    if step <= 0 or direction not in ("LT", "NE") or (direction == "NE" and (limit - begin) % step):
        return None
    return max(0, -(-(limit - begin) // step))


def _number(module: Module, computation: Computation, name: str, known: Mapping[int, int]) -> int | None:
    value = _linear(module, computation, name, None)
    if value is None:
        return None
    if value.index is None:
        return value.offset
    return known[value.index] + value.offset if value.index in known else None


def _linear(module: Module, computation: Computation, name: str,
            bound: Mapping[int, _Linear | None] | None, depth: int = 32) -> _Linear | None:  # fmt: skip
    """A scalar as a linear function of the loop's state; `bound` are the parameters of a fused computation."""
    instruction = computation.instructions.get(name)
    if instruction is None or depth == 0:
        return None
    opcode = instruction.opcode
    if opcode == "constant":
        return _Linear(None, int(instruction.argument)) if re.fullmatch(r"-?\d+", instruction.argument) else None
    if opcode == "parameter":
        return bound.get(int(instruction.argument)) if bound else None
    if opcode == "get-tuple-element" and bound is None:
        source = computation.instructions.get(instruction.operands[0])
        if source is not None and source.opcode == "parameter":
            return _Linear(instruction.index, 0)
        if source is not None and source.opcode == "tuple":
            return _linear(module, computation, source.operands[instruction.index], bound, depth - 1)
        return None
    if opcode not in SAME_VALUE and opcode not in ("add", "subtract", "multiply", "fusion"):
        return None
    values = [_linear(module, computation, operand, bound, depth - 1) for operand in instruction.operands]
    if opcode == "fusion":
        callee = module.computation(instruction.called("calls"), instruction.name)
        return _linear(module, callee, callee.root, dict(enumerate(values)), depth - 1)
    if None in values or not values:
        return None
    if opcode in SAME_VALUE:
        return values[0]
    a, b = values
    if opcode == "multiply":
        return _Linear(None, a.offset * b.offset) if a.index is None and b.index is None else None
    if opcode == "subtract":
        return _Linear(a.index, a.offset - b.offset) if b.index is None else None
    if a.index is not None and b.index is not None:
        return None
    return _Linear(b.index if a.index is None else a.index, a.offset + b.offset)


def _comparison(module: Module, computation: Computation, instruction: Instruction,
                bound: Mapping[int, _Linear | None] | None):  # fmt: skip
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
