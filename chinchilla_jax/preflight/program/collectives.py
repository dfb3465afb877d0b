"""What does one collective of a compiled program send? Its kind, mesh axes, bytes and network."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from chinchilla_jax.base.hlo import Computation, HloError, Instruction
from chinchilla_jax.preflight.program.device_groups import Group, device_group

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

_ANY = "|".join(KINDS)
_COLLECTIVE = re.compile(rf"(?:({_ANY})|[a-z\-]*(?:{_ANY}|collective)[a-z\-]*|send|recv)(-start)?$")
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_SLICES = re.compile(r'_xla_megascale_target="\{([\d,]+)\}x')
_BETWEEN_SLICES = {
    "ALL_GATHER": "all-gather",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_REDUCE": "all-reduce",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of the compiled program; bytes are of one run.

    An all-reduce of which every device keeps only its slice is a reduce-scatter. `bytes` are of the whole array, per
    group: the result of an all-gather, otherwise the operand. Padding that the partitioner added is counted, padding of
    tiles is not. `wire_bytes` are what each device sends if the algorithm is bandwidth-optimal, as a ring: (g-1)/g of
    the bytes, twice that for an all-reduce, all of them for a permute (Chan et al. 2007, table 1).
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


def is_collective(instruction: Instruction) -> bool:
    """Whether an instruction communicates, in a form that is known or not. The end of an asynchronous one does not."""
    return bool(_COLLECTIVE.match(instruction.opcode)) and not instruction.opcode.endswith("-done")


def read_collective(
    computation: Computation, instruction: Instruction, mesh_shape: Mapping[str, int], slices: Group
) -> Collective | None:
    """One run of a collective, as the instruction alone tells it; `is_collective` holds.

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
    between_slices = match[1] is None
    if between_slices:
        kind, group = _transfer_kind(instruction, slices), slices
        if instruction.opcode == "recv":
            return None
    else:
        kind, group = match[1], device_group(instruction, mesh_shape)
    if kind == "all-reduce" and _only_sliced(computation, instruction):
        kind = "reduce-scatter"
    operands = [array for name in instruction.operands for array in computation.instructions[name].arrays]
    whole = sum(array.bytes for array in operands) * (group.size if kind == "all-gather" else 1)
    return Collective(
        name=instruction.name,
        kind=kind,
        axes=group.axes,
        group=group.size,
        bytes=whole,
        wire_bytes=_wire_bytes(kind, whole, group),
        trips=1,
        network="dcn" if between_slices else "ici",
        asynchronous=between_slices or bool(match[2]),
        op_name=instruction.op_name,
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


def _wire_bytes(kind: str, whole: int, group: Group) -> int:
    if kind == "collective-permute":
        return whole if group.axes else 0
    return (2 if kind == "all-reduce" else 1) * whole * (group.size - 1) // group.size


def _only_sliced(computation: Computation, instruction: Instruction) -> bool:
    """Whether nothing but slices of a result is used."""
    users = computation.users.get(instruction.name, ())
    return bool(users) and all(
        user.opcode == "dynamic-slice"
        or (user.opcode in ("get-tuple-element", "bitcast") and _only_sliced(computation, user))
        for user in users
    )
