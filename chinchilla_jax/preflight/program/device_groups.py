"""Which mesh axes does a collective span? Read from its groups of devices.

A device's number is its position in the flattened mesh, the first axis slowest. The compiler writes groups in four
notations: as pairs (of a permute), as lists, as a reshaped and transposed range (`[8,64]<=[64,8]T(1,0)`: 8 groups of
64), or as axes of a mesh of the partitioner's own.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from chinchilla_jax.base.hlo import HloError, Instruction

_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")
_LISTS = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_RANGE = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}")
_MESH_AXIS = re.compile(r"'([^']+)'=(\d+)")
_GROUP_AXIS = re.compile(r"'([^']+)'(:\(\d+\)\d+)?")


@dataclasses.dataclass(frozen=True)
class Group:
    """The axes along which the devices of a group differ, and how many devices are in one group."""

    axes: tuple[str, ...]
    size: int


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


def device_group(instruction: Instruction, mesh_shape: Mapping[str, int]) -> Group:
    """The group of a collective, on a mesh whose axes are listed slowest first.

    Raises:
      HloError: groups in an unknown notation, of different sizes, or that leave out devices.
    """
    if pairs := _PAIRS.search(instruction.attributes):
        axes = _axes(_lists(pairs[1]), mesh_shape)
        return Group(axes, math.prod(mesh_shape[axis] for axis in axes))
    devices = math.prod(mesh_shape.values())
    groups = _replica_groups(instruction, devices)
    sizes = {len(group) for group in groups}
    if len(sizes) != 1 or sorted(device for group in groups for device in group) != list(range(devices)):
        raise HloError(f"{instruction.name}: groups of different sizes, or not of all {devices} devices")
    return Group(_axes(groups, mesh_shape), sizes.pop())


def _replica_groups(instruction: Instruction, devices: int) -> Sequence[Sequence[int]]:
    text = instruction.attributes
    if match := _LISTS.search(text):
        return _lists(match[1]) or [range(devices)]
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


def _lists(text: str) -> list[list[int]]:
    """`{0,1},{2,3}` -> [[0, 1], [2, 3]]."""
    return [_numbers(numbers) for numbers in re.findall(r"\{([\d,]+)\}", text)]


def _range(dims: str, order: str | None) -> np.ndarray:
    """The numbers 0, 1, ... in an array of these dimensions, read in another order of its axes."""
    shape = _numbers(dims)
    return np.arange(math.prod(shape)).reshape(shape).transpose(_numbers(order) if order else None).ravel()


def _axes(groups: Sequence[Sequence[int]], mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The axes in which the coordinates of some group's devices differ."""
    devices = np.array(groups, int).reshape(len(groups), -1)
    axes, stride = [], math.prod(mesh_shape.values())
    for axis, extent in mesh_shape.items():
        stride //= extent
        places = devices // stride % extent
        if (places != places[:, :1]).any():
            axes.append(axis)
    return tuple(axes)
