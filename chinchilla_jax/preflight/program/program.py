"""What does a compiled step do? Its collectives, kernels, products and memory traffic, each as often as it runs.

    compiled = compile_train_step(config, mesh)
    program = read_program(compiled.as_text(), dict(mesh.shape))

It is read from the final scheduled HLO, where every collective stands that the partitioner put in, in the loop where
it runs. The compiler's own totals (`cost_analysis`) count the body of a loop once and a kernel not at all.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from chinchilla_jax.base.hlo import Computation, HloError, Instruction, Module, parse_module
from chinchilla_jax.preflight.program.device_groups import Group, device_group, slices_of
from chinchilla_jax.preflight.program.loops import trip_count
from chinchilla_jax.preflight.program.operations import hbm_bytes, matmul_flops, written_arrays

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
LARGEST = 24

_ANY = "|".join(KINDS)
_COLLECTIVE = re.compile(rf"(?:({_ANY})|[a-z\-]*(?:{_ANY}|collective)[a-z\-]*|send|recv)(-start)?$")
_BETWEEN_SLICES = {"ALL_GATHER": "all-gather", "REDUCE_SCATTER": "reduce-scatter", "ALL_REDUCE": "all-reduce",
                   "ALL_TO_ALL": "all-to-all", "ONE_TO_ONE": "collective-permute"}  # fmt: skip
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CHAIN = re.compile(r'chain_id="(\d+)"')
_SLICES = re.compile(r'_xla_megascale_target="\{([\d,]+)\}x')
_KERNEL = "tpu_custom_call"
_KERNEL_NAME = re.compile(r"(\w+)\)*/pallas_call$")
_NUMBERED = re.compile(r"(?:\.(?:\d+|clone))+$")
_ASYNC_START, _ASYNC_DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of the compiled program; bytes are of one run.

    Attributes:
      name: of the instruction.
      kind: one of `KINDS`. An all-reduce of which every device keeps only its slice is a reduce-scatter.
      axes: the mesh axes it spans.
      group: how many devices take part in one; of a permute, those of the axes it spans.
      bytes: of the whole array, per group: the result of an all-gather, else the operand. Padding that the partitioner
        added is in it, that of tiles is not.
      wire_bytes: what each device sends when the algorithm is bandwidth-optimal, as a ring: (g-1)/g of the bytes, twice
        that for an all-reduce, all of them for a permute (Chan et al. 2007, table 1).
      trips: how often it runs in a step.
      network: `ici` within a slice, `dcn` between slices.
      asynchronous: whether it can overlap with what is scheduled between its start and its end.
      dtype, shape: of the whole array; of the largest, if it carries several.
      op_name: the part of the model that caused it, or what it is computed from where the compiler does not say.
      unknown_loop: a loop around it whose trips could not be found and were taken to be 1; None if there is none.
      loops: names of the loops around it, outermost first.
    """

    name: str
    kind: str
    axes: tuple[str, ...]
    group: int
    bytes: int
    wire_bytes: int
    trips: int
    network: str
    asynchronous: bool
    dtype: str
    shape: tuple[int, ...]
    op_name: str
    unknown_loop: str | None = None
    loops: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A Pallas kernel and how often it runs in a step."""

    name: str
    trips: int


@dataclasses.dataclass(frozen=True)
class Temporary:
    """An array in HBM that an instruction makes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    op_name: str


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """What one device does in one step.

    Attributes:
      collectives: in the order of the schedule. A loop that is run from two places is there twice.
      kernels: calls of Pallas kernels.
      cycles: the compiler's own estimates of everything but kernels and collectives, which have none: a ranking, within
        30% at best.
      matmul_flops: of every dot and convolution, exact; those in kernels not included.
      hbm_bytes: what instructions read from HBM and write to it, collectives not included, VMEM not, and of arrays
        that are only sliced or updated in place the slice.
      largest: the largest arrays in HBM that instructions make or allocate; arguments, and outputs that take their
        place, left out.
      unknown_loops: loops whose trips could not be found, with what the compiler says of them. They count once, so that
        all figures are too low when they hold anything.
    """

    collectives: tuple[Collective, ...]
    kernels: tuple[Kernel, ...]
    cycles: int
    matmul_flops: int
    hbm_bytes: int
    largest: tuple[Temporary, ...]
    unknown_loops: tuple[str, ...]


