"""The text of a compiled module is read into computations, instructions and arrays."""

import subprocess
import sys

import pytest

from chinchilla_jax.base.hlo import HloError, arrays, parse_module

TEXT = """HloModule jit_f, is_scheduled=true, input_output_alias={ {1}: (0, {}, may-alias) }, \
entry_computation_layout={(s32[8]{0})->s32[8]{0}}, num_partitions=4

%body (arg: (s32[], s32[8])) -> (s32[], s32[8]) {
  %arg = (s32[], s32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = s32[8]{0} get-tuple-element(%arg), index=1
  ROOT %next = (s32[], s32[8]{0}) tuple(%i, %x), metadata={op_name="a/b"}
}

ENTRY %main (p: s32[8]) -> s32[8] {
  %p = s32[8]{0} parameter(0)
  %c = s32[2,2]{1,0} constant({ {1, 2}, {(3), 4} }), metadata={op_name="table"}
  %start = (s32[], s32[8]{0}) tuple(%p, %p)
  %loop = (s32[], s32[8]{0}) while(%start), condition=%condition, body=%body
  ROOT %kernel = s32[8]{0} custom-call(%p, %p), custom_call_target="tpu_custom_call", backend_config={"body":"A",
"scoped":[{"size":"1"}]
}}
}
"""


def test_a_module_has_its_computations_with_their_instructions_in_order():
    module = parse_module(TEXT)
    assert list(module.computations) == ["body", "main"] and module.entry is module.computations["main"]
    assert (module.devices, module.aliased, module.entry.root) == (4, frozenset({1}), "kernel")
    body = module.computations["body"]
    assert body.parameters == {0: "arg"} and [user.name for user in body.users["arg"]] == ["i", "x"]
    assert body.instructions["x"].index == 1 and body.instructions["next"].op_name == "a/b"
    loop = module.entry.instructions["loop"]
    assert (loop.opcode, loop.operands, loop.called("body")) == ("while", ("start",), "body")
    assert module.entry.instructions["c"].argument == "{ {1, 2}, {(3), 4} }"


def test_lines_that_an_attribute_breaks_are_joined():
    kernel = parse_module(TEXT).entry.instructions["kernel"]
    assert kernel.attributes.endswith('backend_config={"body":"A","scoped":[{"size":"1"}]}}')


def test_an_array_has_its_memory_and_its_bytes():
    found = arrays("(bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, pred[3]{0}, s4[6]{0}, /*index=3*/f8e4m3fn[5], u32[], token[])")
    expected = [((4, 8), 1, 64), ((3,), 0, 3), ((6,), 0, 3), ((5,), 0, 5), ((), 0, 4)]
    assert [(a.shape, a.space, a.bytes) for a in found] == expected
    with pytest.raises(HloError, match="unknown size"):
        arrays("f32[<=8]{0}")


def test_a_computation_that_is_not_in_the_text_is_an_error():
    with pytest.raises(HloError, match="loop: calls the computation 'condition', which is not in the text"):
        parse_module(TEXT).computation("condition", "loop")


def test_nothing_that_trains_imports_the_reader_or_a_measuring_tool():
    code = (
        "import sys, chinchilla_jax.training.loop\n"
        "sys.exit(any(name.startswith(('chinchilla_jax.tools', 'chinchilla_jax.base.hlo')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
