"""What does one operation of a compiled program cost? FLOPs of its products, bytes it moves, arrays it makes."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

from chinchilla_jax.base.hlo import Array, Computation, HloError, Instruction, Module
from chinchilla_jax.preflight.program.collectives import KINDS

_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_BATCH_GROUPS = re.compile(r"batch_group_count=(\d+)")


def matmul_flops(module: Module, computation: Computation, instruction: Instruction) -> int:
    """2 m n k of a dot or convolution, or of all in a fusion; of a convolution only products within its bounds.

    Raises:
      HloError: a product without the attributes that say what it sums over.
    """
    if instruction.opcode == "fusion":
        called = _fused(module, instruction)
        return sum(matmul_flops(module, called, inner) for inner in called.instructions.values())
    if instruction.opcode == "dot":
        contracted = _CONTRACTED.search(instruction.attributes)
        if contracted is None:
            raise HloError(f"{instruction.name}: a dot that does not say what it contracts")
        shape = _array(computation, instruction.operands[0]).shape
        depth = math.prod(shape[int(axis)] for axis in contracted[1].split(",") if axis)
        return 2 * math.prod(instruction.arrays[0].shape) * depth
    return _convolution_flops(computation, instruction) if instruction.opcode == "convolution" else 0


def _convolution_flops(computation: Computation, instruction: Instruction) -> int:
    """A TPU's products are convolutions: a batch axis is a spatial one, dilated so that only its diagonal counts."""
    labels = _LABELS.search(instruction.attributes)
    if labels is None:
        raise HloError(f"{instruction.name}: a convolution without dim_labels")
    left, right, out = labels.groups()
    lhs, rhs = (_array(computation, name).shape for name in instruction.operands[:2])
    result = instruction.arrays[0].shape
    window = _WINDOW.search(instruction.attributes)
    settings = dict(part.split("=") for part in window[1].split()) if window else {}
    groups = _BATCH_GROUPS.search(instruction.attributes)
    rows = lhs[left.index("b")] // (int(groups[1]) if groups else 1)
    flops = 2 * rows * result[out.index("f")] * rhs[right.index("i")]
    for spatial in range(len(left) - 2):
        axis = str(spatial)
        sides = lhs[left.index(axis)], rhs[right.index(axis)], result[out.index(axis)]
        parts = {key: value.split("x")[spatial] for key, value in settings.items()}
        low = int(parts.get("pad", "0_0").split("_")[0])
        flops *= _pairs(*sides, low, *(int(parts.get(key, 1)) for key in ("stride", "lhs_dilate", "rhs_dilate")))
    return flops


@functools.lru_cache(maxsize=1024)
def _pairs(lhs: int, rhs: int, out: int, low: int, stride: int, lhs_dilate: int, rhs_dilate: int) -> int:
    """How many places of a window, over all results, lie on an element of the left side and not on padding."""
    places = (o * stride + k * rhs_dilate - low for o in range(out) for k in range(rhs))
    return sum(1 for place in places if 0 <= place <= (lhs - 1) * lhs_dilate and place % lhs_dilate == 0)


def _fused(module: Module, fusion: Instruction) -> Computation:
    return module.computation(fusion.called("calls"), fusion.name)


def _array(computation: Computation, name: str) -> Array:
    return computation.instructions[name].arrays[0]


def _bytes(computation: Computation, name: str, hbm_only: bool = False) -> int:
    return sum(a.bytes for a in computation.instructions[name].arrays if a.space == 0 or not hbm_only)


