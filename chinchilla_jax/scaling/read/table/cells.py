"""Which number does a cell hold: a positive finite one in a form that has one reading, or why not?"""

from __future__ import annotations

import decimal
import math
import re
from collections.abc import Iterable
from typing import Any

_MISSING = ("", "na", "n/a", "none", "null", "-")
_FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "mm": 1e6, "mn": 1e6, "b": 1e9, "bn": 1e9, "g": 1e9, "t": 1e12, "tn": 1e12,
            "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}  # fmt: skip
_FLOP_FACTORS = {"p": 1e15, "e": 1e18, "z": 1e21, "y": 1e24}
_UNIT = {"params": r"param(?:eter)?s?", "tokens": r"tok(?:en)?s?", "flops": r"flops?", "budget": r"flops?"}
_FIELDS_OF_FLOPS = ("flops", "budget")


class Unusable(ValueError):
    """A value that is no positive finite number; the message says why."""


class Missing(Unusable):
    """There is no value at all."""


def positive(raw: Any, field: str) -> float:
    """A positive finite number from a cell, a JSON value, or the reason (an `Unusable`) that stands in its place.

    Parameters, tokens and FLOPs may be written with a multiplier and a unit: `25.008M`, `6.6B tokens`, `2 ZFLOPs`.

    Raises:
      Unusable: it is missing, no number, of two readings, not finite (a loss: diverged), zero or less.
    """
    if isinstance(raw, Unusable):
        raise raw
    if missing(raw):
        raise Missing(f"{field} is missing")
    value = _number(raw, field)
    if not math.isfinite(value):
        raise Unusable(f"diverged: loss is {raw}" if field == "loss" else f"{field} is not finite: {raw!r}")
    if value <= 0:
        raise Unusable(f"{field} is not above 0: {raw!r}")
    return value


def scaled(raw: Any, field: str, factor: float) -> float:
    """The number of a cell under a header with this multiplier.

    Raises:
      Unusable: as `positive`; or both the cell and the header have a multiplier.
    """
    value = positive(raw, field)
    if factor != 1.0 and isinstance(raw, str) and (parts := _letters(raw.strip(), field)) and parts[1] != 1.0:
        raise Unusable(f"{field} {raw!r} has a multiplier, and so has its header: which one holds?")
    return value * factor


def missing(raw: Any) -> bool:
    """Whether a cell is empty, says that there is no value, or could not be computed for want of one."""
    return raw is None or isinstance(raw, Missing) or (isinstance(raw, str) and raw.strip().lower() in _MISSING)


def as_number(raw: Any) -> float | None:
    """The number a cell holds, finite or not, or None: for telling numbers from text."""
    try:
        return _number(raw, "params")
    except Unusable:
        return None


def holds_numbers(values: Iterable[Any]) -> bool:
    """Whether at least half of the values that are there look like numbers; so it is when none are there."""
    there = [value for value in values if not missing(value)]
    like = sum(isinstance(value, Unusable) or as_number(value) is not None or _digits(value) for value in there)
    return 2 * like >= len(there)


def text_of(raw: Any) -> str:
    """A cell on one line; empty when it is missing."""
    return "" if missing(raw) else " ".join(str(raw).split())


def same_value(raw: Any) -> str | float:
    """What two cells are compared by: the number, else the text without regard to case."""
    value = None if isinstance(raw, bool) else as_number(raw)
    return text_of(raw).casefold() if value is None or math.isnan(value) else value


def with_decimal_commas(text: str) -> str:
    """`3,52` as `3.52` and `1.234.567,8` as `1234567.8`; what is no such number stays."""
    if re.fullmatch(r"\s*[+-]?\d{1,3}(\.\d{3})+,\d+\s*|\s*[+-]?\d{1,3}(\.\d{3}){2,}\s*", text):
        return text.replace(".", "").replace(",", ".")
    if re.fullmatch(r"\s*[+-]?\d*,\d+([eE][+-]?\d+)?\s*([A-Za-z]+\s*)?", text):
        return text.replace(",", ".")
    return text


def has_decimal_point(text: str) -> bool:
    """Whether a number has a point that can only be decimal, so that a comma beside it is none."""
    return bool(re.fullmatch(r"\s*[+-]?\d{1,3}(,\d{3})*\.\d+([eE][+-]?\d+)?\s*", text)) and not re.fullmatch(
        r"\s*[+-]?[1-9]\d{0,2}(\.\d{3})+\s*", text
    )


def _digits(raw: Any) -> bool:
    """A number in a form of two readings is no text either."""
    return isinstance(raw, str) and bool(re.fullmatch(r"[+-]?\d[\d.,]*", raw.strip()))


def _number(raw: Any, field: str) -> float:
    if isinstance(raw, decimal.Decimal):
        raw = float(raw)
    if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
        raise Unusable(f"{field} is not a number: {raw!r}")
    text, factor = raw.strip() if isinstance(raw, str) else raw, 1.0
    if isinstance(text, str) and (parts := _letters(text, field)):
        text, factor = parts
    if isinstance(text, str) and "," in text:
        # One group of three may be a thousand or a decimal fraction; two groups, or a point behind, are thousands.
        if re.fullmatch(r"[+-]?\d{1,3}(,\d{3}){2,}(\.\d*)?|[+-]?\d{1,3}(,\d{3})+\.\d*", text):
            text = text.replace(",", "")
        elif re.fullmatch(r"[+-]?\d+,\d+([eE][+-]?\d+)?", text):
            point, none = text.replace(",", "."), text.replace(",", "")
            either = f"a comma that may stand for thousands or for a decimal point; write {none} or {point}"
            three = re.fullmatch(r"[+-]?\d{1,3},\d{3}", text)
            raise Unusable(f"{field} {text!r} has {either if three else f'a decimal comma; write {point}'}")
    try:
        return float(text) * factor
    except OverflowError:
        return math.inf
    except ValueError:
        raise Unusable(f"{field} is not a number: {raw!r}") from None


def _letters(text: str, field: str) -> tuple[str, float] | None:
    """`25.008M` -> (`25.008`, 1e6), for fields that people write so; None where there are no such letters."""
    if field not in _UNIT:
        return None
    parts = re.fullmatch(r"([+-]?[\d.,]*\d(?:[eE][+-]?\d+)?)\s*([A-Za-z]+(?: [A-Za-z]+)?)", text)
    if not parts:
        return None
    word = re.sub(rf"\s*{_UNIT[field]}$", "", parts[2].lower())
    factors = _FACTORS | (_FLOP_FACTORS if field in _FIELDS_OF_FLOPS else {})
    return (parts[1], factors[word]) if word in factors else None
