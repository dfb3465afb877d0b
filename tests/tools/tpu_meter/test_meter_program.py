"""Kernels and constants in the text of a compiled program."""

import numpy as np
import pytest

from chinchilla_jax.tools.tpu_meter.program import memory_words, parse_program
from tests.tools.tpu_meter.schedules import PROGRAM, TABLE


def entry(*lines):
    """A program of these instructions."""
    *first, last = lines
    body = [*(f"  {line}" for line in first), f"  ROOT {last}"]
    return parse_program("\n".join(["HloModule m, is_scheduled=true", "ENTRY %main () -> s32[] {", *body, "}", ""]))


def test_constants_are_found_through_copies_and_loop_invariants():
    program = parse_program(PROGRAM)
    assert program.kernels == ("looped.2", "direct.1", "other.3")
    assert program.constant_operands("direct.1") == {0: TABLE}
    assert program.constant_operands("looped.2") == {0: TABLE}
    assert program.constant_operands("other.3") == {}, "an argument of the program is not known"
    assert program.vmem_bytes("other.3") == 2**20


def test_a_table_of_one_value_may_be_a_scalar_made_wider():
    program = entry("%one = s32[]{:T(512)} constant(1)",
                    "%table = s32[3]{0:T(128)} broadcast(%one), dimensions={}",
                    "%row = s32[3]{0:T(128)} constant({1, 2, 3})",
                    "%column = s32[3,1]{1,0:T(4,128)} broadcast(%row), dimensions={0}",
                    "%square = s32[3,3]{1,0:T(4,128)} broadcast(%row), dimensions={1}")  # fmt: skip
    assert program.constant("table") == {0: 1, 1: 1, 2: 1}
    assert program.constant("square") is None, "only single values are made wider"
    assert program.constant("column") is None, "nor turned"


@pytest.mark.parametrize(("shape", "dtype", "layout"), [
    ((10, 200), np.int32, "{1,0:T(8,128)}"), ((2, 10, 200), np.int8, "{2,1,0:T(8,128)(4,1)}"),
    ((3, 5), np.int16, "{1,0:T(2,128)(2,1)}"), ((300,), np.int8, "{0:T(512)(128)(4,1)}"), ((), np.int32, ""),
])  # fmt: skip
def test_words_lie_where_the_layout_says(shape, dtype, layout):
    values = np.random.default_rng(0).integers(-100, 100, shape).astype(dtype)
    words = memory_words([int(v) for v in values.flat], list(shape), values.itemsize, layout)
    packed, bits = 4 // values.itemsize, 8 * values.itemsize
    if len(shape) < 2:
        places = [(i // packed, i % packed) for i in range(values.size)]
    else:
        rows = int(layout.partition("T(")[2].partition(",")[0])
        down, across = -(-shape[-2] // rows), -(-shape[-1] // 128)
        places = []
        for *plane, r, c in np.ndindex(*shape):
            tile = (sum(plane) * down + r // rows) * across + c // 128
            places.append((tile * rows * 128 // packed + r % rows // packed * 128 + c % 128, r % rows % packed))
    assert len(set(places)) == len(places)
    for value, (word, part) in zip(values.flat, places, strict=True):
        assert words[word] >> bits * part & 2**bits - 1 == int(value) % 2**bits


def test_one_value_stands_for_a_whole_constant():
    assert entry("%c = pred[3]{0:T(512)} constant({...})").constant("c") is None
    assert memory_words([7], [3], 4, "{0:T(128)}") == {0: 7, 1: 7, 2: 7}
