"""Which kernels does a compiled program call, and which of their operands are constants?

Kernels read tables (which blocks to skip, how many there are) that a program often holds as constants. A branch that
depends on one can be decided, so the meter wants their words as they lie in the kernel's scalar memory.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Mapping

from chinchilla_jax.base.hlo import Instruction, Module, parse_module

Words = Mapping[int, int]

_BYTES = {"s8": 1, "u8": 1, "pred": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4}
_KERNEL = 'custom_call_target="tpu_custom_call"'
_SAME_WORDS = ("copy", "copy-done", "copy-start", "bitcast", "reshape")
_TYPE = re.compile(r"(\w+)\[([\d,]*)\](\{.*\})?")
_VMEM = re.compile(r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"\d+","size":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Program:
    """An HLO module and the calls of Pallas kernels in it, by the names of their instructions."""

    module: Module

    @functools.cached_property
    def _instructions(self) -> Mapping[str, Instruction]:
        """Of all computations, in the order of the text."""
        computations = self.module.computations.values()
        return {name: i for computation in computations for name, i in computation.instructions.items()}

    @functools.cached_property
    def _states(self) -> Mapping[str, str]:
        """By the name of the parameter of a loop's body, the name of what the loop starts with."""
        loops = (i for i in self._instructions.values() if i.opcode == "while")
        bodies = ((self.module.computation(loop.called("body"), loop.name), loop.operands[0]) for loop in loops)
        return {body.parameters[0]: start for body, start in bodies}

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the calls of Pallas kernels, in the order of the text."""
        return tuple(name for name, call in self._instructions.items() if _KERNEL in call.attributes)

    def same_kernel(self, name: str, other: str) -> bool:
        """Whether two calls run the same code, so that the compiler schedules it once for both."""
        return self._configuration(name) == self._configuration(other)

    def vmem_bytes(self, kernel: str) -> int | None:
        """Scoped VMEM that a kernel uses."""
        match = _VMEM.search(self._instructions[kernel].attributes)
        return int(match[1]) if match else None

    def constant_operands(self, kernel: str) -> dict[int, Words]:
        """`{operand: its words}` of the operands of a call that are integer constants."""
        words = {index: self.constant(name) for index, name in enumerate(self._instructions[kernel].operands)}
        return {index: constant for index, constant in words.items() if constant}

    def constant(self, name: str, depth: int = 12) -> Words | None:
        """The words of an integer array in the layout it has in memory; None if it is no constant.

        Follows copies, tables of one value, and the invariants that a while loop carries, over at most `depth`
        instructions.
        """
        instruction = self._instructions.get(name)
        if instruction is None or depth == 0:
            return None
        if instruction.opcode == "constant":
            return _constant_words(instruction.type, instruction.argument)
        if instruction.opcode == "broadcast":  # of one number, which stands for all
            source = self._instructions.get(instruction.operands[0])
            if source is None or source.opcode != "constant" or "[]" not in source.type:
                return None
            return _constant_words(instruction.type, source.argument)
        if instruction.opcode in _SAME_WORDS:
            return self.constant(instruction.operands[0], depth - 1)
        if instruction.opcode == "get-tuple-element":
            state = self._states.get(instruction.operands[0], instruction.operands[0])
            values = self._instructions.get(state)
            if values is not None and values.opcode == "tuple":
                return self.constant(values.operands[instruction.index], depth - 1)
        return None

    def _configuration(self, name: str) -> str:
        return self._instructions[name].attributes.partition("backend_config=")[2]


def parse_program(text: str) -> Program:
    """The program in an HLO text, large constants included.

    Raises:
      HloError: it is not the text of a scheduled module.
    """
    return Program(parse_module(text))


def _constant_words(type_: str, values: str) -> Words | None:
    match = _TYPE.match(type_)
    if match is None or match[1] not in _BYTES or "..." in values:
        return None
    values = re.sub(r"/\*.*?\*/", "", values).replace("true", "1").replace("false", "0")
    numbers = [int(number) for number in re.findall(r"-?\d+", values)]
    return memory_words(numbers, [int(d) for d in match[2].split(",") if d], _BYTES[match[1]], match[3] or "")


def memory_words(values: list[int], shape: list[int], size: int, layout: str) -> Words | None:
    """Where the values of an array lie: `{index of the 32-bit word: word}`.

    Args:
      values: row by row, or a single one for all.
      shape: of the array; the last two axes are tiled.
      size: bytes of a value: 1, 2 or 4.
      layout: the layout in HLO, `{1,0:T(8,128)(4,1)}`. Two numbers in T are a tile of rows and columns, in which values
        smaller than a word share it with those of the rows below; one number is a flat array, in which they share it
        with their neighbours.
    """
    count = math.prod(shape)
    if len(values) == 1:
        values = values * count
    if len(values) != count:
        return None
    tile = re.search(r"T\((\d+)(?:,(\d+))?\)", layout)
    packed, bits = 4 // size, 8 * size
    words: dict[int, int] = collections.defaultdict(int)
    if tile and not tile[2]:
        for index, value in enumerate(values):
            words[index // packed] |= (value & (1 << bits) - 1) << bits * (index % packed)
        return dict(words)
    tile_rows, tile_columns = (int(tile[1]), int(tile[2])) if tile else (1, 128)
    rows, columns = ([1, 1, *shape])[-2:]
    tiles_down, tiles_across = -(-rows // tile_rows), -(-columns // tile_columns)
    for index, value in enumerate(values):
        plane, row, column = index // (rows * columns), index // columns % rows, index % columns
        tile_number = (plane * tiles_down + row // tile_rows) * tiles_across + column // tile_columns
        word = tile_number * (tile_rows * tile_columns // packed)
        word += row % tile_rows // packed * tile_columns + column % tile_columns
        words[word] |= (value & (1 << bits) - 1) << bits * (row % tile_rows % packed)
    return dict(words)
