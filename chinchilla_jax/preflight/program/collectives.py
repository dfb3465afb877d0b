"""What does one collective of a compiled program send? Its kind, mesh axes, bytes and network.

A device's number is its position in the flattened mesh, the first axis slowest. The compiler writes the groups of
devices that take part in four notations: as pairs (of a permute), as lists, as a reshaped and transposed range
(`[8,64]<=[64,8]T(1,0)`: 8 groups of 64), or as axes of a mesh of the partitioner's own.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from chinchilla_jax.base.hlo import Computation, HloError, Instruction

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

_ANY = "|".join(KINDS)
_RAGGED = "ragged-all-to-all"
_COLLECTIVE = re.compile(
    rf"(?:(?:ragged-(?=all-to-all))?({_ANY})|[a-z\-]*(?:{_ANY}|collective)[a-z\-]*|send|recv)(-start)?$"
)
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_SLICES = re.compile(r'_xla_megascale_target="\{([\d,]+)\}x')
_BETWEEN_SLICES = {
    "ALL_GATHER": "all-gather",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_REDUCE": "all-reduce",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}
_LISTS = re.compile(r"(?:source_target_pairs|replica_groups)=\{((?:\{[\d,]*\},?)*)\}")
_RANGE = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}")
_MESH_AXIS = re.compile(r"'([^']+)'=(\d+)")
_GROUP_AXIS = re.compile(r"'([^']+)'(:\(\d+\)\d+)?")


@dataclasses.dataclass(frozen=True)
class Runs:
    """How often a computation runs, and where."""

    trips: int = 1
    loops: tuple[str, ...] = ()
    known: Mapping[int, int] = dataclasses.field(default_factory=dict)  # elements of a loop's state with known values
    asynchronous: bool = False
    origin: str = ""  # the `op_name` of what the computation is for


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of the compiled program; bytes are of one run.

    An all-reduce of which every device keeps only its slice is a reduce-scatter. `bytes` are of the whole array, per
    group: the result of an all-gather, otherwise the operand. Padding that the partitioner added is counted, padding of
    tiles is not. `wire_bytes` are what each device sends if the algorithm is bandwidth-optimal, as a ring: (g-1)/g of
    the bytes, twice that for an all-reduce, all of them for a permute (Chan et al. 2007, table 1).
    A ragged all-to-all sends what the data says. It counts as an all-to-all of equal parts of its operand or of its
    result, whichever has room for less: rows leave the one or arrive in the other without room to spare.
    """

    name: str  # of the instruction
    kind: str  # one of `KINDS`
    axes: tuple[str, ...]  # the mesh axes it spans
    group: int  # how many devices take part in one; of a permute, the devices of the axes it spans
    bytes: int
    wire_bytes: int
    trips: int  # how often it runs in a step
    network: str  # `ici` within a slice, `dcn` between slices
    asynchronous: bool  # whether it can overlap with what is scheduled between its start and its end
    op_name: str  # the part of the model that caused it, or that its operands come from
    loops: tuple[str, ...] = ()  # names of the loops around it, outermost first


class Group(NamedTuple):
    """The axes along which the devices of a group differ, and how many devices are in one group."""

    axes: tuple[str, ...]
    size: int


def is_collective(instruction: Instruction) -> bool:
    """Whether an instruction communicates, in a form that is known or not. The end of an asynchronous one does not."""
    return bool(_COLLECTIVE.match(instruction.opcode)) and not instruction.opcode.endswith("-done")


def read_collective(
    computation: Computation, instruction: Instruction, runs: Runs, mesh_shape: Mapping[str, int], slices: Group
) -> Collective | None:
    """A collective, `is_collective`, that runs as often as its computation.

    Args:
      computation: where the instruction stands.
      mesh_shape: the mesh within a slice.
      slices: the axes that run across slices, and the number of slices.

    Returns:
      None for the receiving half of a transfer between slices: the sending half is counted.

    Raises:
      HloError: a kind of collective, or groups of devices, that are not known.
    """
    match = _COLLECTIVE.match(instruction.opcode)
    within_slice = match[1] if match else None  # the kind of a collective within a slice
    kind = within_slice or _transfer_kind(instruction, slices)
    group = _group(instruction, mesh_shape) if within_slice else slices
    if instruction.opcode == "recv":
        return None
    if kind == "all-reduce" and _only_sliced(computation, instruction):
        kind = "reduce-scatter"
    operands = [array.bytes for name in instruction.operands for array in computation.instructions[name].arrays]
    operands = [min(operands[:2])] if instruction.opcode.startswith(_RAGGED) else operands  # the result, four offsets
    whole = sum(operands) * (group.size if kind == "all-gather" else 1)
    if kind == "collective-permute":
        wire = whole if group.axes else 0
    else:
        wire = (2 if kind == "all-reduce" else 1) * whole * (group.size - 1) // group.size
    return Collective(
        name=instruction.name,
        kind=kind,
        axes=group.axes,
        group=group.size,
        bytes=whole,
        wire_bytes=wire,
        trips=runs.trips,
        network="ici" if within_slice else "dcn",
        asynchronous=runs.asynchronous or not within_slice or instruction.opcode.endswith("-start"),
        op_name=instruction.op_name or runs.origin,
        loops=runs.loops,
    )


