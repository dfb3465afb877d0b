"""Which kernels does a compiled program call, and which of their operands are constants?

Kernels read tables (which blocks to skip, how many there are) that a program often holds as constants. A branch that
depends on one can be decided, so the meter wants their words as they lie in the kernel's scalar memory. This reads as
much of an HLO text as that takes.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping

Words = Mapping[int, int]

_BYTES = {"s8": 1, "u8": 1, "pred": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4}
_KERNEL = 'custom_call_target="tpu_custom_call"'
_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%([\w.\-]+) = (.*)")
_WHILE = re.compile(r" while\(%([\w.\-]+)\).*body=%([\w.\-]+)")
_NAME = re.compile(r"%([\w.\-]+)")
_CONSTANT = re.compile(r"(\w+)\[([\d,]*)\](\{[^ ]*\})? constant\((.*)")
_BROADCAST = re.compile(r"(\w+)\[([\d,]*)\](\{[^ ]*\})? broadcast\(%([\w.\-]+)\)")
_ELEMENT = re.compile(r" get-tuple-element\(%([\w.\-]+)\), index=(\d+)")
_SAME_WORDS = re.compile(r" (?:copy|copy-done|copy-start|bitcast|reshape)\(%([\w.\-]+)")
_VMEM = re.compile(r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"\d+","size":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Program:
    """An HLO module: the right-hand side of each instruction by name, the computation it stands in, and for each
    body of a while loop the name of the tuple that the loop starts with."""

    instructions: Mapping[str, str]
    computations: Mapping[str, str | None]
    loops: Mapping[str, str]

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the calls of Pallas kernels, in the order of the text."""
        return tuple(name for name, text in self.instructions.items() if _KERNEL in text)

    def same_kernel(self, name: str, other: str) -> bool:
        """Whether two calls run the same code, so that the compiler schedules it once for both."""
        return self._configuration(name) == self._configuration(other)

    def vmem_bytes(self, kernel: str) -> int | None:
        """Scoped VMEM that a kernel uses."""
        match = _VMEM.search(self.instructions[kernel])
        return int(match[1]) if match else None

    def constant_operands(self, kernel: str) -> dict[int, Words]:
        """`{operand: its words}` of the operands of a call that are integer constants."""
        names = _names_within(self.instructions[kernel], "custom-call(")
        found = {index: self.constant(name) for index, name in enumerate(names)}
        return {index: words for index, words in found.items() if words}

    def constant(self, name: str, depth: int = 12) -> Words | None:
        """The words of an integer array in the layout it has in memory; None if it is no constant.

        Follows copies, tables of one value, and the invariants that a while loop carries, over at most `depth`
        instructions.
        """
        text = self.instructions.get(name)
        if text is None or depth == 0:
            return None
        if match := _CONSTANT.match(text):
            return _constant_words(*match.groups())
        if match := _BROADCAST.match(text):  # of one number, which stands for all
            dtype, dims, layout, source = match.groups()
            scalar = _CONSTANT.match(self.instructions.get(source, ""))
            return _constant_words(dtype, dims, layout, scalar[4]) if scalar and not scalar[2] else None
        if match := _SAME_WORDS.search(text):
            return self.constant(match[1], depth - 1)
        if match := _ELEMENT.search(text):
            source, index = match[1], int(match[2])
            text = self.instructions.get(source, "")
            loop = self.loops.get(self.computations.get(source) or "")
            if " parameter(0)" in text and loop:
                text = self.instructions.get(loop, "")
            names = _names_within(text, " tuple(")
            return self.constant(names[index], depth - 1) if index < len(names) else None
        return None

    def _configuration(self, name: str) -> str:
        return self.instructions[name].partition("backend_config=")[2]


def parse_program(text: str) -> Program:
    """The program in an HLO text, large constants included."""
    instructions: dict[str, str] = {}
    computations: dict[str, str | None] = {}
    loops: dict[str, str] = {}
    computation = None
    for line in _whole_lines(text):
        if head := _COMPUTATION.match(line):
            computation = head[1]
        elif (match := _INSTRUCTION.match(line)) and match[1] not in instructions:
            instructions[match[1]] = match[2]
            computations[match[1]] = computation
            if loop := _WHILE.search(line):
                loops[loop[2]] = loop[1]
    return Program(instructions, computations, loops)


def _whole_lines(text: str) -> list[str]:
    """Lines with those rejoined that a line break inside an attribute has cut."""
    lines: list[str] = []
    for line in text.splitlines():
        if lines and re.match(r'"|\}\}', line):
            lines[-1] += line
        else:
            lines.append(line)
    return lines


def _names_within(text: str, opening: str) -> list[str]:
    start = text.find(opening)
    return _NAME.findall(text[start : text.find(")", start)]) if start >= 0 else []


def _constant_words(dtype: str, dims: str, layout: str | None, body: str) -> Words | None:
    if dtype not in _BYTES or "..." in body:
        return None
    body = re.sub(r"/\*.*?\*/", "", body)
    body = body[: body.rindex(")")] if ")" in body else body
    body = body.split("), ")[0].replace("true", "1").replace("false", "0")
    values = [int(number) for number in re.findall(r"-?\d+", body)]
    return memory_words(values, [int(d) for d in dims.split(",") if d], _BYTES[dtype], layout or "")


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
    count = 1
    for extent in shape:
        count *= extent
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
