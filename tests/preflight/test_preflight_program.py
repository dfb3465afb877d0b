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

SHAPE = {"data": 1, "fsdp": 2, "tensor": 4}
MIB = 1 << 20
ROWS, COLUMNS = 2048, 512  # 2 MiB in bfloat16


def module(entry, *computations, devices=8, head=""):
    """The text of a scheduled module whose entry has these lines; the last is its root."""

    def block(name, lines):
        *first, last = [line.strip() for line in lines.strip().splitlines()]
        body = [*(f"  {line}" for line in first), f"  ROOT {last}"]
        return "\n".join([f"{name} (p: f32[]) -> f32[] {{", *body, "}", ""])

    blocks = [block(f"%{name}", lines) for name, lines in computations] + [block("ENTRY %main", entry)]
    return f"HloModule m, is_scheduled=true, {head}num_partitions={devices}\n\n" + "\n".join(blocks)


def brief(program):
    return [(c.kind, c.axes, c.group, c.bytes, c.wire_bytes, c.trips) for c in program.collectives]


def collective(attributes, opcode="all-gather", shape=SHAPE, **module_settings):
    """The collective of a program that has but one, of 1 KiB on every device."""
    entry = f"""%p = f32[256]{{0}} parameter(0)
                %c = f32[256]{{0}} {opcode}(%p), channel_id=1, {attributes}"""
    [found] = read_program(module(entry, **module_settings), shape).collectives
    return found


# How libtpu 0.0.42.1 writes groups, on a mesh of 1 x 2 x 4.
@pytest.mark.parametrize(("groups", "axes", "size"), [
    ("replica_groups={{0,1,2,3},{4,5,6,7}}", ("tensor",), 4),
    ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", ("fsdp",), 2),
    ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", ("tensor",), 2),
    ("replica_groups={{0,1,2,3,4,5,6,7}}", ("fsdp", "tensor"), 8),
    ("replica_groups={}", ("fsdp", "tensor"), 8),
    ("replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}", (), 1),
    ("replica_groups=[2,4]<=[8]", ("tensor",), 4),
    ("replica_groups=[4,2]<=[2,4]T(1,0)", ("fsdp",), 2),
    ("replica_groups=[1,8]<=[8]", ("fsdp", "tensor"), 8),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=4] {'axis_2'}", ("tensor",), 4),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=4] {'axis_0'}", ("fsdp",), 2),
    ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", ("fsdp", "tensor"), 8),
    ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", ("fsdp",), 2),
])  # fmt: skip
def test_groups_of_devices_are_mesh_axes_in_every_notation(groups, axes, size):
    found = collective(groups)
    assert (found.axes, found.group, found.bytes) == (axes, size, 1024 * size)
    assert found.wire_bytes == 1024 * (size - 1)


def test_pairs_of_a_permute_are_mesh_axes():
    ring = "{{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}"
    assert collective(f"source_target_pairs={ring}", "collective-permute").axes == ("tensor",)
    across = collective("source_target_pairs={{0,4},{1,5},{2,6},{3,7}}", "collective-permute")
    assert (across.axes, across.group, across.wire_bytes) == (("fsdp",), 2, 1024)


@pytest.mark.parametrize(("opcode", "whole", "wire"), [
    ("all-gather", 4096, 3072), ("reduce-scatter", 1024, 768), ("all-reduce", 1024, 1536), ("all-to-all", 1024, 768),
])  # fmt: skip
def test_bytes_on_the_wire_are_those_of_a_ring(opcode, whole, wire):
    found = collective("replica_groups=[2,4]<=[8]", opcode)
    assert (found.bytes, found.wire_bytes, found.network, found.asynchronous) == (whole, wire, "ici", False)


@pytest.mark.parametrize(("attributes", "opcode", "complaint"), [
    ("replica_groups=rings(3)", "all-gather", "not understood"),
    ("replica_groups={{0,1,2},{3,4,5,6,7}}", "all-gather", "different sizes"),
    ("replica_groups={{0,1},{2,3}}", "all-reduce", "not of all 8"),
    ("replica_groups=mesh['a'=8] {'a':(2)4}", "all-reduce", "part of a mesh axis"),
    ("replica_groups=[2,4]<=[8]", "ragged-all-to-all", "kind that is not known"),
    ("replica_groups=[2,4]<=[8]", "collective-broadcast", "kind that is not known"),
    ("is_host_transfer=true", "send", "kind that is not known"),
])  # fmt: skip
def test_a_collective_that_is_not_understood_is_an_error_and_not_zero(attributes, opcode, complaint):
    with pytest.raises(HloError, match=complaint):
        collective(attributes, opcode)


