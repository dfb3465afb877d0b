"""Which mesh axes does a collective span? Read from its groups of devices.

A device's number is its position in the flattened mesh, the first axis slowest. Groups are written as lists, as a
reshaped and transposed range (`[8,64]<=[64,8]T(1,0)`: 8 groups of 64), or as axes of a mesh of the partitioner's own.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

from chinchilla_jax.base.hlo import HloError, Instruction

_LISTS = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_RANGE = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}")
_MESH_AXIS = re.compile(r"'([^']+)'=(\d+)")
_GROUP_AXIS = re.compile(r"'([^']+)'(:\((\d+)\)(\d+))?")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")


@dataclasses.dataclass(frozen=True)
class Group:
    """The axes along which the devices of a group differ, and how many there are in one."""

    axes: tuple[str, ...]
    size: int


def slices_of(mesh_shape: Mapping[str, int], devices: int) -> tuple[dict[str, int], Group]:
    """What one slice holds of a mesh, and which axes run across slices, with their number.

    The program of a job of several slices is that of one of them, with its `devices`; the slices are the slowest part
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
        raise HloError(f"a program for {devices} devices on a mesh {dict(mesh_shape)}, which is no number of slices of "
                       "that size along its first axes")  # fmt: skip
    return inside, Group(tuple(axes), count)


def device_group(instruction: Instruction, mesh_shape: Mapping[str, int]) -> Group:
    """Of a collective, on a mesh whose axes are given slowest first.

    Raises:
      HloError: groups of a form that is not known, or of different sizes.
    """
    text = instruction.attributes
    devices = math.prod(mesh_shape.values())
    if pairs := _PAIRS.search(text):
        groups = [pair for found in re.findall(r"\d+,\d+", pairs[1]) if (pair := _numbers(found))]
        axes = _axes(groups, mesh_shape)
        return Group(axes, math.prod(mesh_shape[axis] for axis in axes))
    if lists := _LISTS.search(text):
        groups = [_numbers(found) for found in re.findall(r"\{([\d,]+)\}", lists[1])] or [list(range(devices))]
    elif found := _RANGE.search(text):
        shape, dims = _numbers(found[1]), _numbers(found[2])
        groups = _rows(_transposed(dims, _numbers(found[3] or "")), shape[-1])
    elif found := _MESH.search(text):
        groups = _groups_of_mesh(found, instruction.name)
    else:
        raise HloError(f"{instruction.name}: {instruction.opcode} with groups of devices that are not understood")
    sizes = {len(group) for group in groups}
    if len(sizes) != 1 or sorted(device for group in groups for device in group) != list(range(devices)):
        raise HloError(f"{instruction.name}: groups of different sizes, or not of all {devices} devices")
    return Group(_axes(groups, mesh_shape), sizes.pop())


def _groups_of_mesh(found: re.Match, name: str) -> list[list[int]]:
    axes = [(axis, int(extent)) for axis, extent in _MESH_AXIS.findall(found[1])]
    dims = [extent for _, extent in axes]
    order = list(range(math.prod(dims)))
    if found[2]:
        order = _transposed(_numbers(found[2]), _numbers(found[3] or ""))
    wanted = set()
    for axis, part, _, _ in _GROUP_AXIS.findall(found[4]):
        if part:
            raise HloError(f"{name}: groups over a part of a mesh axis, which is not understood")
        wanted.add(axis)
    last = [i for i, (axis, _) in enumerate(axes) if axis in wanted]
    places = _transposed(dims, [i for i in range(len(axes)) if i not in last] + last)
    return _rows([order[place] for place in places], math.prod(dims[i] for i in last))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _rows(values: list[int], width: int) -> list[list[int]]:
    return [values[start : start + width] for start in range(0, len(values), width)]


def _transposed(dims: list[int], order: list[int]) -> list[int]:
    """The numbers 0, 1, ... of an array of these dimensions, read in another order of its axes."""
    order = order or list(range(len(dims)))
    strides = [math.prod(dims[axis + 1 :]) for axis in range(len(dims))]
    values = [0]
    for axis in order:
        values = [value + place * strides[axis] for value in values for place in range(dims[axis])]
    return values


def _axes(groups: list[list[int]], mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The axes in which the coordinates of some group's devices differ."""
    found, stride = [], math.prod(mesh_shape.values())
    for axis, extent in mesh_shape.items():
        stride //= extent
        if any(len({device // stride % extent for device in group}) > 1 for group in groups):
            found.append(axis)
    return tuple(found)
