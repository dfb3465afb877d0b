"""How do tensors in files become parameters on devices? Some rows at a time, each straight to where it belongs.

Every device gets room for its shard, which is filled piece by piece: at no time does the host hold more of the weights
than a piece, and what was read of a layer is not kept until the layers are stacked.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.interop.layout import Name, Place, places
from chinchilla_jax.interop.safetensors import Tensors

PIECE = 2**25  # bytes of rows that are read at a time, or one unit of them
Index = tuple[slice, ...]


def load_params(
    tensors: Tensors, names: Mapping[str, Name], model: ModelConfig, abstract: dict[str, Any], piece: int = PIECE
) -> dict[str, Any]:
    """The parameters of `model`, laid out as `abstract` says (`TrainState.params` of `ShapeDtypeStruct`s).

    The tensors have the names and shapes that they should have (`layout.check_shapes`).
    """
    found: dict[str, list[tuple[tuple[int, ...], Place]]] = {}
    for place in places(model, names):
        leaf, at = _leaf(place, model.scan_layers)
        found.setdefault(leaf, []).append((at, place))

    def make(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return _array(leaf, found["/".join(key.key for key in path)], tensors, piece)

    return jax.tree_util.tree_map_with_path(make, abstract)


def _leaf(place: Place, scanned: bool) -> tuple[str, tuple[int, ...]]:
    """Which parameter a place is of, and where in it."""
    if place.layer is None:
        return place.path, place.at
    return (f"layers/{place.path}", place.at) if scanned else (f"layer_{place.layer}/{place.path}", place.at[1:])


def _array(
    leaf: jax.ShapeDtypeStruct, parts: Sequence[tuple[tuple[int, ...], Place]], tensors: Tensors, piece: int
) -> jax.Array:
    """One parameter. Devices that hold the same of it are filled from one reading."""
    shards: dict[tuple, list[jax.Device]] = {}
    for device, index in leaf.sharding.addressable_devices_indices_map(leaf.shape).items():
        limits = tuple(axis.indices(size)[:2] for axis, size in zip(index, leaf.shape, strict=True))
        shards.setdefault(limits, []).append(device)
    filled = []
    for limits, devices in shards.items():
        shape = tuple(stop - start for start, stop in limits)
        held = [jnp.zeros(shape, leaf.dtype, device=device) for device in devices]
        for at, place in parts:
            if all(start <= number < stop for number, (start, stop) in zip(at, limits, strict=False)):
                for starts, block in _blocks(tensors, place, limits[len(at) :], piece):
                    block = np.asarray(block, leaf.dtype).reshape((1,) * len(at) + block.shape)
                    begin = [number - start for number, (start, _) in zip((*at, *starts), limits, strict=True)]
                    held = [_filled(whole, block, begin, device) for whole, device in zip(held, devices, strict=True)]
        filled += held
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, filled)


def _blocks(
    tensors: Tensors, place: Place, limits: Sequence[tuple[int, int]], piece: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Of the weight at a place what lies within the limits: where each block begins, and the block."""
    first, unit, name = place.row_axes[0], place.unit, place.tensor
    row = math.prod(place.tensor_shape[1:]) * tensors.dtype(name).itemsize
    step = max(1, piece // (row * unit))
    begin, end = limits[first]
    others = tuple(slice(start, stop) if axis != first else slice(None) for axis, (start, stop) in enumerate(limits))
    for number in range(begin, end, step):
        last = min(number + step, end)
        rows = tensors.rows(name, place.offset + number * unit, place.offset + last * unit)
        starts = [start if axis != first else number for axis, (start, _) in enumerate(limits)]
        yield starts, place.block(rows)[others]


def _filled(whole: jax.Array, block: np.ndarray, begin: list[int], device: jax.Device) -> jax.Array:
    if block.shape == whole.shape:
        return jax.block_until_ready(jax.device_put(block.copy(), device))  # the copy: it may be kept as it is
    return jax.block_until_ready(_write(whole, jax.device_put(block, device), np.asarray(begin, np.int32)))


@functools.partial(jax.jit, donate_argnums=0)
def _write(whole: jax.Array, block: jax.Array, begin: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice(whole, block, list(begin))
