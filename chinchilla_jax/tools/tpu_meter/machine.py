"""Where does the scalar program of a kernel go, and how often is each bundle issued?

The schedule is cut into blocks that are entered only at the top and left only at the bottom. Running it block by
block, loops, branches and copies happen as they would on the core, as far as what decides them is known.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence

from chinchilla_jax.base.chips import Chip
from chinchilla_jax.tools.tpu_meter import DumpError, MeterError
from chinchilla_jax.tools.tpu_meter.bundles import Bundle, Schedule, core_of
from chinchilla_jax.tools.tpu_meter.instructions import Action, Core, Reader, read_operand, split_operands, translate
from chinchilla_jax.tools.tpu_meter.program import Words

MAX_BLOCKS = 4_000_000

_TARGET = re.compile(r"(?:\((!?%\w+)\))?.*bundleno = (\d+)", re.S)


@dataclasses.dataclass(frozen=True)
class Step:
    """One turn of the outermost loop, or what lies before it: bundles issued, HBM bytes whose copies began."""

    cycles: int
    hbm_bytes: int


@dataclasses.dataclass
class BranchCount:
    """How often a branch was `reached`, how often it `jumped` to `target`, how often its predicate was `unknown`."""

    target: int
    reached: int = 0
    jumped: int = 0
    unknown: int = 0


@dataclasses.dataclass(frozen=True)
class Execution:
    """What one core did.

    `counts` is the issues of each bundle, `branches` is by the number of the bundle that branches; the rest is as in
    `instructions.Core`.
    """

    cycles: int
    counts: Sequence[int]
    steps: Sequence[Step]
    branches: Mapping[int, BranchCount]
    copied: Mapping[str, int]
    unresolved: Mapping[str, int]
    unmodelled: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class _Branch:
    bundle: int
    target: int
    predicate: Reader | None


@dataclasses.dataclass(frozen=True)
class _Block:
    """Bundles up to `end`. A phi is (register, value on entering its loop, value on coming back)."""

    end: int
    phis: Sequence[tuple[str, Reader, Reader]]
    actions: Sequence[Action]
    branches: Sequence[_Branch]


def execute(
    schedule: Schedule,
    chip: Chip,
    constants: Mapping[int, Words] | None = None,
    core: int = 0,
    unknown: str = "run",
    max_blocks: int = MAX_BLOCKS,
) -> Execution:
    """Runs the scalar program of a schedule on one core.

    Args:
      chip: whose delay slots and granules the schedule is written for.
      constants: words of the operands that are known, by operand.
      core: the number that the program reads as its own.
      unknown: `run` or `skip` a region whose predicate is not known. A loop on such a predicate is not repeated.
      max_blocks: give up after so many.

    Raises:
      MeterError: it does not end in `max_blocks`.
      DumpError: a branch that cannot be read.
    """
    kind = core_of(chip)
    state = Core(constants or {}, kind.granule, core, unknown)
    blocks = _blocks(schedule.bundles, kind.delay_slots, state)
    outermost = next((number for number, bundle in enumerate(schedule.bundles) if bundle.loop_head), None)
    branches: dict[int, BranchCount] = {}
    entered: collections.Counter[int] = collections.Counter()
    steps: list[Step] = []
    at, came_back, issued, step_began = 0, False, 0, 0
    for _ in range(max_blocks):
        if at >= len(schedule.bundles):
            break
        block = blocks[at]
        # All phis of a block read before any is written: one may be the operand of another.
        values = [(back if came_back else entry)() for _, entry, back in block.phis]
        for (register, _, _), value in zip(block.phis, values, strict=True):
            state.registers[register] = value
        if at == outermost and issued:
            steps.append(Step(issued - step_began, state.step_bytes))
            step_began, state.step_bytes = issued, 0
        entered[at] += 1
        issued += block.end - at
        for action in block.actions:
            action()
        at, came_back = _next(block, state, branches)
    else:
        raise MeterError(f"the scalar program does not end within {max_blocks:,} blocks: measure a smaller problem")
    steps.append(Step(issued - step_began, state.step_bytes))
    counts = [0] * len(schedule.bundles)
    for start, times in entered.items():
        for number in range(start, blocks[start].end):
            counts[number] = times
    return Execution(issued, counts, steps, branches, state.copied, state.unresolved, state.unmodelled)


def _next(block: _Block, state: Core, branches: dict[int, BranchCount]) -> tuple[int, bool]:
    """The bundle that follows a block, and whether it was reached by jumping back."""
    for branch in block.branches:
        count = branches.setdefault(branch.bundle, BranchCount(branch.target))
        backwards = branch.target <= branch.bundle
        jump = True if branch.predicate is None else branch.predicate()
        count.reached += 1
        if jump is None:
            count.unknown += 1
            state.unresolved[f"{'loop' if backwards else 'branch'} at {branch.bundle:#x}"] += 1
            jump = not backwards and state.unknown == "skip"
        if jump:
            count.jumped += 1
            return branch.target, backwards
    return block.end, False


def _blocks(bundles: Sequence[Bundle], delay_slots: int, state: Core) -> dict[int, _Block]:
    """The blocks by their first bundle. A branch ends the block that its last delay slot is in."""
    leaders, branches = {0}, collections.defaultdict(list)
    for number, bundle in enumerate(bundles):
        for instruction in bundle.instructions:
            if instruction.opcode != "sbr.rel":
                continue
            match = _TARGET.match(instruction.arguments)
            if not match:
                raise DumpError(f"bundle {number:#x}: a branch without a target: {instruction.arguments}")
            end = min(number + delay_slots + 1, len(bundles))
            target, predicate = int(match[2]), read_operand(state, match[1]) if match[1] else None
            branches[end].append(_Branch(number, target, predicate))
            leaders |= {end, target}
    starts = sorted(leader for leader in leaders if leader < len(bundles))
    blocks = {}
    for start, end in zip(starts, [*starts[1:], len(bundles)], strict=True):
        instructions = [instruction for bundle in bundles[start:end] for instruction in bundle.instructions]
        phis = []
        for instruction in instructions:
            if instruction.opcode == "sphi":
                entry, back = (read_operand(state, token) for token in split_operands(instruction.arguments)[:2])
                phis.append((instruction.result, entry, back))
        actions = [action for action in (translate(state, instruction) for instruction in instructions) if action]
        blocks[start] = _Block(end, phis, actions, branches.get(end, ()))
    return blocks
