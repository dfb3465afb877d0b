"""What does the compiler issue in each cycle of a kernel?

Reads two dumps of libtpu. The schedule (`*-packed-bundles-post-ra.txt`) has a line per bundle,

     0x6e LB: > { %s9_s1 = sadd.s32 1, %s8_s0  ;;  %p2_p0 = scmp.lt.s32.totalorder %s9_s1, 4 /* comment */ }

with its number, a mark (LB: first bundle of a loop), one `>` per loop around it, and the instructions that are issued
together. The table of slots (`*-hlo-static-per-bundle-utilization.txt`) says how many units of each kind they occupy.
"""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

from chinchilla_jax.base.chips import Chip, Core
from chinchilla_jax.tools.tpu_meter import DumpError, MeterError

SLOTS = ("MXU", "XLU", "VALU", "VPOP", "EUP", "VLOAD", "FILL", "VSTORE", "SPILL", "SALU")

_BUNDLE = re.compile(r"^\s*(0x[0-9a-f]+|0)\s+([A-Z]{2})?\s*:((?:\s*>)*)\s*\{", re.M)
_INSTRUCTION = re.compile(r"%(\w+)\s*=\s*([a-z][\w.]*(?:\[\w+\][\w.]*)*)(.*)", re.S)
_EIGHT_BITS = re.compile(r"\.(s8|u8|f8\w*|s4|u4)")


class Instruction(NamedTuple):
    """`%result = opcode arguments`, comments removed."""

    result: str
    opcode: str
    arguments: str


@dataclasses.dataclass(frozen=True)
class Bundle:
    """Instructions issued in one cycle, inside `depth` loops; `loop_head` if a loop begins with it."""

    instructions: tuple[Instruction, ...]
    depth: int = 0
    loop_head: bool = False


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The bundles of a kernel in order, and the grid of its Pallas call (None if it is dynamic)."""

    bundles: tuple[Bundle, ...]
    grid: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class SlotUse:
    """Units of each of `SLOTS` that a core has, and how many of them each bundle occupies [bundles, slots]."""

    capacity: tuple[int, ...]
    used: tuple[tuple[int, ...], ...]


def parse_schedule(text: str, source: str = "schedule") -> Schedule:
    """The schedule in a dump; `source` names it in messages.

    Raises:
      DumpError: no bundles, or bundles that are not numbered 0, 1, 2 ...
    """
    grid = re.search(r"iteration_bounds: \(([\d, ]+)\)", text)
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    marks = list(_BUNDLE.finditer(text))
    if not marks:
        raise DumpError(f"{source}: no bundles in it")
    bundles = []
    for number, (mark, end) in enumerate(zip(marks, [m.start() for m in marks[1:]] + [len(text)], strict=True)):
        if int(mark[1], 16) != number:
            raise DumpError(f"{source}: bundle number {number} calls itself {mark[1]}")
        body = text[mark.end() : end]
        matches = (_INSTRUCTION.match(part.strip()) for part in body[: body.rfind("}")].split(";;"))
        instructions = tuple(Instruction(m[1], m[2], m[3].strip()) for m in matches if m)
        bundles.append(Bundle(instructions, mark[3].count(">"), mark[2] == "LB"))
    return Schedule(tuple(bundles), tuple(int(n) for n in re.findall(r"\d+", grid[1])) if grid else None)


def parse_slot_use(text: str, source: str = "slots") -> SlotUse:
    """The table of slots in a dump: a line of names, one of capacities, a title, a line per bundle.

    Raises:
      DumpError: not such a table.
    """
    try:
        _, _, units, _, *rows = text.splitlines()
        capacity = tuple(int(n) for n in units.split())
        used = tuple(tuple(int(n) for n in row.split()) for row in rows if row.strip())
    except ValueError:
        raise DumpError(f"{source}: not a table of slots") from None
    if any(len(row) != len(SLOTS) for row in (capacity, *used)):
        raise DumpError(f"{source}: rows of other than {len(SLOTS)} slots")
    return SlotUse(capacity, used)


@dataclasses.dataclass(frozen=True)
class VectorWork:
    """What the instructions of some bundles ask of the matrix and cross-lane units of one core, issued once.

    `busy` is in cycles of one matrix unit, `macs` in multiply-adds; the others count instructions.
    """

    busy: int = 0
    macs: int = 0
    matmuls: int = 0
    pushes: int = 0
    cross_lane: int = 0


def core_of(chip: Chip) -> Core:
    """What a core of a chip is like.

    Raises:
      MeterError: it is not known.
    """
    if chip.core is None:
        raise MeterError(f"{chip.name}: what its cores are like is not known")
    return chip.core


def vector_work(bundle: Bundle, core: Core) -> VectorWork:
    """The work of one bundle on a core of this kind."""
    busy = macs = matmuls = pushes = cross_lane = 0
    for _, opcode, _ in bundle.instructions:
        cross_lane += ".xlu" in opcode and not opcode.startswith("vpop")
        if ".mxu" not in opcode:
            continue
        if opcode.startswith("vmatmul"):
            kind = "bf16" if "bf16" in opcode else "x8" if _EIGHT_BITS.search(opcode) else "f32"
            cycles = core.matmul_cycles[kind]
            matmuls += 1
            busy += cycles
            macs += cycles * core.macs * (2 if kind == "x8" else 1)
        pushes += opcode.startswith("vmatpush")
    return VectorWork(busy, macs, matmuls, pushes, cross_lane)
