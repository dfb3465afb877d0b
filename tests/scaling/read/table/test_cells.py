"""Cells: every form of a number has one reading, or the reason why not."""

import decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_jax.scaling.read.table.cells import Unusable, certain, holds_numbers, number


@pytest.mark.parametrize(("text", "value"), [
    ("1e9", 1e9), (" 12 ", 12.0), ("1,000,000", 1e6), ("1,234.5", 1234.5), ("12,345,678.9", 12345678.9), (7, 7.0),
    ("18.2M", 18.2e6), ("6.6B", 6.6e9), ("1.4 T", 1.4e12), ("70B params", 70e9), ("125 million", 125e6), ("500k", 5e5),
    ("2G", 2e9), ("3mm", 3e6), ("3 bn", 3e9), ("2 thousand", 2e3), (decimal.Decimal("3.5"), 3.5),
])  # fmt: skip
def test_a_number_in_a_form_of_one_reading_is_read(text, value):
    assert certain(number(text, "params")) == value


@pytest.mark.parametrize(("text", "words"), [
    ("1,234", "may stand for thousands or for a decimal point; write 1234 or 1.234"),
    ("3,21", "has a decimal comma; write 3.21"),
    ("1,00,000", "is not a number"), ("1.000.000", "is not a number"), ("70 apples", "is not a number"),
    ("", "is missing"), (None, "is missing"), ("N/A", "is missing"), ("-inf", "is not finite"),
])  # fmt: skip
def test_a_number_of_two_readings_or_none_is_told(text, words):
    with pytest.raises(Unusable, match=words):
        certain(number(text, "params"))


@pytest.mark.parametrize(("text", "value"), [
    ("2 ZFLOPs", 2e21), ("3 PFLOPs", 3e15), ("1.5 EFLOP", 1.5e18), ("4Y", 4e24), ("6e18 FLOPs", 6e18),
    ("5 GFLOPs", 5e9),
])  # fmt: skip
def test_flops_may_have_their_own_multipliers_and_parameters_may_not(text, value):
    assert certain(number(text, "flops")) == certain(number(text, "budget")) == pytest.approx(value)
    with pytest.raises(Unusable, match="not a number"):
        certain(number(text, "params"))


def test_a_column_holds_numbers_where_half_of_its_cells_do():
    assert holds_numbers([]) and holds_numbers(["", "-"]) and holds_numbers(["1", "x", None]) and holds_numbers(["1,5"])
    assert not holds_numbers(["1", "x", "y"])


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_every_positive_number_comes_back_from_its_text(value):
    assert certain(number(repr(value), "loss")) == certain(number(value, "loss")) == value