def test_texts_of_other_programs_are_refused():
    text = module("%p = f32[8]{0} parameter(0)\n%c = f32[8]{0} copy(%p)")
    assert read_program(text, SHAPE).collectives == ()
    with pytest.raises(HloError, match="8 devices on a mesh .*'fsdp': 3"):
        read_program(text, {"fsdp": 3, "tensor": 4})
    for broken in ("", "module @jit_f {}", text.replace("is_scheduled=true, ", ""), text[: text.index("ROOT")]):
        with pytest.raises(HloError):
            read_program(broken, SHAPE)
    with pytest.raises(HloError, match="not in the text"):
        read_program(module("%p = f32[8]{0} parameter(0)\n%c = f32[8]{0} fusion(%p), kind=kLoop, calls=%gone"), SHAPE)


def loop(start, body, condition):
    """A program whose only loop holds an all-reduce; element 0 of its state counts, 1 and 2 are carried."""
    state = "(s32[], s32[], f32[256])"
    entry = f"""%n = s32[] parameter(0)
                %x = f32[256]{{0}} parameter(1)
                %i = s32[] constant({start})
                %ten = s32[] constant(10)
                %tuple = {state} tuple(%i, %ten, %x)
                %while = {state} while(%tuple), condition=%condition, body=%body, metadata={{op_name="jit(f)/while"}}"""
    parts = """%s = (s32[], s32[], f32[256]) parameter(0)
               %i = s32[] get-tuple-element(%s), index=0
               %n = s32[] get-tuple-element(%s), index=1"""
    inner = f"""{parts}
                %x = f32[256]{{0}} get-tuple-element(%s), index=2
                %y = f32[256]{{0}} all-reduce(%x), replica_groups={{}}, to_apply=%add
                %z = f32[256]{{0}} negate(%y), backend_config={{"estimated_cycles":"11"}}
                {body}
                %out = {state} tuple(%next, %n, %y)"""
    add = "%a = f32[] parameter(0)\n%b = f32[] parameter(1)\n%c = f32[] add(%a, %b)"
    return module(entry, ("add", add), ("body", inner), ("condition", f"{parts}\n{condition}"))


@pytest.mark.parametrize(("start", "step", "condition", "trips"), [
    (0, 1, "%l = s32[] constant(7)\n%c = pred[] compare(%i, %l), direction=LT", 7),
    (0, 1, "%c = pred[] compare(%i, %n), direction=LT", 10),
    (3, 2, "%c = pred[] compare(%i, %n), direction=LT", 4),
    (3, 2, "%c = pred[] compare(%n, %i), direction=GE", 4),
    (4, 3, "%c = pred[] compare(%i, %n), direction=NE", 2),
    (4, 3, "%c = pred[] compare(%i, %n), direction=LE", 3),
    (12, -1, "%c = pred[] compare(%i, %n), direction=GT", 2),
    (12, 1, "%c = pred[] compare(%i, %n), direction=LT", 0),
    (0, 1, "%one = s32[] constant(1)\n%m = s32[] subtract(%n, %one)\n"
           "%c = pred[] compare(%i, %m), direction=LT", 9),
])  # fmt: skip
def test_a_loop_that_counts_has_its_trips(start, step, condition, trips):
    text = loop(start, f"%d = s32[] constant({step})\n%next = s32[] add(%i, %d)", condition)
    program = read_program(text, SHAPE)
    assert [(c.trips, c.loops) for c in program.collectives] == [(trips, ("while",))] and program.unknown_loops == {}
    assert program.cycles == 11 * trips


def test_a_limit_that_an_outer_loop_carries_is_found():
    inner = loop(
        0, "%d = s32[] constant(1)\n%next = s32[] add(%i, %d)", "%c = pred[] compare(%i, %n), direction=LT"
    ).partition("ENTRY")[0]
    state = "(s32[], s32[], f32[256])"
    inner = inner.replace("%body", "%inner").replace("%condition", "%inner_condition")
    body = f"""%s = {state} parameter(0)
               %i = s32[] get-tuple-element(%s), index=0
               %n = s32[] get-tuple-element(%s), index=1
               %x = f32[256]{{0}} get-tuple-element(%s), index=2
               %zero = s32[] constant(0)
               %t = {state} tuple(%zero, %n, %x)
               %w = {state} while(%t), condition=%inner_condition, body=%inner
               %y = f32[256]{{0}} get-tuple-element(%w), index=2
               %one = s32[] constant(1)
               %j = s32[] add(%i, %one)
               %out = {state} tuple(%j, %n, %y)"""
    text = loop(0, "%next = s32[] copy(%i)", "%c = pred[] compare(%i, %n), direction=LT")
    head, entry = inner.split("\n", 1), text[text.index("ENTRY") :]
    condition = text[text.index("%condition (") : text.index("ENTRY")]
    outer = module(body).split("\n\n")[1].replace("ENTRY %main", "%body")
    program = read_program("\n".join([head[0], head[1], outer, condition, entry]), SHAPE)
    assert [(c.trips, c.loops) for c in program.collectives] == [(100, ("while", "w"))]


