"""What a compiled step does is what its source says: every collective, with axes, bytes and runs, and every FLOP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from chinchilla_jax.base.hlo import HloError
from chinchilla_jax.config import MeshConfig
from chinchilla_jax.parallel.topology import topology, topology_mesh
from chinchilla_jax.preflight.program.program import read_program
from tests.compiling import needs_compiler
from tests.preflight.hlo_texts import SHAPE, brief, module

MIB = 1 << 20
ROWS, COLUMNS = 2048, 512  # 2 MiB in bfloat16


def test_texts_of_other_programs_are_refused():
    text = module("%p = f32[8]{0} parameter(0)\n%c = f32[8]{0} copy(%p)")
    assert read_program(text, SHAPE).collectives == []
    with pytest.raises(HloError, match="8 devices on a mesh .*'fsdp': 3"):
        read_program(text, {"fsdp": 3, "tensor": 4})
    for broken in ("", "module @jit_f {}", text.replace("is_scheduled=true, ", ""), text[: text.index("ROOT")]):
        with pytest.raises(HloError):
            read_program(broken, SHAPE)
    with pytest.raises(HloError, match="not in the text"):
        read_program(module("%p = f32[8]{0} parameter(0)\n%c = f32[8]{0} fusion(%p), kind=kLoop, calls=%gone"), SHAPE)


ASYNC = """%a = f32[256]{{0}} parameter(0)
           %g = f32[1024]{{0}} all-gather(%a), replica_groups=[2,4]<=[8], frontend_attributes={{chain_id="0"}}
           %c = f32[1024]{{0}} custom-call(%g), custom_call_target="AsyncCollective{}\""""


def test_an_asynchronous_collective_counts_at_its_start_alone():
    step = ASYNC.split("%c = ")[0].format() + "%d = f32[256]{0} negate(%a)"
    entry = """%p = f32[256]{0} parameter(0)
               %s = f32[1024]{0} fusion(%p), kind=kCustom, calls=%start
               %m = f32[256]{0} fusion(%p), kind=kOutput, calls=%step
               %e = f32[1024]{0} fusion(%p), kind=kCustom, calls=%done"""
    parts = [("start", ASYNC.format("Start")), ("step", step), ("done", ASYNC.format("Done"))]
    [found] = read_program(module(entry, *parts), SHAPE).collectives
    assert (found.asynchronous, found.bytes) == (True, 4096)
    unstarted = entry.replace("calls=%start", "calls=%step")
    with pytest.raises(HloError, match="starts nowhere"):
        read_program(module(unstarted, *parts), SHAPE)


def test_collectives_that_are_started_and_awaited_are_asynchronous_and_counted_once():
    entry = """%p = f32[256]{0} parameter(0)
               %s = (f32[256]{0}, f32[1024]{0}) all-gather-start(%p), replica_groups=[2,4]<=[8]
               %d = f32[1024]{0} all-gather-done(%s)
               %w = ((f32[256]{0}), f32[256]{0}, u32[]) async-start(%p), calls=%wrapped
               %e = f32[256]{0} async-done(%w)
               %b = s32[]{:S(2)} custom-call(), custom_call_target="PrepareAsyncCallStart"
               %u = token[] custom-call(%b), custom_call_target="PrepareAsyncCallDone"
               %v = ((f32[256]{0}, token[]), f32[256]{0}) call-start(%p, %u), to_apply=%wrapped
               %f = f32[256]{0} call-done(%v)"""
    wrapped = "%a = f32[256]{0} parameter(0)\n%r = f32[256]{0} all-reduce(%a), replica_groups={}, to_apply=%add"
    found = read_program(module(entry, ("wrapped", wrapped)), SHAPE).collectives
    assert [(c.kind, c.bytes, c.trips, c.asynchronous) for c in found] == [
        ("all-gather", 4096, 1, True),
        ("all-reduce", 1024, 1, True),
        ("all-reduce", 1024, 1, True),
    ]


def test_a_collective_that_is_called_in_an_unknown_way_is_an_error():
    hidden = "%a = f32[256]{0} parameter(0)\n%r = f32[256]{0} all-reduce(%a), replica_groups={}, to_apply=%add"
    entry = "%p = f32[256]{0} parameter(0)\n%c = f32[256]{0} custom-call(%p), called_computations={%hidden}"
    with pytest.raises(HloError, match="r: all-reduce in hidden"):
        read_program(module(entry, ("hidden", hidden)), SHAPE)


def test_collectives_in_branches_are_an_error():
    entry = """%p = f32[256]{0} parameter(0)
               %i = s32[] parameter(1)
               %c = f32[256]{0} conditional(%i, %p, %p), branch_computations={%one, %two}"""
    one = "%a = f32[256]{0} parameter(0)\n%r = f32[256]{0} all-reduce(%a), replica_groups={}, to_apply=%add"
    two = "%a = f32[256]{0} parameter(0)\n%r = f32[256]{0} negate(%a)"
    with pytest.raises(HloError, match="conditional"):
        read_program(module(entry, ("one", one), ("two", two)), SHAPE)
    assert read_program(module(entry, ("one", two), ("two", two)), SHAPE).collectives == []


