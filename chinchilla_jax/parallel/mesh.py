"""Which device is where in the mesh of a run, and which rows of a batch does it hold?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, Sharding

from chinchilla_jax.base.chips import chip_of
from chinchilla_jax.config import ConfigError, MeshConfig

if TYPE_CHECKING:
    from chinchilla_jax.data.batches import Batch


def make_mesh(config: MeshConfig) -> Mesh:
    """A `data x fsdp x context x tensor` mesh over the first `config.size` devices, or all of several processes.

    If `expert` has several devices, it comes after `fsdp`.

    A `ConfigError` says that there are too few devices, or too many of several processes; see also `lay_out`.
    """
    available = jax.device_count()
    if config.size > available:
        raise ConfigError(
            "mesh",
            f"{config} needs {config.size} devices, {available} {jax.default_backend()} device(s) found; lower "
            "mesh.data, mesh.fsdp, mesh.context or mesh.tensor",
        )
    if jax.process_count() > 1 and config.size < available:
        raise ConfigError(
            "mesh",
            f"{config} uses {config.size} of the {available} devices of {jax.process_count()} processes; all must take "
            "part: raise mesh.data, mesh.fsdp, mesh.context or mesh.tensor",
        )
    return lay_out(config, jax.devices()[: config.size])


def lay_out(config: MeshConfig, devices: Sequence[jax.Device]) -> Mesh:
    """These devices as a mesh; on a TPU slice neighbours in it are neighbours in the slice.

    Between slices the network is slow, so the `data` axis, along which only gradients are added up, crosses it: it is
    split over the slices first, and what is left of it lies within each. A `ConfigError` says that it does not divide
    over them, or that an axis is not made of whole sides of their grid.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if config.data % slices:
        raise ConfigError(
            "mesh.data",
            f"{config.data} does not divide over {slices} slices; use a multiple of {slices}: the data axis crosses "
            "the network between slices",
        )
    axes = tuple(config.axes)
    types = (AxisType.Auto,) * len(axes)
    try:
        if slices == 1:
            return jax.make_mesh(config.shape, axes, axis_types=types, devices=devices)
        within, across = (config.data // slices, *config.shape[1:]), (slices, *(1 for _ in config.shape[1:]))
        chip = chip_of(devices[0].device_kind)
        split = chip is not None and chip.slices is not None and chip.slices.splits_sides  # as jax.make_mesh does
        grid = mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=split)
        return Mesh(grid, axes, axis_types=types)
    except NotImplementedError as error:
        raise ConfigError(
            "mesh",
            f"{config} does not fit the grid of {slices} x {devices[0].device_kind}: each axis must be made of whole "
            f"sides of it ({error})",
        ) from error


def local_rows(shape: tuple[int, int, int], sharding: Sharding, devices: set | None = None) -> list[np.ndarray]:
    """Row numbers of a global batch `[M, B/M, S]` that devices (default: this process's) hold.

    Row `[m, b]` has number `m * B/M + b`. One int array `[m, b]` for each distinct block, in the order of their first
    rows; together they cover each row once.
    """
    numbers = np.arange(shape[0] * shape[1]).reshape(shape[:2])
    indices = sharding.devices_indices_map(shape)
    mine = sharding.addressable_devices if devices is None else devices
    blocks = {numbers[indices[device][:2]].tobytes(): numbers[indices[device][:2]] for device in mine}
    return sorted(blocks.values(), key=lambda rows: rows[0, 0])


def place(build: Callable[..., Batch], shape: tuple[int, int, int], sharding: Sharding) -> dict[str, jax.Array]:
    """The global arrays `[M, B/M, S]` of a batch on the devices.

    `build` makes host arrays `[n, S]` by name of the batch's rows with these numbers; without an argument of all rows.
    """
    if jax.process_count() > 1:
        return assemble(build, shape, sharding)
    return jax.device_put({name: rows.reshape(shape) for name, rows in build().items()}, sharding)


def assemble(
    build: Callable[[np.ndarray], Batch], shape: tuple[int, int, int], sharding: Sharding
) -> dict[str, jax.Array]:
    """`place`, where this process builds only the rows that its devices hold."""
    numbers = np.arange(shape[0] * shape[1]).reshape(shape[:2])
    blocks = {rows.tobytes(): build(rows.ravel()) for rows in local_rows(shape, sharding)}
    names = next(iter(blocks.values()))

    def part(name: str, index: tuple[slice, ...]) -> np.ndarray:
        rows = numbers[index[:2]]
        return blocks[rows.tobytes()][name].reshape(*rows.shape, shape[2])[..., index[2]]

    return {
        name: jax.make_array_from_callback(shape, sharding, lambda index, name=name: part(name, index))
        for name in names
    }
