"""The device mesh of a run."""

from __future__ import annotations

import jax
from jax.sharding import AxisType, Mesh

from chinchilla_jax.config import ConfigError, MeshConfig
from chinchilla_jax.parallel.rules import MESH_AXES


def make_mesh(config: MeshConfig) -> Mesh:
    """A `data x fsdp x context x tensor` mesh over the first `config.size` devices, or all of several processes.

    Raises:
      ConfigError: there are fewer devices than the mesh needs, or several processes have more.
    """
    available = jax.device_count()
    if config.size > available:
        raise ConfigError("mesh", f"{config} needs {config.size} devices, {available} "
                          f"{jax.default_backend()} device(s) found; lower mesh.data, mesh.fsdp, "
                          "mesh.context or mesh.tensor")  # fmt: skip
    if jax.process_count() > 1 and config.size < available:
        raise ConfigError("mesh", f"{config} uses {config.size} of the {available} devices of {jax.process_count()} "
                          "processes; all must take part: raise mesh.data, mesh.fsdp, mesh.context or "
                          "mesh.tensor")  # fmt: skip
    devices = jax.devices()[: config.size]
    return jax.make_mesh(config.shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)