@pytest.mark.parametrize(("body", "condition"), [
    ("%next = s32[] multiply(%i, %n)", "%c = pred[] compare(%i, %n), direction=LT"),
    ("%d = s32[] constant(4)\n%next = s32[] add(%i, %d)", "%c = pred[] compare(%i, %n), direction=NE"),
    ("%d = s32[] constant(1)\n%next = s32[] add(%i, %d)", "%l = s32[] custom-call(%n), custom_call_target=\"f\"\n"
                                                          "%c = pred[] compare(%i, %l), direction=LT"),
])  # fmt: skip
def test_a_loop_whose_trips_cannot_be_found_is_named_and_counted_once(body, condition):
    program = read_program(loop(1, body, condition), SHAPE)
    assert program.unknown_loops == {"while": "while jit(f)/while"}
    assert [(c.trips, c.loops) for c in program.collectives] == [(1, ("while",))]


def fusion(body, operands="%p", result="f32[256]{0}", opcode="fusion", **settings):
    entry = f"""%p = f32[256]{{0}} parameter(0)
                %f = {result} {opcode}({operands}), kind=kCustom, calls=%fused"""
    return module(entry, ("fused", body), **settings)


def test_an_all_reduce_of_which_a_slice_is_kept_is_a_reduce_scatter():
    body = """%a = f32[256]{0} parameter(0)
              %i = s32[] constant(0)
              %r = (f32[256]{0}, f32[256]{0}) all-reduce(%a, %a), replica_groups=[2,4]<=[8], to_apply=%add
              %x = f32[256]{0} get-tuple-element(%r), index=0
              %y = f32[256]{0} get-tuple-element(%r), index=1
              %s = f32[64]{0} dynamic-slice(%x, %i), dynamic_slice_sizes={64}
              %t = f32[64]{0} dynamic-slice(%y, %i), dynamic_slice_sizes={64}
              %z = (f32[64]{0}, f32[64]{0}) tuple(%s, %t)"""
    text = fusion(body, result="(f32[64]{0}, f32[64]{0})").replace(
        "parameter(0)\n  ROOT %f", 'parameter(0), metadata={op_name="jit(f)/x"}\n  ROOT %f'
    )
    program = read_program(text, SHAPE)
    assert brief(program) == [("reduce-scatter", ("tensor",), 4, 2048, 1536, 1)]
    assert program.collectives[0].op_name == "jit(f)/x", "the compiler names it not: its operand's name"
    whole = body.replace("tuple(%s, %t)", "tuple(%s, %y)")
    assert brief(read_program(fusion(whole, result="(f32[64]{0}, f32[256]{0})"), SHAPE))[0][0] == "all-reduce"


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
    assert read_program(module(entry, ("one", two), ("two", two)), SHAPE).collectives == ()


@pytest.mark.parametrize(("product", "flops"), [
    ("f32[8,32]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}", 2 * 8 * 16 * 32),
    ("f32[8,32]{1,0} convolution(%a, %b), dim_labels=bf_io->bf", 2 * 8 * 16 * 32),
    # A batch of 4 products of [8, 16] and [16, 32], the batch as a spatial axis: only its diagonal is multiplied.
    ("f32[4,8,32]{2,1,0} convolution(%c, %d), window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf",
     2 * 4 * 8 * 16 * 32),
    # A window of 3 over 4 places with padding: 2 of the 12 places are padding.
    ("f32[4,8,32]{2,1,0} convolution(%c, %e), window={size=3 pad=1_1}, dim_labels=0bf_0io->0bf", 2 * 10 * 8 * 16 * 32),
])  # fmt: skip
def test_products_are_counted_within_fusions_and_without_padding(product, flops):
    operands = """%a = f32[8,16]{1,0} parameter(0)
                  %b = f32[16,32]{1,0} parameter(1)
                  %c = f32[4,8,16]{2,1,0} parameter(2)
                  %d = f32[4,16,32]{2,1,0} parameter(3)
                  %e = f32[3,16,32]{2,1,0} parameter(4)"""
    entry = f"{operands}\n%x = {product}\n%y = {product.split(' ')[0]} fusion(%a, %b, %c, %d, %e), calls=%fused"
    text = module(entry, ("fused", f"{operands}\n%x = {product}"))
    assert read_program(text, SHAPE).matmul_flops == 2 * flops