def _transfer_kind(instruction: Instruction, slices: Group) -> str:
    """The kind of a collective between slices, which is written as a `send` and a `recv`."""
    transfer = _TRANSFER.search(instruction.attributes)
    if not transfer or transfer[1] not in _BETWEEN_SLICES or instruction.opcode not in ("send", "recv"):
        raise HloError(f"{instruction.name}: a collective of a kind that is not known, {instruction.opcode}")
    taking_part = _SLICES.search(instruction.attributes)
    if slices.size == 1 or (taking_part and taking_part[1].count(",") + 1 != slices.size):
        what = f"a transfer among other slices than the {slices.size} of the mesh; it must be that of all slices"
        raise HloError(f"{instruction.name}: {what}")
    return _BETWEEN_SLICES[transfer[1]]


def _only_sliced(computation: Computation, instruction: Instruction) -> bool:
    """Whether nothing but slices of a result is used."""
    users = computation.users.get(instruction.name, ())
    return bool(users) and all(
        user.opcode == "dynamic-slice"
        or (user.opcode in ("get-tuple-element", "bitcast") and _only_sliced(computation, user))
        for user in users
    )


def slices_of(mesh_shape: Mapping[str, int], devices: int) -> tuple[dict[str, int], Group]:
    """The part of a mesh that one slice holds, and the axes that run across slices, with the number of slices.

    The program of a job of several slices is that of one of them, with its `devices`. The slices are the slowest part
    of the mesh.

    Raises:
      HloError: the mesh is not made of such slices.
    """
    count, rest = divmod(math.prod(mesh_shape.values()), devices)
    inside, axes, left = dict(mesh_shape), [], count
    for axis, extent in mesh_shape.items():
        if left > 1 and extent > 1:
            shared = math.gcd(extent, left)
            inside[axis], left = extent // shared, left // shared
            axes.append(axis)
            if shared < extent:
                break
    if rest or left != 1:
        raise HloError(
            f"a program for {devices} devices on a mesh {dict(mesh_shape)}, which is no number of slices of "
            "that size along its first axes"
        )
    return inside, Group(tuple(axes), count)


def _group(instruction: Instruction, mesh_shape: Mapping[str, int]) -> Group:
    """The group of a collective. Raises HloError if devices are left out, or in groups of different sizes."""
    devices, pairs = math.prod(mesh_shape.values()), "source_target_pairs=" in instruction.attributes
    groups = _replica_groups(instruction, devices)
    sizes = {len(group) for group in groups}
    complete = sorted(device for group in groups for device in group) == list(range(devices))
    if not pairs and (len(sizes) != 1 or not complete):
        raise HloError(f"{instruction.name}: groups of different sizes, or not of all {devices} devices")
    members = np.array(groups, int).reshape(len(groups), -1)
    places = zip(mesh_shape, np.unravel_index(members, tuple(mesh_shape.values())), strict=True)
    axes = tuple(axis for axis, place in places if (place != place[:, :1]).any())
    return Group(axes, math.prod(mesh_shape[axis] for axis in axes) if pairs else sizes.pop())


def _replica_groups(instruction: Instruction, devices: int) -> Sequence[Sequence[int]]:
    text = instruction.attributes
    if match := _LISTS.search(text):
        lists = [_numbers(numbers) for numbers in re.findall(r"\{([\d,]+)\}", match[1])]
        return lists or [range(devices)]
    if match := _RANGE.search(text):
        return _range(match[2], match[3]).reshape(-1, _numbers(match[1])[-1])
    if match := _MESH.search(text):
        extents = {axis: int(extent) for axis, extent in _MESH_AXIS.findall(match[1])}
        chosen = dict(_GROUP_AXIS.findall(match[4]))
        if any(chosen.values()):
            raise HloError(f"{instruction.name}: groups over a part of a mesh axis, which is not understood")
        numbers = _range(match[2], match[3]) if match[2] else np.arange(math.prod(extents.values()))
        order = sorted(range(len(extents)), key=lambda i: list(extents)[i] in chosen)  # the chosen axes last
        size = math.prod(extent for axis, extent in extents.items() if axis in chosen)
        return numbers.reshape(*extents.values()).transpose(order).reshape(-1, size)
    raise HloError(f"{instruction.name}: {instruction.opcode} with groups of devices that are not understood")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _range(dims: str, order: str | None) -> np.ndarray:
    """The numbers 0, 1, ... in an array of these dimensions, read in another order of its axes."""
    shape = _numbers(dims)
    return np.arange(math.prod(shape)).reshape(shape).transpose(_numbers(order) if order else None).ravel()
