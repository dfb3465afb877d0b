"""What the compiler says of memory is read, links are counted, and collectives are added up."""

import pytest

from chinchilla_jax.config import MeshConfig
from chinchilla_jax.parallel.topology import topology_mesh
from chinchilla_jax.preflight import compiled
from chinchilla_jax.preflight.compiled import axis_links, usable_hbm
from chinchilla_jax.preflight.program.collectives import Collective
from chinchilla_jax.preflight.slices import parse_slice
from chinchilla_jax.preflight.step import Traffic
from tests.compiling import libtpu, needs_compiler

GIB = 2**30


# What libtpu 0.0.42.1 says, before it assigns buffers and while it does.
@pytest.mark.parametrize(("message", "needed", "available"), [
    ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (46.47G) exceeds "
     "available HBM (15.75G).", 46.47, 15.75),
    ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 17.34G of "
     "15.75G hbm. Exceeded hbm capacity by 1.59G.\n\nTotal hbm usage >= 17.59G:", 17.34, 15.75),
    ("RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (1.5T) exceeds available HBM (95.74G).",
     1536, 95.74),
])  # fmt: skip
def test_the_compilers_refusals_are_read(message, needed, available):
    found = compiled.read_refusal(message)
    assert found.needed / GIB == pytest.approx(needed) and found.available / GIB == pytest.approx(available)
    assert len(found.message.splitlines()) == 1


@pytest.mark.parametrize("message", [
    "INVALID_ARGUMENT: the total memory required for HLO temporaries (1G) exceeds available HBM (1G)",
    "RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom: Used 20.1M of 16.0M scoped vmem",
])  # fmt: skip
def test_other_errors_are_no_refusals(message):
    assert compiled.read_refusal(message) is None


def test_collectives_are_added_up_by_kind_axes_loop_and_whether_they_overlap():
    def collective(kind, axes, group, size, wire, trips, network="ici", asynchronous=False, loops=("w",)):
        return Collective("c", kind, axes, group, size, wire, trips, network, asynchronous, "x/layers/y", loops)

    found = compiled.traffic(
        [
            collective("all-gather", ("fsdp",), 4, 400, 300, 10),
            collective("all-gather", ("fsdp",), 4, 800, 600, 10),
            collective("all-gather", ("fsdp",), 4, 400, 300, 1, loops=()),
            collective("all-reduce", ("data",), 2, 50, 50, 1, network="dcn", asynchronous=True),
            collective("all-to-all", ("fsdp",), 16, 100, 93, 1),
            collective("all-to-all", ("context",), 16, 99, 92, 1),
        ],
        {"data": 0, "fsdp": 2, "context": 4},
    )
    assert found == (
        Traffic("all-gather", ("fsdp",), True, False, 2, 20, 12000, 9000, 0),
        Traffic("all-to-all", ("fsdp",), True, False, 1, 1, 100, 400, 0),  # 16 / 4 links on the way
        Traffic("all-gather", ("fsdp",), False, False, 1, 1, 400, 300, 0),
        Traffic("all-to-all", ("context",), True, False, 1, 1, 99, 198, 0),  # 4 / 4 on either of two rings
        Traffic("all-reduce", ("data",), True, True, 1, 1, 50, 0, 50),
    )


class TestWithTheCompiler:
    pytestmark = needs_compiler

    @pytest.mark.parametrize(("generation", "gib"), [("v4", 30.75), ("v5e", 15.75), ("v5p", 95.74), ("v6e", 31.25)])
    def test_the_compiler_says_how_much_memory_it_uses(self, generation, gib):
        # libtpu 0.0.50 keeps 0.01 GiB more for itself on these two than 0.0.42 does.
        kept = 0.01 if libtpu() >= (0, 0, 50) and generation in ("v5p", "v6e") else 0.0
        assert usable_hbm(generation) / 2**30 == pytest.approx(gib - kept)

    @pytest.mark.parametrize(("name", "mesh", "links"), [
        ("v5e-256", (1, 16, 16), {"data": 0, "fsdp": 2, "context": 0, "tensor": 2}),
        ("v5e-256", (1, 64, 4), {"data": 0, "fsdp": 3, "context": 0, "tensor": 1}),
        ("v5e-16", (1, 16, 1), {"data": 0, "fsdp": 2, "context": 0, "tensor": 0}),
        ("v5p-1024", (1, 64, 8), {"data": 0, "fsdp": 4, "context": 0, "tensor": 2}),
        ("2xv5p-1024", (2, 512, 1), {"data": 0, "fsdp": 6, "context": 0, "tensor": 0}),
    ])  # fmt: skip
    def test_a_mesh_axis_has_two_links_for_each_ring_and_one_for_a_line(self, name, mesh, links):
        slice_ = parse_slice(name)
        assert axis_links(topology_mesh(slice_.topology, MeshConfig(*mesh), slice_.count), slice_) == links
