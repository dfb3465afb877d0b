"""Names of slices: what Cloud's names mean in chips, and every mistake names the nearest slice."""

import math

import pytest

from chinchilla_jax.base.chips import CHIPS
from chinchilla_jax.config import ConfigError, MeshConfig
from chinchilla_jax.parallel.topology import topology_mesh
from chinchilla_jax.preflight.slices import lays_out, offered, parse_slice
from tests.compiling import needs_compiler


@pytest.mark.parametrize(("name", "chips", "grid", "says"), [
    ("v5e-16", 16, (4, 4), "v5e-16: 16 chips, 4x4"),
    ("v5litepod-16", 16, (4, 4), "v5e-16: 16 chips, 4x4"),
    ("v5e-1", 1, (1, 1), "v5e-1: 1 chips, 1x1"),
    ("v6e-64", 64, (8, 8), "v6e-64: 64 chips, 8x8"),
    ("v4-8", 4, (2, 2, 1), "v4-8: 4 chips, 2x2x1"),
    ("v4-1024", 512, (8, 8, 8), "v4-1024: 512 chips, 8x8x8"),
    ("v4-4096", 2048, (8, 16, 16), "v4-4096: 2048 chips, 8x16x16"),
    ("v5p-512", 256, (4, 8, 8), "v5p-512: 256 chips, 4x8x8"),
    ("v5p-2048", 1024, (8, 8, 16), "v5p-2048: 1024 chips, 8x8x16"),
    ("v5p-12288", 6144, (16, 16, 24), "v5p-12288: 6144 chips, 16x16x24"),
    ("2xv5e-256", 512, (16, 16), "2xv5e-256: 512 chips, 2 slices of 16x16"),
    ("v5p:8x8x8", 512, (8, 8, 8), "v5p-1024: 512 chips, 8x8x8"),
    ("4xv5p:4x4x20", 1280, (4, 4, 20), "4xv5p:4x4x20: 1280 chips, 4 slices of 4x4x20"),
])  # fmt: skip
def test_a_name_means_chips_in_a_grid_and_slices_of_cores_say_so(name, chips, grid, says):
    slice_ = parse_slice(name)
    assert (slice_.chips, slice_.grid, str(slice_)) == (chips, grid, says)
    assert parse_slice(slice_.name) == slice_


@pytest.mark.parametrize(("name", "words"), [
    ("v5e-100", "no slice 'v5e-100'; nearest: v5e-64 or v5e-128"),
    ("v5p-500", "counts TensorCores, two to a chip.*nearest: v5p-384 or v5p-512"),
    ("v4-7", "nearest: v4-8 or v4-16"),
    ("v7x-8", "unknown TPU generation 'v7x'"),
    ("v5x-8", "did you mean 'v5p'|did you mean 'v5e'"),
    ("v5e", "write v5e-16"),
    ("0xv5e-16", "is no slice"),
    ("v5p:8x8", "3 sides, as in v5p:2x2x1"),
    ("v5e:3x4", "first two sides must be even; nearest: v5e:2x4"),
    ("v6e:32x32", "at most 256 chips; nearest: v6e:16x16"),
    ("v5p:4x4x0", "nearest: v5p:2x2x1"),
])  # fmt: skip
def test_what_is_no_slice_is_refused_with_the_nearest(name, words):
    with pytest.raises(ConfigError, match=words):
        parse_slice(name)


@pytest.mark.parametrize("generation", ["v4", "v5e", "v5p", "v6e"])
def test_every_offered_grid_has_the_chips_it_is_listed_under_and_the_figures_to_time_it(generation):
    assert all(math.prod(grid) == chips for chips, grid in offered(generation).items())
    chip, axes = CHIPS[generation], {len(grid) for grid in offered(generation).values()}
    assert {2 * n for n in axes} == {chip.network.links}
    assert chip.hbm_bandwidth > chip.network.links * chip.network.link_bandwidth > chip.network.dcn_bandwidth


@pytest.mark.parametrize(("name", "rings"), [
    ("v5e-256", [True, True]), ("v5e-128", [False, True]), ("v5p-1024", [True] * 3), ("v4-64", [False] * 3),
])  # fmt: skip
def test_which_sides_are_rings(name, rings):
    slice_ = parse_slice(name)
    assert [slice_.wraps(axis) for axis in range(len(slice_.grid))] == rings


@pytest.mark.parametrize(("name", "mesh", "fits"), [
    ("v5p-1024", (1, 64, 8), True), ("v5p-1024", (8, 8, 8), True), ("v5p-1024", (1, 128, 4), False),
    ("v5p-512", (1, 64, 4), True), ("v5p-512", (1, 32, 4), False), ("v6e-64", (1, 16, 4), False),
    ("v5e-256", (1, 64, 4), True), ("2xv6e-64", (2, 64, 1), True), ("2xv6e-64", (1, 64, 2), False),
])  # fmt: skip
def test_a_mesh_needs_whole_sides_of_the_grid_and_data_over_the_slices(name, mesh, fits):
    assert lays_out(parse_slice(name), MeshConfig(*mesh)) is fits


class TestWithTheCompiler:
    pytestmark = needs_compiler

    @pytest.mark.parametrize("name", ["v5p-256", "v6e-64", "v4-128", "2xv6e-16"])
    def test_the_meshes_that_lay_out_are_those_that_can_be_made(self, name):
        slice_ = parse_slice(name)
        sizes = [2**i for i in range(slice_.chips.bit_length())]
        for data, fsdp in ((d, f) for d in sizes for f in sizes if d * f <= slice_.chips):
            mesh = MeshConfig(data, fsdp, slice_.chips // data // fsdp)
            try:
                made = bool(topology_mesh(slice_.topology, mesh, slice_.count))
            except ConfigError:
                made = False
            assert lays_out(slice_, mesh) == made, mesh


@pytest.mark.parametrize("name", ["h100", "h100-8", "a100-40gb"])
def test_a_gpu_is_no_slice_and_it_says_why(name):
    with pytest.raises(ConfigError, match=f"'{name}' is a GPU: only programs for TPUs"):
        parse_slice(name)
