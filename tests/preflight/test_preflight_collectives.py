"""A collective has the axes, bytes and network that its groups and operands say, or is refused."""

import pytest

from chinchilla_jax.base.hlo import HloError
from chinchilla_jax.preflight.program.program import read_program
from tests.preflight.hlo_texts import SHAPE, brief, fusion, module


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


@pytest.mark.parametrize("rows", [64, 1024])
def test_a_ragged_all_to_all_counts_by_the_smaller_of_its_operand_and_its_result(rows):
    entry = f"""%p = f32[256]{{0}} parameter(0)
                %o = f32[{rows}]{{0}} parameter(1)
                %n = s32[4]{{0}} parameter(2)
                %c = f32[{rows}]{{0}} ragged-all-to-all(%p, %o, %n, %n, %n, %n), replica_groups=[2,4]<=[8]"""
    [found] = read_program(module(entry), SHAPE).collectives
    assert (found.kind, found.axes, found.bytes) == ("all-to-all", ("tensor",), 4 * min(rows, 256))
    assert found.wire_bytes == found.bytes * 3 // 4


@pytest.mark.parametrize(("attributes", "opcode", "complaint"), [
    ("replica_groups=rings(3)", "all-gather", "not understood"),
    ("replica_groups={{0,1,2},{3,4,5,6,7}}", "all-gather", "different sizes"),
    ("replica_groups={{0,1},{2,3}}", "all-reduce", "not of all 8"),
    ("replica_groups=mesh['a'=8] {'a':(2)4}", "all-reduce", "part of a mesh axis"),
    ("replica_groups=[2,4]<=[8]", "ragged-all-gather", "kind that is not known"),
    ("replica_groups=[2,4]<=[8]", "collective-broadcast", "kind that is not known"),
    ("is_host_transfer=true", "send", "kind that is not known"),
])  # fmt: skip
def test_a_collective_that_is_not_understood_is_an_error_and_not_zero(attributes, opcode, complaint):
    with pytest.raises(HloError, match=complaint):
        collective(attributes, opcode)


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
