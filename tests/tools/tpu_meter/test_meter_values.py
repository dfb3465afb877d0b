"""Scalar instructions on words and predicates, some of them not known."""

import itertools
import operator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_jax.tools.tpu_meter.values import both, either, neither, not_both, scalar_function, select

WORDS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(("function", "truth"), [
    (either, lambda a, b: a or b), (both, lambda a, b: a and b),
    (neither, lambda a, b: not (a or b)), (not_both, lambda a, b: not (a and b)),
])  # fmt: skip
def test_a_predicate_is_known_exactly_when_every_completion_agrees(function, truth):
    for a, b in itertools.product((True, False, None), repeat=2):
        outcomes = {truth(x, y) for x in ((True, False) if a is None else (a,))
                    for y in ((True, False) if b is None else (b,))}  # fmt: skip
        assert function(a, b) == (outcomes.pop() if len(outcomes) == 1 else None)


def test_a_choice_between_equal_values_is_known():
    assert select(None, 3, 3) == 3
    assert select(None, 3, 4) is None


@settings(deadline=None)
@given(WORDS, WORDS, st.integers(0, 31))
def test_words_wrap_and_shift_as_32_bits_do(a, b, shift):
    x, y = np.uint32(a), np.uint32(b)
    with np.errstate(over="ignore"):
        for opcode, expected in (
            ("sadd.s32", x + y), ("ssub.s32", x - y), ("smul.u32", x * y), ("sand.u32", x & y), ("sor.u32", x | y),
            ("sxor.u32", x ^ y),
        ):  # fmt: skip
            assert scalar_function(opcode, 2)(a, b) == int(expected)
    assert scalar_function("sshll.u32", 2)(a, shift) == int(x << np.uint32(shift))
    assert scalar_function("sshrl.u32", 2)(a, shift) == int(x >> np.uint32(shift))
    assert scalar_function("sshra.s32", 2)(a, shift) == int(x.view(np.int32) >> np.int32(shift)) % 2**32


@settings(deadline=None)
@given(WORDS, WORDS)
def test_comparisons_and_extremes_read_words_as_their_type_says(a, b):
    for kind, dtype in (("s32", np.int32), ("u32", np.uint32)):
        x, y = (int(np.uint32(word).view(dtype)) for word in (a, b))
        for name in ("eq", "ne", "lt", "le", "gt", "ge"):
            got = scalar_function(f"scmp.{name}.{kind}.totalorder", 2)(a, b)
            assert got is getattr(operator, name)(x, y)
        assert scalar_function(f"smin.{kind}", 2)(a, b) == min(x, y) % 2**32
        assert scalar_function(f"smax.{kind}", 2)(a, b) == max(x, y) % 2**32


@pytest.mark.parametrize("opcode", ["sadd.f32", "scmp.lt.f32.totalorder", "sdivrem.u32", "sadd"])
def test_what_is_not_integer_arithmetic_is_not_guessed(opcode):
    assert scalar_function(opcode, 2) is None