def test_cycles_kernels_and_temporaries_in_hbm_are_listed():
    entry = """%p = f32[4,256]{1,0} parameter(0)
               %f = f32[4,256]{1,0} fusion(%p), kind=kLoop, calls=%inner, backend_config={"estimated_cycles":"120"}
               %k.1 = (bf16[2,256]{1,0}, f32[2]{0}) custom-call(%f), custom_call_target="tpu_custom_call"
               %v = f32[8,256]{1,0:T(8,128)S(1)} broadcast(%p), dimensions={0,1}
               %g = bf16[2,256]{1,0} get-tuple-element(%k.1), index=0
               %h = f32[4,256]{1,0} fusion(%f), kind=kLoop, calls=%inner, backend_config={"estimated_cycles":"7"}
               %j = f32[4,256]{1,0:S(1)} fusion(%f), kind=kCustom, calls=%fused
               %b = f32[9,256]{1,0} custom-call(), custom_call_target="AllocateBuffer"
               %i = f32[4,256]{1,0:S(1)} fusion(%b), kind=kLoop, calls=%fused, metadata={op_name="loop"}
               %t = (f32[4,256]{1,0}, bf16[2,256]{1,0}) tuple(%h, %g)"""
    inner = "%a = f32[4,256]{1,0} parameter(0)\n%n = f32[4,256]{1,0} negate(%a)"
    fused = """%a = f32[4,256]{1,0} parameter(0)
               %r = f32[4,256]{1,0:S(1)} custom-call(%a), custom_call_target="tpu_custom_call",\
 metadata={op_name="f/transpose(jvp(b))/pallas_call"}"""
    text = module(
        entry,
        ("inner", inner),
        ("fused", fused),
        head="input_output_alias={ {0}: (0, {}, may-alias) }, entry_computation_layout={}, ",
    )
    program = read_program(text, SHAPE)
    assert (program.cycles, program.kernels) == (127, {"k": 1, "b": 2})
    assert [(t.name, t.shape, t.bytes, t.op_name) for t in program.largest] == [
        ("b", (9, 256), 9216, "loop"),
        ("f", (4, 256), 4096, ""),
        ("k.1", (2, 256), 1024, ""),
    ]