def read_program(text: str, mesh_shape: Mapping[str, int]) -> StepProgram:
    """The program in the text of a compiled step.

    Args:
      text: `compiled.as_text()`.
      mesh_shape: devices along each mesh axis, slowest first: `dict(mesh.shape)`.

    Raises:
      HloError: a collective of a form that is not known or in a place that is not, a mesh of another size than the
        program's, a text cut short.
    """
    module = parse_module(text)
    reader = _Reader(module, mesh_shape)
    reader.walk(module.entry, _Runs())
    return reader.program()


@dataclasses.dataclass(frozen=True)
class _Runs:
    """How often a computation runs, and where. `known` are the elements of its state of known value, if it is a loop's
    body; `origin` names what it is for."""

    trips: int = 1
    loops: tuple[str, ...] = ()
    unknown_loop: str | None = None
    known: Mapping[int, int] = dataclasses.field(default_factory=dict)
    asynchronous: bool = False
    origin: str = ""


class _Reader:
    """Walks the schedule from the entry, into loops as often as they run."""

    def __init__(self, module: Module, mesh_shape: Mapping[str, int]):
        self.module = module
        self.mesh_shape, self.slices = slices_of(mesh_shape, module.devices)
        self.collectives: list[Collective] = []
        self.kernels: list[Kernel] = []
        self.cycles = self.flops = self.hbm = 0
        self.temporaries: dict[str, Temporary] = {}
        self.unknown: dict[str, str] = {}
        self.started: set[tuple] = set()
        self.continued: dict[tuple, str] = {}
        self.visited: set[str] = set()
        self.outputs = _aliased_outputs(module)

    def program(self) -> StepProgram:
        """The sums, once everything was walked."""
        for chain, name in self.continued.items():
            if chain not in self.started:
                raise HloError(f"{name}: a part of an asynchronous collective that starts nowhere")
        for computation in self.module.computations.values():
            if computation.name not in self.visited:
                _refuse_unvisited(computation)
        largest = sorted(self.temporaries.values(), key=lambda t: (-t.bytes, t.name))[:LARGEST]
        return StepProgram(tuple(self.collectives), tuple(self.kernels), self.cycles, self.flops, self.hbm,
                           tuple(largest), tuple(self.unknown.values()))  # fmt: skip

    def walk(self, computation: Computation, runs: _Runs) -> None:
        """Adds what a scheduled computation does."""
        self.visited.add(computation.name)
        for instruction in computation.instructions.values():
            opcode = instruction.opcode
            if opcode == "while":
                self._loop(computation, instruction, runs)
            elif opcode in ("call", "call-start", "async-start"):
                called = instruction.called("to_apply") or instruction.called("calls")
                self.walk(self.module.computation(called, instruction.name), dataclasses.replace(
                    runs, known={}, origin=_origin(computation, instruction),
                    asynchronous=runs.asynchronous or opcode != "call"))  # fmt: skip
            elif opcode == "conditional":
                self._conditional(instruction, runs)
            elif opcode not in _FREE and not opcode.endswith(("-done", "-update")):
                self._operation(computation, instruction, runs)

    def _loop(self, computation: Computation, instruction: Instruction, runs: _Runs) -> None:
        count, constant = trip_count(self.module, computation, instruction, runs.known)
        unknown = runs.unknown_loop
        if count is None:
            count, unknown = 1, instruction.name
            self.unknown[unknown] = f"{unknown} {instruction.op_name}".strip()
        body = self.module.computation(instruction.called("body"), instruction.name)
        self.walk(body, dataclasses.replace(runs, trips=runs.trips * count, loops=(*runs.loops, instruction.name),
                                            unknown_loop=unknown, known=constant))  # fmt: skip

    def _conditional(self, instruction: Instruction, runs: _Runs) -> None:
        """All branches are counted; where that would matter, there is no right number."""
        before = len(self.collectives), len(self.kernels), self.flops
        for name in instruction.branches:
            self.walk(self.module.computation(name, instruction.name), dataclasses.replace(runs, known={}))
        if before != (len(self.collectives), len(self.kernels), self.flops):
            raise HloError(f"{instruction.name}: a conditional with collectives, kernels or products in its branches; "
                           "how often they run depends on data")  # fmt: skip

    def _operation(self, computation: Computation, instruction: Instruction, runs: _Runs) -> None:
        targets = _targets_of(instruction)
        if not _FREE_TARGETS.isdisjoint(targets):
            if _ALLOCATION in targets:
                self._temporary(computation, instruction)
            return
        runs = dataclasses.replace(runs, origin=_origin(computation, instruction) or runs.origin)
        self._kernel(instruction, runs)
        if found := _COLLECTIVE.match(instruction.opcode):
            self._collective(computation, instruction, found, runs)
        else:
            if instruction.opcode == "fusion":
                self._fused(instruction, runs)
            self.flops += runs.trips * matmul_flops(self.module, computation, instruction)
            self.hbm += runs.trips * hbm_bytes(self.module, computation, instruction)
        cycles = _CYCLES.search(instruction.attributes)
        self.cycles += runs.trips * int(cycles[1]) if cycles else 0
        self._temporary(computation, instruction)

    def _fused(self, fusion: Instruction, runs: _Runs) -> None:
        """Collectives and kernels in a fusion. A collective that is asynchronous may stand in every fusion from its
        start to its end; it is counted at its start."""
        computation = self.module.computation(fusion.called("calls"), fusion.name)
        self.visited.add(computation.name)
        for instruction in computation.instructions.values():
            if instruction.opcode == "fusion":
                self._fused(instruction, runs)
            self._kernel(instruction, runs)
            if not (found := _COLLECTIVE.match(instruction.opcode)):
                continue
            chain = _CHAIN.search(instruction.attributes)
            channel = _CHANNEL.search(instruction.attributes)
            key = found[1], channel and channel[1], chain and chain[1]
            targets = _targets_after(computation, instruction)
            if _ASYNC_START in targets:
                self.started.add(key)
                self._collective(computation, instruction, found, dataclasses.replace(runs, asynchronous=True))
            elif _ASYNC_DONE in targets or chain:
                self.continued[key] = instruction.name
            else:
                self._collective(computation, instruction, found, runs)

    def _kernel(self, instruction: Instruction, runs: _Runs) -> None:
        if _KERNEL in _targets_of(instruction):
            self.kernels.append(Kernel(_kernel_name(instruction), runs.trips))

    def _collective(self, computation: Computation, instruction: Instruction, found: re.Match, runs: _Runs) -> None:
        kind, network, group, asynchronous = found[1], "ici", None, runs.asynchronous or bool(found[2])
        if kind is None:
            kind, network, group, asynchronous = self._transfer(instruction), "dcn", self.slices, True
            if instruction.opcode == "recv":  # the other half of a send
                return
        if kind == "all-reduce" and _only_sliced(computation, instruction):
            kind = "reduce-scatter"
        group = group or device_group(instruction, self.mesh_shape)
        arrays = [array for name in instruction.operands for array in computation.instructions[name].arrays]
        largest = max(arrays, key=lambda array: array.bytes)
        whole, shape = sum(array.bytes for array in arrays), largest.shape
        if kind == "all-gather":
            whole *= group.size
            gathered = (array for array in instruction.arrays if array.bytes == largest.bytes * group.size)
            shape = next((array.shape for array in gathered), shape)
        self.collectives.append(Collective(
            instruction.name, kind, group.axes, group.size, whole, _wire_bytes(kind, whole, group), runs.trips, network,
            asynchronous, largest.dtype, shape, instruction.op_name or runs.origin, runs.unknown_loop,
            runs.loops))  # fmt: skip

    def _transfer(self, instruction: Instruction) -> str:
        """The kind of a collective between slices."""
        transfer = _TRANSFER.search(instruction.attributes)
        if not transfer or transfer[1] not in _BETWEEN_SLICES or instruction.opcode not in ("send", "recv"):
            raise HloError(f"{instruction.name}: a collective of a kind that is not known, {instruction.opcode}")
        taking_part = _SLICES.search(instruction.attributes)
        if self.slices.size == 1 or (taking_part and taking_part[1].count(",") + 1 != self.slices.size):
            raise HloError(f"{instruction.name}: a transfer among other slices than the {self.slices.size} of the "
                           "mesh; it must be that of all slices")  # fmt: skip
        return _BETWEEN_SLICES[transfer[1]]

    def _temporary(self, computation: Computation, instruction: Instruction) -> None:
        made = written_arrays(self.module, computation, instruction)
        taken = self.outputs if computation is self.module.entry else ()
        for index, array in made:
            if array.space == 0 and (instruction.name, index) not in taken:
                if (before := self.temporaries.get(instruction.name)) is None or before.bytes < array.bytes:
                    name = instruction.op_name or _purpose(computation, instruction)
                    self.temporaries[instruction.name] = Temporary(instruction.name, array.dtype, array.shape,
                                                                   array.bytes, name)  # fmt: skip


