"""What does the text of a compiled module say? Computations of instructions, and arrays with their bytes.

A small reader of the scheduled HLO that `compiled.as_text()` prints. `preflight/program` counts by it what a step does,
and the meter of kernels (`tools/tpu_meter`) finds the kernels and their constants. Nothing that trains imports it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

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
_BRANCHES = re.compile(r"\b(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))")
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
        return next((name for kind, name in _CALLED.findall(self.attributes) if kind == role), None)

    @property
    def branches(self) -> tuple[str, ...]:
        """The computations of a conditional."""
        lists = [name for groups in _BRANCHES.findall(self.attributes) for name in groups if name]
        return tuple(name.strip(" %") for names in lists for name in names.split(","))

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
        users: dict[str, list[Instruction]] = {}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                users.setdefault(operand, []).append(instruction)
        return {name: tuple(instructions) for name, instructions in users.items()}

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
        """One that `caller` calls; raises `HloError` if it is not in the text."""
        if name is None or name not in self.computations:
            raise HloError(f"{caller}: calls the computation {name!r}, which is not in the text")
        return self.computations[name]


@functools.lru_cache(maxsize=65536)
def arrays(text: str) -> tuple[Array, ...]:
    """The arrays in a type; raises `HloError` for a type whose bytes are not known."""
    result = []
    for dtype, dims, layout in _ARRAY.findall(text):
        if dtype == "token":
            continue
        bits = 8 if dtype == "pred" else int(match[1]) if (match := _BITS.match(dtype)) else None
        if bits is None or not re.fullmatch(r"[\d,]*", dims):
            raise HloError(f"an array of unknown size: {dtype}[{dims}]")
        shape = tuple(int(extent) for extent in dims.split(",") if extent)
        space = _SPACE.search(layout)
        result.append(Array(dtype, shape, int(space[1]) if space else 0, -(-math.prod(shape) * bits // 8)))
    return tuple(result)


def parse_module(text: str) -> Module:
    """The module in a text; raises `HloError` if it is not the text of a scheduled module."""
    head = text[: text.find("\n")]
    if not head.startswith("HloModule") or "is_scheduled=true" not in head:
        raise HloError("not the text of a compiled program: it must begin with HloModule and be scheduled")
    computations: dict[str, Computation] = {}
    entry = name = root = None
    instructions: dict[str, Instruction] = {}
    for line in _whole_lines(text):
        if line.startswith(" "):
            if name is not None and (match := _INSTRUCTION.match(line)):
                instruction = _instruction(match)
                instructions[instruction.name] = instruction
                root = instruction.name if match[1] else root
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


def _whole_lines(text: str) -> Iterator[str]:
    """Lines, with those rejoined that a line break inside an attribute has cut."""
    whole = ""
    for line in text.splitlines():
        if line.startswith(('"', "}}")):
            whole += line
        else:
            yield whole
            whole = line
    yield whole


def _instruction(match: re.Match) -> Instruction:
    _, name, type_, opcode, rest = match.groups()
    end = _closing(rest) if opcode == "constant" else rest.find(")")
    operands = () if opcode in ("constant", "parameter") else tuple(_OPERAND.findall(rest[:end]))
    return Instruction(name, type_, opcode, operands, rest[:end], rest[end + 1 :])


def _closing(text: str) -> int:
    """Where the parenthesis that is open at the start of the text closes."""
    depth = 1
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)