class TestWithTheCompiler:
    pytestmark = needs_compiler

    def read(self, function, mesh, *arguments, mapped=None, out=None):
        """The program of a function of bfloat16 arrays, each `(shape, spec)`; `mapped` is the spec of its result."""
        arrays = [
            jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec)) for shape, spec in arguments
        ]
        if mapped is not None:
            function = jax.shard_map(
                function, mesh=mesh, in_specs=tuple(spec for _, spec in arguments), out_specs=mapped, check_vma=False
            )
        jitted = jax.jit(function, out_shardings=None if out is None else NamedSharding(mesh, out))
        text = jitted.trace(*arrays).lower(lowering_platforms=("tpu",)).compile().as_text()
        return read_program(text, dict(mesh.shape))

    @pytest.mark.parametrize(("function", "spec", "out", "expected"), [
        (lambda x: lax.all_gather(x, "fsdp", tiled=True), P("fsdp"), P(), ("all-gather", ("fsdp",), 2, 2 * MIB, MIB)),
        (lambda x: lax.all_gather(x, ("data", "tensor"), tiled=True), P(("data", "tensor")), P(),
         ("all-gather", ("data", "tensor"), 8, 2 * MIB, 7 * MIB // 4)),
        (lambda x: lax.psum(x * 2, "tensor"), P("tensor"), P(), ("all-reduce", ("tensor",), 4, MIB // 2, 3 * MIB // 4)),
        (lambda x: lax.psum(x * 2, ("data", "fsdp")), P(("data", "fsdp")), P(),
         ("all-reduce", ("data", "fsdp"), 4, MIB // 2, 3 * MIB // 4)),
        (lambda x: lax.psum_scatter(x * 2, "data", tiled=True), P(), P("data"),
         ("reduce-scatter", ("data",), 2, 2 * MIB, MIB)),
        (lambda x: lax.all_to_all(x, "tensor", 0, 1, tiled=True), P("tensor"), P("tensor"),
         ("all-to-all", ("tensor",), 4, MIB // 2, 3 * MIB // 8)),
        (lambda x: lax.ppermute(x, "tensor", [(i, (i + 1) % 4) for i in range(4)]), P("tensor"), P("tensor"),
         ("collective-permute", ("tensor",), 4, MIB // 2, MIB // 2)),
    ], ids=["gather", "gather 2", "reduce", "reduce 2", "scatter", "all to all", "permute"])  # fmt: skip
    def test_every_collective_is_found_with_its_axes_and_bytes(self, function, spec, out, expected):
        mesh = topology_mesh("v5e:4x4", MeshConfig(2, 2, 4))
        program = self.read(function, mesh, ((ROWS, COLUMNS), spec), mapped=out)
        assert brief(program) == [(*expected, 1)]

    @pytest.mark.parametrize(
        ("slice_", "data"), [("v5e:2x2", 1), ("v4:2x2x1", 1), ("v6e:2x2", 1), ("v5p:2x2x1", 1), ("tpu7x:2x2x1", 2)]
    )
    def test_runs_in_loops_multiply_and_so_do_flops_on_every_generation(self, slice_, data):
        def layer(x, w):
            x, _ = lax.scan(lambda x, _: (lax.psum(jnp.tanh(x @ w), "tensor"), None), x, None, length=5)
            whole = lax.all_gather(w, "fsdp", axis=0, tiled=True)
            y = jnp.tanh(x @ whole.reshape(512, 1024))
            y = lax.psum_scatter(y, "fsdp", scatter_dimension=1, tiled=True)
            return lax.ppermute(y, "tensor", [(0, 1), (1, 0)]), None

        mesh = topology_mesh(slice_, MeshConfig(data, 2, 2))
        program = self.read(
            lambda ws, x: lax.scan(layer, x, ws)[0], mesh, ((7, 512, 512), P()), ((256, 512), P()), mapped=P()
        )
        assert sorted(brief(program)) == [
            ("all-gather", ("fsdp",), 2, MIB, MIB // 2, 7),
            ("all-reduce", ("tensor",), 2, MIB // 4, MIB // 4, 35),
            ("collective-permute", ("tensor",), 2, MIB // 4, MIB // 4, 7),
            ("reduce-scatter", ("fsdp",), 2, MIB // 2, MIB // 4, 7),
        ]
        assert program.matmul_flops == 7 * (5 * 2 * 256 * 512 * 512 + 2 * 256 * 512 * 1024)
        assert program.unknown_loops == {} and program.cycles > 0
        assert sorted(len(c.loops) for c in program.collectives) == [1, 1, 1, 2]
        assert "all_gather" in next(c.op_name for c in program.collectives if c.kind == "all-gather")

    def test_a_product_that_is_taken_apart_into_permutes_has_all_its_flops(self):
        mesh = topology_mesh("v5e:4x4", MeshConfig(1, 2, 8))

        def constrained(x, *spec):
            return lax.with_sharding_constraint(x, NamedSharding(mesh, P("fsdp", *spec)))

        def layer(x, weights):
            h = constrained(jnp.tanh(x @ weights[0]), None, "tensor")
            return x + constrained(h @ weights[1], "tensor", None), None

        tokens, d, f, layers = 8 * 2048, 8192, 32768, 6
        program = self.read(
            lambda up, down, x: lax.scan(layer, x, (up, down))[0],
            mesh,
            ((layers, d, f), P(None, "fsdp", "tensor")),
            ((layers, f, d), P(None, "tensor", "fsdp")),
            ((8, 2048, d), P("fsdp", "tensor", None)),
            out=P("fsdp", "tensor", None),
        )
        assert program.unknown_loops == {}
        assert program.matmul_flops == layers * 2 * 2 * tokens * d * f // 16
        trips = {c.trips for c in program.collectives if c.kind == "collective-permute"}
        assert trips and max(trips) > layers and all(count % layers == 0 for count in trips)
        gathered = sum(c.bytes * c.trips for c in program.collectives if c.kind == "all-gather" and c.axes == ("fsdp",))
        assert gathered == layers * 2 * (2 * d * f // 8)

    def test_gradients_that_the_partitioner_scatters_are_a_reduce_scatter(self):
        mesh = topology_mesh("v5e:2x2", MeshConfig(1, 4, 1))
        program = self.read(
            lambda x, dy: x.T @ dy, mesh, ((ROWS, COLUMNS), P("fsdp")), ((ROWS, COLUMNS), P("fsdp")), out=P("fsdp")
        )
        assert [c.kind for c in program.collectives] == ["reduce-scatter"]
        assert program.collectives[0].bytes == 2 * COLUMNS * COLUMNS
        assert program.matmul_flops == 2 * ROWS // 4 * COLUMNS * COLUMNS

    def test_what_crosses_slices_is_told_from_what_stays_within(self):
        topology("v5e:2x2")
        description = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2", num_slices=2)
        mesh = Mesh(np.reshape(description.devices, (2, 2, 2)), ("data", "fsdp", "tensor"))
        program = self.read(
            lambda x: lax.psum(x * 2, ("data", "fsdp")), mesh, ((ROWS, COLUMNS), P(("data", "fsdp"))), mapped=P()
        )
        assert [(c.kind, c.network, c.axes, c.wire_bytes) for c in program.collectives] == [
            ("reduce-scatter", "ici", ("fsdp",), MIB // 4),
            ("all-reduce", "dcn", ("data",), MIB // 4),
            ("all-gather", "ici", ("fsdp",), MIB // 4),
        ]


def test_a_kernel_that_is_fused_with_its_copies_is_counted():
    fused = """%p = f32[256]{0} parameter(0)
               %attention_backward.3 = f32[256]{0} custom-call(%p), custom_call_target="tpu_custom_call", x=1"""
    entry = """%p = f32[256]{0} parameter(0)
               %attention_backward.2 = f32[256]{0} fusion(%p), kind=kCustom, calls=%fused"""
    assert read_program(module(entry, ("fused", fused)), SHAPE).kernels == {"attention_backward": 1}