_FREE = frozenset(("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
                   "replica-id", "optimization-barrier", "add-dependency"))  # fmt: skip
_ALLOCATION = "AllocateBuffer"
_FREE_TARGETS = frozenset((_ALLOCATION, "ConcatBitcast", "AssumeGatherIndicesInBound", "PrepareAsyncCallStart",
                           "PrepareAsyncCallDone"))  # fmt: skip


def _refuse_unvisited(computation: Computation) -> None:
    for instruction in computation.instructions.values():
        collective = _COLLECTIVE.match(instruction.opcode) and not instruction.opcode.endswith("-done")
        if collective or _KERNEL in _targets_of(instruction):
            raise HloError(f"{instruction.name}: {instruction.opcode} in {computation.name}, which is called in a way "
                           "that is not understood")  # fmt: skip


def _wire_bytes(kind: str, whole: int, group: Group) -> int:
    if kind == "collective-permute":
        return whole if group.axes else 0
    return (2 if kind == "all-reduce" else 1) * whole * (group.size - 1) // group.size


def _kernel_name(instruction: Instruction) -> str:
    """As `pallas_call` was given it, without the transformations around it."""
    named = _KERNEL_NAME.search(instruction.op_name)
    return named[1] if named else _NUMBERED.sub("", instruction.name)


