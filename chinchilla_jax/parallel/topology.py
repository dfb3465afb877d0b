"""Which devices would a TPU slice have that is not there? They can be compiled for, not run on."""

from __future__ import annotations

import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from chinchilla_jax.base.chips import CHIPS
from chinchilla_jax.config import ConfigError, MeshConfig, did_you_mean
from chinchilla_jax.parallel.mesh import lay_out
from chinchilla_jax.parallel.rules import MESH_AXES

# libtpu looks for a machine with TPUs, complains when there is none, and logs. The accelerator type only keeps it
# quiet: what is compiled for comes from the topology. Without the last line a second process dies of the first's lock.
_ENVIRONMENT = {
    "TPU_LOG_DIR": "disabled",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def topology(name: str, num_slices: int = 1) -> topologies.TopologyDescription:
    """The slice of this name: `v5e:2x2`, `v5p:4x4x4`, `v4:2x2x1`, `tpu7x:2x2x1`; generation and grid of chips.

    Several slices are joined by the data centre network; then a device has a `slice_index`. A device in `.devices` is a
    chip (on v4 both cores as one, a megacore), except on v2, v3 and tpu7x, where each core is one. A `ConfigError` says
    that there is no libtpu, that the process may use another platform than the CPU, or that there is no such slice.
    """
    generation, _, grid = name.partition(":")
    known = {chip.slices.compiler: chip.slices for chip in CHIPS.values() if chip.slices}
    if generation not in known:
        hint = f"{did_you_mean(generation, known)}; one of {', '.join(known)}"
        raise ConfigError("topology", f"unknown TPU generation {generation!r} in {name!r}{hint}")
    axes = known[generation].axes
    if not re.fullmatch("x".join([r"[1-9]\d*"] * axes), grid):
        example = f"{generation}:{'x'.join('221'[:axes])}"
        raise ConfigError("topology", f"{name!r} must name the {axes} sides of the grid of chips, as in {example}")
    sides = [int(side) for side in grid.split("x")]
    single = set(sides) == {1}
    if not single and any(side % 2 for side in sides[:2]):
        raise ConfigError(
            "topology", f"{name!r}: the first two sides must be even (a host has 2 x 2 chips), or all sides 1"
        )
    _prepare()
    options: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if single else {}
    if known[generation].chip_config:
        options["chip_config_name"] = known[generation].chip_config
    if num_slices > 1:
        options["num_slices"] = num_slices
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError("topology", f"{name!r}: libtpu refuses it: {error}") from error


def topology_mesh(name: str, config: MeshConfig, num_slices: int = 1) -> Mesh:
    """A mesh over all devices of a slice that is not there, or of `num_slices` equal ones: see `mesh.lay_out`.

    A `ConfigError` is raised as by `topology`, or if the mesh has not as many devices, or cannot be laid out on them.
    """
    devices = topology(name, num_slices).devices
    if config.size != len(devices):
        where = f"{num_slices} slices of {name} have" if num_slices > 1 else f"{name} has"
        factors = ", ".join(f"mesh.{axis}" for axis in MESH_AXES)
        raise ConfigError(
            "mesh",
            f"{config} has {config.size} devices, {where} {len(devices)}; the product of {factors} must be "
            f"{len(devices)}",
        )
    return lay_out(config, devices)


def _prepare() -> None:
    """What libtpu must find when it is loaded."""
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "topology", "the TPU compiler libtpu is not installed: pip install 'chinchilla_jax[compiler]'"
        )
    if jax.config.jax_platforms != "cpu":
        raise ConfigError("topology", "a process that describes a TPU must not use one: set JAX_PLATFORMS=cpu")
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