def hbm_bytes(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Bytes that an operation of the schedule reads from HBM and writes to it."""
    total = sum(array.bytes for _, array in _written(module, computation, instruction) if array.space == 0)
    for index, name in enumerate(instruction.operands):
        if whole := _bytes(computation, name, hbm_only=True):
            total += min(whole, _read(module, computation, instruction, index))
    return total


def written_arrays(module: Module, computation: Computation, instruction: Instruction) -> list[tuple[int, Array]]:
    """The arrays of a result that the operation makes whole, with their place in it.

    Those that it passes on or updates in place are not among them.
    """
    results = instruction.arrays
    return [(i, array) for i, array in _written(module, computation, instruction) if array == results[i]]


def _written(module: Module, computation: Computation, instruction: Instruction) -> list[tuple[int, Array]]:
    """What is written of each array of a result.

    An update in place is an array as large as the update, in the memory of the whole.
    """
    results = instruction.arrays
    if instruction.opcode == "send":
        return []
    if instruction.opcode.endswith("-start"):
        return _started(computation, instruction)
    if instruction.opcode == "dynamic-update-slice":
        update = _array(computation, instruction.operands[1])
        return [(0, dataclasses.replace(update, space=results[0].space))]
    if instruction.opcode != "fusion":
        return list(enumerate(results))
    inner = _fused(module, instruction)
    root = inner.instructions[inner.root]
    names = root.operands if root.opcode == "tuple" else (root.name,)
    if len(names) != len(results):  # the context of an asynchronous collective
        return []
    made = [_bytes_made(module, inner, name) for name in names]
    return [
        (i, result if size >= result.bytes else Array(result.dtype, (), result.space, size))
        for i, (size, result) in enumerate(zip(made, results, strict=True))
        if size
    ]


def _started(computation: Computation, instruction: Instruction) -> list[tuple[int, Array]]:
    """The result of a copy, slice or collective that is begun: what is not an operand and not a flag."""
    passed = [array for name in instruction.operands for array in computation.instructions[name].arrays]
    parts = []
    for index, array in enumerate(instruction.arrays):
        if array in passed:
            passed.remove(array)
        elif array.dtype not in ("u32", "s32") or array.shape:
            parts.append((index, array))
    return parts


def _bytes_made(module: Module, computation: Computation, name: str) -> int:
    """Bytes that a fused computation writes of one of its results."""
    instruction = computation.instructions[name]
    opcode = instruction.opcode
    part = opcode == "custom-call" and "AsyncCollective" in instruction.attributes
    if part or opcode == "parameter" or opcode.removesuffix("-start") in KINDS:
        return 0
    if opcode == "bitcast":
        return _bytes_made(module, computation, instruction.operands[0])
    if opcode == "fusion" and len(instruction.arrays) == 1:
        inner = _fused(module, instruction)
        return _bytes_made(module, inner, inner.root)
    if opcode == "dynamic-update-slice":
        whole = computation.instructions[instruction.operands[0]]
        while whole.opcode == "bitcast":
            whole = computation.instructions[whole.operands[0]]
        if whole.opcode == "parameter":  # it is in memory already, and only the slice is written
            return _bytes(computation, instruction.operands[1])
    return _bytes(computation, name)


def _read(module: Module, computation: Computation, instruction: Instruction, index: int) -> int:
    """Bytes that an operation reads of its operand of this number, perhaps more than it has: see `hbm_bytes`."""
    opcode = instruction.opcode.removesuffix("-start")
    if opcode in ("dynamic-slice", "slice", "gather") and index == 0:
        started = instruction.opcode.endswith("-start")
        sliced = [a for _, a in _started(computation, instruction)] if started else instruction.arrays
        return min(array.bytes for array in sliced)
    if opcode == "dynamic-update-slice" and index == 0:
        return 0
    if instruction.opcode == "fusion":
        inner = _fused(module, instruction)
        return _read_within(module, inner, inner.parameters[index])
    if opcode in (*KINDS, "tuple") or "AsyncCollective" in instruction.attributes:
        return 0
    return _bytes(computation, instruction.operands[index])


def _read_within(module: Module, computation: Computation, name: str) -> int:
    """Bytes that a fused computation reads of a value."""
    total = 0
    for user in computation.users.get(name, ()):
        if user.opcode == "bitcast":
            total += _read_within(module, computation, user.name)
        else:
            indices = [index for index, operand in enumerate(user.operands) if operand == name]
            total += sum(_read(module, computation, user, index) for index in indices)
    return total