def moved(entry, *computations):
    return read_program(module(entry, *computations), SHAPE).hbm_bytes


def test_bytes_moved_are_those_of_hbm_and_of_slices():
    p = "%p = f32[4,256]{1,0} parameter(0)\n%i = s32[] constant(0)\n"
    v = "%v = f32[1,256]{1,0:T(8,128)S(1)} parameter(1)\n"
    assert moved(p + "%c = f32[4,256]{1,0} copy(%p)") == 2 * 4096
    assert moved(p + "%c = f32[4,256]{1,0:S(1)} copy(%p)") == 4096, "VMEM is not counted"
    assert moved(p + "%b = f32[1024]{0} bitcast(%p)\n%t = (f32[1024]{0}) tuple(%b)") == 0
    assert moved(p + v + "%u = f32[4,256]{1,0} dynamic-update-slice(%p, %v, %i, %i)") == 1024 + 8
    assert moved(p + "%s = f32[1,256]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,256}") == 2 * 1024 + 8
    started = """%s = (f32[4,256]{1,0:S(1)}, f32[4,256]{1,0}, u32[]{:S(2)}) copy-start(%p)
                 %d = f32[4,256]{1,0:S(1)} copy-done(%s)"""
    assert moved(p + started) == 4096
    inner = """%a = f32[4,256]{1,0} parameter(0)
               %b = f32[1,256]{1,0} parameter(1)
               %j = s32[] constant(2)
               %u = f32[4,256]{1,0} dynamic-update-slice(%a, %b, %j, %j)"""
    update = p + v + "%f = f32[4,256]{1,0} fusion(%p, %v), kind=kLoop, calls=%inner"
    assert moved(update, ("inner", inner)) == 1024, "the slice is written, and read from VMEM"
    fresh = inner.replace("dynamic-update-slice(%a,", "dynamic-update-slice(%z,").replace(
        "%j =", "%z = f32[4,256]{1,0} broadcast(%b), dimensions={}\n%j ="
    )
    assert moved(update, ("inner", fresh)) == 4096, "what is updated is not in memory yet: it is written whole"
    read = """%a = f32[4,256]{1,0} parameter(0)
              %j = s32[] constant(2)
              %s = f32[1,256]{1,0} dynamic-slice(%a, %j, %j), dynamic_slice_sizes={1,256}
              %n = f32[1,256]{1,0:S(1)} negate(%s)"""
    assert moved(p + "%f = f32[1,256]{1,0:S(1)} fusion(%p), kind=kLoop, calls=%inner", ("inner", read)) == 1024


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


def test_a_mesh_lies_over_slices_along_its_first_axes_or_not_at_all():
    def text(devices):
        return module(
            "%p = f32[256]{0} parameter(0)\n%c = f32[256]{0} all-reduce(%p), replica_groups={}", devices=devices
        )

    [found] = read_program(text(4), {"data": 4, "fsdp": 2}).collectives
    assert (found.axes, found.group, found.network) == (("data", "fsdp"), 4, "ici")
    for devices, shape in ((6, {"data": 3, "fsdp": 4}), (3, {"data": 8, "fsdp": 2}), (8, {"fsdp": 4})):
        with pytest.raises(HloError, match="slices"):
            read_program(text(devices), shape)


def test_a_transfer_between_slices_needs_the_mesh_of_all_of_them():
    sent = """%p = f32[256]{0} parameter(0)
              %t = token[] after-all()
              %s = (f32[256]{0}, u32[], token[]) send(%p, %t), frontend_attributes={\
_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}"""
    [found] = read_program(module(sent, devices=4), {"data": 2, "fsdp": 4}).collectives
    assert (found.network, found.axes, found.wire_bytes) == ("dcn", ("data",), 1024)
    pairs = sent.replace('"{1,2}x{0:3}"', "{{100000->200000}}").replace("ALL_REDUCE", "ONE_TO_ONE")
    for text, shape in ((sent, {"fsdp": 4}), (sent, {"data": 3, "fsdp": 4}), (pairs, {"fsdp": 4})):
        with pytest.raises(HloError, match="among other slices"):
            read_program(module(text, devices=4), shape)


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
