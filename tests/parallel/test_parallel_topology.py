"""TPU slices that are not there: their devices can be had by name, and every mistake names its fix."""

import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from chinchilla_jax.base.chips import device_peak
from chinchilla_jax.config import ConfigError, MeshConfig
from chinchilla_jax.parallel import topology as topologies
from chinchilla_jax.parallel.rules import MESH_AXES
from chinchilla_jax.parallel.topology import topology, topology_mesh

needs_compiler = [pytest.mark.compiler,
                  pytest.mark.skipif(importlib.util.find_spec("libtpu") is None,
                                     reason="no TPU compiler: pip install 'chinchilla_jax[compiler]'")]  # fmt: skip


@pytest.mark.parametrize(("name", "words"), [
    ("v7x:2x2x1", "unknown TPU generation 'v7x'.*one of v2, .*, tpu7x"), ("tpu:2x2", "unknown TPU generation 'tpu'"),
    ("v5e", "must name the 2 sides of the grid of chips, as in v5e:2x2"), ("v5e:2x2x1", "2 sides"),
    ("v5p:4x4", "must name the 3 sides of the grid of chips, as in v5p:2x2x1"), ("v4:2x0x1", "3 sides"),
    ("v5e:3x2", "first two sides must be even"), ("v5p:1x1x2", "first two sides must be even"),
])  # fmt: skip
def test_a_name_that_is_no_slice_is_refused_with_the_fix(name, words):
    with pytest.raises(ConfigError, match=words):
        topology(name)


def test_without_the_compiler_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'chinchilla_jax\[compiler\]'"):
        topology("v5e:2x2")


class TestWithTheCompiler:
    pytestmark = needs_compiler

    @pytest.mark.parametrize(("name", "devices", "kind"), [
        ("v4:2x2x1", 4, "TPU v4"), ("v5e:2x2", 4, "TPU v5 lite"), ("v5e:2x4", 8, "TPU v5 lite"),
        ("v5e:1x1", 1, "TPU v5 lite"), ("v5p:4x4x4", 64, "TPU v5"), ("v6e:2x2", 4, "TPU v6 lite"),
        ("v3:2x2", 8, "TPU v3"), ("v2:2x2", 8, "TPU v2"), ("tpu7x:2x2x1", 8, "TPU7x"), ("v4:1x1x1", 1, "TPU v4"),
    ])  # fmt: skip
    def test_a_slice_has_the_devices_of_the_real_one(self, name, devices, kind):
        slice_ = topology(name)
        assert len(slice_.devices) == devices
        assert {device.device_kind for device in slice_.devices} == {kind}
        assert device_peak(kind), "the table of chips knows the peak of every slice"

    def test_a_mesh_covers_the_slice_and_is_compiled_for(self):
        mesh = topology_mesh("v5e:2x2", MeshConfig(1, 2, 2))
        assert mesh.axis_names == MESH_AXES and mesh.devices.shape == (1, 2, 1, 2)
        split = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
        x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=split)
        text = jax.jit(lambda a: (a @ a.T).sum()).lower(x).compile().as_text()
        assert "all-reduce" in text

    def test_the_data_axis_crosses_the_slices_before_it_lies_within_them(self):
        mesh = topology_mesh("v5e:2x2", MeshConfig(data=4, fsdp=2), num_slices=2)
        assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "context": 1, "tensor": 1}
        slices = [{device.slice_index for device in part.flat} for part in mesh.devices]
        assert slices == [{0}, {0}, {1}, {1}], "each index of data lies in one slice"

    @pytest.mark.parametrize(("mesh", "words"), [
        (MeshConfig(data=1, fsdp=8), "mesh.data: 1 does not divide over 2 slices"),
        (MeshConfig(data=2, fsdp=2), "2 slices of v5e:2x2 have 8"),
    ])  # fmt: skip
    def test_a_mesh_that_does_not_divide_over_the_slices_is_refused(self, mesh, words):
        with pytest.raises(ConfigError, match=words):
            topology_mesh("v5e:2x2", mesh, num_slices=2)

    def test_the_cpu_computes_as_before(self):
        before = np.asarray(jnp.arange(8.0) @ jnp.arange(8.0))
        topology("v5e:2x2")
        assert jax.default_backend() == "cpu" and jax.device_count() == 8
        assert np.asarray(jnp.arange(8.0) @ jnp.arange(8.0)) == before

    @pytest.mark.parametrize(("mesh", "words"), [
        ((1, 2, 1), "1 x 2 x 1 x 1 has 2 devices, v5p:4x4x4 has 64"),
        ((4, 8, 2), "4 x 8 x 1 x 2 does not fit the grid"),
    ])  # fmt: skip
    def test_a_mesh_that_is_not_the_slice_is_refused(self, mesh, words):
        with pytest.raises(ConfigError, match=words):
            topology_mesh("v5p:4x4x4", MeshConfig(*mesh))

    @pytest.mark.parametrize(("platforms", "code", "says"), [("cpu", 0, ""), (None, 1, "set JAX_PLATFORMS=cpu")])
    def test_it_is_silent_and_only_for_processes_that_stay_on_the_cpu(self, platforms, code, says):
        code_text = "from chinchilla_jax.parallel.topology import topology; topology('v5e:2x2')"
        environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS" and not k.startswith("TPU_")}
        if platforms:
            environment["JAX_PLATFORMS"] = platforms
        done = subprocess.run([sys.executable, "-c", code_text], env=environment, capture_output=True, text=True)
        assert done.returncode == code
        assert done.stdout == "" and (says in done.stderr if says else done.stderr == "")