def _origin(computation: Computation, instruction: Instruction, depth: int = 8) -> str:
    """The name of an instruction, or of the nearest that it takes its operands from."""
    if instruction.op_name or not depth:
        return instruction.op_name
    sources = (computation.instructions[name] for name in instruction.operands)
    return next(filter(None, (_origin(computation, source, depth - 1) for source in sources)), "")


def _purpose(computation: Computation, instruction: Instruction) -> str:
    """The name of what takes the result, as of a loop that fills a buffer."""
    for user in computation.users.get(instruction.name, ()):
        if name := user.op_name or (user.opcode == "tuple" and _purpose(computation, user)):
            return name
    return ""


def _targets_of(instruction: Instruction) -> list[str]:
    return _TARGET.findall(instruction.attributes) if instruction.opcode == "custom-call" else []


def _targets_after(computation: Computation, instruction: Instruction) -> set[str]:
    """What custom calls take the result of a collective, or slices of it."""
    found = set()
    for user in computation.users.get(instruction.name, ()):
        found.update(_targets_of(user))
        if user.opcode in ("get-tuple-element", "bitcast", "dynamic-slice", "tuple"):
            found |= _targets_after(computation, user)
    return found


def _only_sliced(computation: Computation, instruction: Instruction) -> bool:
    """Whether nothing but slices of a result is used."""
    users = computation.users.get(instruction.name, ())
    passing = ("get-tuple-element", "bitcast")
    return bool(users) and all(user.opcode == "dynamic-slice" or
                               (user.opcode in passing and _only_sliced(computation, user))
                               for user in users)  # fmt: skip


def _aliased_outputs(module: Module) -> frozenset[tuple[str, int]]:
    """The instructions, with the element of their result, that write outputs into donated arguments."""
    found = set()
    root = module.entry.instructions[module.entry.root]
    names = enumerate(root.operands) if root.opcode == "tuple" else ((0, root.name),)
    for output, name in names:
        if output not in module.aliased:
            continue
        instruction, index = module.entry.instructions[name], 0
        while instruction.opcode in ("get-tuple-element", "bitcast", "copy-done"):
            if instruction.opcode == "get-tuple-element":
                index = instruction.index
            instruction = module.entry.instructions[instruction.operands[0]]
        found.add((instruction.name, index))
    return frozenset(found)
