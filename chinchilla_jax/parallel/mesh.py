"""Which device is where in the mesh of a run?"""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from chinchilla_jax.base.chips import chip_of
from chinchilla_jax.config import ConfigError, MeshConfig
from chinchilla_jax.parallel.rules import MESH_AXES


def make_mesh(config: MeshConfig) -> Mesh:
    """A `data x fsdp x context x tensor` mesh over the first `config.size` devices, or all of several processes.

    Raises:
      ConfigError: there are fewer devices than the mesh needs, or several processes have more; or see `lay_out`.
    """
    available = jax.device_count()
    if config.size > available:
        raise ConfigError(
            "mesh",
            f"{config} needs {config.size} devices, {available} "
            f"{jax.default_backend()} device(s) found; lower mesh.data, mesh.fsdp, "
            "mesh.context or mesh.tensor",
        )
    if jax.process_count() > 1 and config.size < available:
        raise ConfigError(
            "mesh",
            f"{config} uses {config.size} of the {available} devices of {jax.process_count()} "
            "processes; all must take part: raise mesh.data, mesh.fsdp, mesh.context or "
            "mesh.tensor",
        )
    return lay_out(config, jax.devices()[: config.size])


def lay_out(config: MeshConfig, devices: Sequence[jax.Device]) -> Mesh:
    """These devices as a mesh; on a TPU slice neighbours in it are neighbours in the slice.

    Between slices the network is slow, so that the `data` axis, along which only gradients are added up, crosses it:
    it is split over the slices first, and what is left of it lies within each.

    Raises:
      ConfigError: `mesh.data` does not divide over the slices, or an axis is not made of whole sides of their grid.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if config.data % slices:
        raise ConfigError(
            "mesh.data",
            f"{config.data} does not divide over {slices} slices; use a multiple of "
            f"{slices}: the data axis crosses the network between slices",
        )
    types = (AxisType.Auto,) * len(MESH_AXES)
    try:
        if slices == 1:
            return jax.make_mesh(config.shape, MESH_AXES, axis_types=types, devices=devices)
        within, across = (config.data // slices, *config.shape[1:]), (slices, *(1 for _ in config.shape[1:]))
        chip = chip_of(devices[0].device_kind)
        split = chip is not None and chip.slices is not None and chip.slices.splits_sides  # as jax.make_mesh does
        grid = mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=split)
        return Mesh(grid, MESH_AXES, axis_types=types)
    except NotImplementedError as error:
        raise ConfigError(
            "mesh",
            f"{config} does not fit the grid of {slices} x {devices[0].device_kind}: each axis "
            f"must be made of whole sides of it ({error})",
        ) from error
