"""What does a compiled step do? Its collectives, kernels, products and memory traffic, each as often as it runs.

    compiled = compile_train_step(config, mesh)
    program = read_program(compiled.as_text(), dict(mesh.shape))

It is read from the final scheduled HLO. Every collective that the partitioner made stands there, in the loop where it
runs. The compiler's own totals (`cost_analysis`) count the body of a loop once and a kernel not at all.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from chinchilla_jax.base.hlo import Computation, HloError, Instruction, Module, parse_module
from chinchilla_jax.preflight.program.collectives import Collective, Runs, is_collective, read_collective, slices_of
from chinchilla_jax.preflight.program.loops import trip_count
from chinchilla_jax.preflight.program.operations import hbm_bytes, matmul_flops, written_arrays
from chinchilla_jax.preflight.step import Temporary

LARGEST = 4  # arrays that are listed

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CHAIN = re.compile(r'chain_id="(\d+)"')
_KERNEL = "tpu_custom_call"
_KERNEL_NAME = re.compile(r"(\w+)\)*/pallas_call$")
_NUMBERED = re.compile(r"(?:\.(?:\d+|clone))+$")
_ASYNC_START, _ASYNC_DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"
# Operations and custom calls that do no work.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id optimization-barrier "
    "add-dependency".split()
)
_ALLOCATION = "AllocateBuffer"
_FREE_TARGETS = frozenset(
    (_ALLOCATION, "ConcatBitcast", "AssumeGatherIndicesInBound", "PrepareAsyncCallStart", "PrepareAsyncCallDone")
)


@dataclasses.dataclass
class StepProgram:
    """What one device does in one step.

    The compiler estimates `cycles` for everything but kernels and collectives: a ranking, within 30% at best.
    `hbm_bytes` are what instructions read from HBM and write to it, without collectives; of arrays that are only sliced
    or updated in place, only the slice counts. Loops with an unknown number of trips count once, so that all figures
    are too low if they hold any work.
    """

    collectives: list[Collective]  # as scheduled; a loop that is run from two places is there twice
    kernels: dict[str, int]  # how often each Pallas kernel runs, by name
    cycles: int
    matmul_flops: int  # of every dot and convolution, exact; those in kernels are not included
    hbm_bytes: int
    largest: tuple[Temporary, ...]  # without arguments, and without outputs that take their place
    unknown_loops: dict[str, str]  # by name, with what the compiler says of them


def read_program(text: str, mesh_shape: Mapping[str, int]) -> StepProgram:
    """The program in the text of a compiled step.

    Args:
      text: `compiled.as_text()`.
      mesh_shape: devices along each mesh axis, slowest first: `dict(mesh.shape)`.

    Raises:
      HloError: a collective of an unknown form or in an unknown place, a mesh of another size than the program's, a
        text cut short.
    """
    module = parse_module(text)
    reader = _Reader(module, mesh_shape)
    reader.walk(module.entry, Runs())
    reader.refuse_what_was_missed()
    largest = sorted(reader.temporaries.values(), key=lambda t: (-t.bytes, t.name))[:LARGEST]
    return dataclasses.replace(reader.found, largest=tuple(largest))


class _Reader:
    """Walks the schedule from the entry, into loops as often as they run."""

    def __init__(self, module: Module, mesh_shape: Mapping[str, int]):
        self.module = module
        self.mesh_shape, self.slices = slices_of(mesh_shape, module.devices)
        self.found = StepProgram([], {}, 0, 0, 0, (), {})
        self.temporaries: dict[str, Temporary] = {}
        # Asynchronous collectives in fusions, by their key: those that start, and a name in those that go on.
        self.started: set[tuple] = set()
        self.continued: dict[tuple, str] = {}
        self.visited: set[str] = set()
        self.outputs = _aliased_outputs(module)

    def walk(self, computation: Computation, runs: Runs) -> None:
        """Adds what a scheduled computation does."""
        self.visited.add(computation.name)
        for instruction in computation.instructions.values():
            opcode = instruction.opcode
            if opcode == "while":
                self._loop(computation, instruction, runs)
            elif opcode in ("call", "call-start", "async-start"):
                called = instruction.called("to_apply") or instruction.called("calls")
                origin, started = _origin(computation, instruction), runs.asynchronous or opcode != "call"
                inner = dataclasses.replace(runs, known={}, origin=origin, asynchronous=started)
                self.walk(self.module.computation(called, instruction.name), inner)
            elif opcode == "conditional":
                self._conditional(instruction, runs)
            elif opcode not in _FREE and not opcode.endswith(("-done", "-update")):
                self._operation(computation, instruction, runs)

    def refuse_what_was_missed(self) -> None:
        """Raises HloError if anything that communicates or computes was not reached by the walk."""
        for key, name in self.continued.items():
            if key not in self.started:
                raise HloError(f"{name}: a part of an asynchronous collective that starts nowhere")
        for computation in self.module.computations.values():
            for one in computation.instructions.values() if computation.name not in self.visited else ():
                if is_collective(one) or _KERNEL in _targets_of(one):
                    where = f"{one.opcode} in {computation.name}, which is called in a way that is not understood"
                    raise HloError(f"{one.name}: {where}")

    def _loop(self, computation: Computation, instruction: Instruction, runs: Runs) -> None:
        name = instruction.name
        count, constant = trip_count(self.module, computation, instruction, runs.known)
        if count is None:
            count, self.found.unknown_loops[name] = 1, f"{name} {instruction.op_name}".strip()
        inner = dataclasses.replace(runs, trips=runs.trips * count, loops=(*runs.loops, name), known=constant)
        self.walk(self.module.computation(instruction.called("body"), name), inner)

    def _conditional(self, instruction: Instruction, runs: Runs) -> None:
        """Counts all branches. If they hold anything that matters, there is no right number."""
        before = self._amounts()
        for name in instruction.branches:
            self.walk(self.module.computation(name, instruction.name), dataclasses.replace(runs, known={}))
        if before != self._amounts():
            raise HloError(
                f"{instruction.name}: a conditional with collectives, kernels or products in its branches; "
                "how often they run depends on data"
            )

    def _amounts(self) -> tuple[int, int, int]:
        """What there is so far of that of which the number of runs must be known."""
        return len(self.found.collectives), sum(self.found.kernels.values()), self.found.matmul_flops

    def _operation(self, computation: Computation, instruction: Instruction, runs: Runs) -> None:
        targets = _targets_of(instruction)
        if _FREE_TARGETS.isdisjoint(targets):
            runs = dataclasses.replace(runs, origin=_origin(computation, instruction) or runs.origin)
            self._count(computation, instruction, runs)
            if not is_collective(instruction):
                self.found.matmul_flops += runs.trips * matmul_flops(self.module, computation, instruction)
                self.found.hbm_bytes += runs.trips * hbm_bytes(self.module, computation, instruction)
            cycles = _CYCLES.search(instruction.attributes)
            self.found.cycles += runs.trips * int(cycles[1]) if cycles else 0
        elif _ALLOCATION not in targets:
            return
        self._add_temporary(computation, instruction)

    def _count(self, computation: Computation, instruction: Instruction, runs: Runs, fused: bool = False) -> None:
        """Adds the collective or the kernel that an instruction is, or those in a fusion.

        An asynchronous collective may stand in every fusion from its start to its end. It is counted at its start.
        """
        if instruction.opcode == "fusion":
            called = self.module.computation(instruction.called("calls"), instruction.name)
            self.visited.add(called.name)
            for inner in called.instructions.values():
                self._count(called, inner, runs, fused=True)
        if _KERNEL in _targets_of(instruction):  # under the name that `pallas_call` was given
            named = _KERNEL_NAME.search(instruction.op_name)
            name = named[1] if named else _NUMBERED.sub("", instruction.name)
            self.found.kernels[name] = self.found.kernels.get(name, 0) + runs.trips
        if not is_collective(instruction):
            return
        if fused:
            channel, chain = (pattern.search(instruction.attributes) for pattern in (_CHANNEL, _CHAIN))
            key = instruction.opcode.removesuffix("-start"), channel and channel[1], chain and chain[1]
            targets = _targets_after(computation, instruction)
            if _ASYNC_START in targets:
                self.started.add(key)
                runs = dataclasses.replace(runs, asynchronous=True)
            elif _ASYNC_DONE in targets or chain:
                self.continued[key] = instruction.name
                return
        if collective := read_collective(computation, instruction, runs, self.mesh_shape, self.slices):
            self.found.collectives.append(collective)

    def _add_temporary(self, computation: Computation, instruction: Instruction) -> None:
        """The largest array in HBM that an instruction makes, unless it is an output in a donated argument."""
        name, outputs = instruction.name, self.outputs if computation is self.module.entry else ()
        made = written_arrays(self.module, computation, instruction)
        new = [array for index, array in made if array.space == 0 and (name, index) not in outputs]
        if new:
            largest = max(new, key=lambda array: array.bytes)
            op_name = instruction.op_name or _purpose(computation, instruction)
            self.temporaries[name] = Temporary(name, largest.dtype, largest.shape, largest.bytes, op_name)


def _origin(computation: Computation, instruction: Instruction, depth: int = 8) -> str:
    """The `op_name` of an instruction, or of the nearest that it takes its operands from."""
    if instruction.op_name or not depth:
        return instruction.op_name
    sources = (computation.instructions[name] for name in instruction.operands)
    return next(filter(None, (_origin(computation, source, depth - 1) for source in sources)), "")


def _purpose(computation: Computation, instruction: Instruction) -> str:
    """The `op_name` of what takes the result, for example of a loop that fills a buffer."""
    for user in computation.users.get(instruction.name, ()):
        if name := user.op_name or (user.opcode == "tuple" and _purpose(computation, user)):
            return name
    return ""


def _targets_of(instruction: Instruction) -> list[str]:
    return _TARGET.findall(instruction.attributes) if instruction.opcode == "custom-call" else []


def _targets_after(computation: Computation, instruction: Instruction) -> set[str]:
    """The custom calls that take the result of a collective, or slices of it."""
    targets = set()
    for user in computation.users.get(instruction.name, ()):
        targets.update(_targets_of(user))
        if user.opcode in ("get-tuple-element", "bitcast", "dynamic-slice", "tuple"):
            targets |= _targets_after(computation, user)
    return targets


def _aliased_outputs(module: Module) -> frozenset[tuple[str, int]]:
    """The instructions, with the element of their result, that write outputs into donated arguments."""
    aliased = set()
    root = module.entry.instructions[module.entry.root]
    for output, name in enumerate(root.operands) if root.opcode == "tuple" else ((0, root.name),):
        if output not in module.aliased:
            continue
        instruction, index = module.entry.instructions[name], 0
        while instruction.opcode in ("get-tuple-element", "bitcast", "copy-done"):
            if instruction.opcode == "get-tuple-element":
                index = instruction.index
            instruction = module.entry.instructions[instruction.operands[0]]
        aliased.add((instruction.name, index))
    return frozenset(aliased)
