"""Which number does a cell hold: a positive finite one in a form that has one reading, or why not?"""

from __future__ import annotations

import decimal
import math
import re
from collections.abc import Iterable
from typing import Any

MULTIPLIERS = {
    **dict.fromkeys(("k", "thousand", "thousands"), 1e3),
    **dict.fromkeys(("m", "mm", "mn", "million", "millions"), 1e6),
    **dict.fromkeys(("b", "bn", "billion", "billions"), 1e9),
    **dict.fromkeys(("t", "tn", "trillion", "trillions"), 1e12),
}
FLOP_PREFIXES = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21, "y": 1e24}
_MISSING = ("", "na", "n/a", "none", "null", "-")
_UNITS = {"params": r"param(?:eter)?s?", "tokens": r"tok(?:en)?s?", "flops": r"flops?", "budget": r"flops?"}


class Unusable(ValueError):
    """A value that is no positive finite number; the message says why."""


class Missing(Unusable):
    """There is no value at all."""


class Zero(Unusable):
    """The value is 0, as the first step of a history may be."""


def number(raw: Any, field: str, factor: float = 1.0) -> float | Unusable:
    """A positive finite number from a cell or a JSON value, times `factor`, or the reason that stands in its place.

    Parameters, tokens and FLOPs may be written with a multiplier and a unit: `25.008M`, `6.6B tokens`, `2 ZFLOPs`.
    """
    if isinstance(raw, Unusable):
        return raw
    if missing(raw):
        return Missing(f"{field} is missing")
    value = _number(raw, field)
    if isinstance(value, Unusable):
        return value
    if not math.isfinite(value):
        return Unusable(f"diverged: loss is {raw}" if field == "loss" else f"{field} is not finite: {raw!r}")
    if value <= 0:
        return (Unusable if value else Zero)(f"{field} is not above 0: {raw!r}")
    if factor != 1.0 and isinstance(raw, str) and (parts := _letters(raw.strip(), field)) and parts[1] != 1.0:
        return Unusable(f"{field} {raw!r} has a multiplier, and so has its header: which one holds?")
    return in_range(value * factor, field)


def certain(value: float | Unusable) -> float:
    """The number; the reason why there is none is raised."""
    if isinstance(value, Unusable):
        raise value
    return value


def in_range(value: float, field: str) -> float | Unusable:
    """The value of a computation, unless it is too large or too small for a floating-point number."""
    return value if 0 < value < math.inf else Unusable(f"{field} is beyond what a number holds")


def missing(raw: Any) -> bool:
    """Whether a cell is empty, says that there is no value, or could not be computed for want of one."""
    return raw is None or isinstance(raw, Missing) or (isinstance(raw, str) and raw.strip().lower() in _MISSING)


def as_number(raw: Any) -> float | None:
    """The number a cell holds, finite or not, or None: for telling numbers from text."""
    value = _number(raw, "params")
    return None if isinstance(value, Unusable) else value


def holds_numbers(values: Iterable[Any]) -> bool:
    """Whether at least half of the values that are there look like numbers; so it is when none are there."""
    filled = [value for value in values if not missing(value)]
    # A number in a form of two readings is no text either.
    digits = (isinstance(value, str) and re.fullmatch(r"[+-]?\d[\d.,]*", value.strip()) for value in filled)
    return 2 * sum(as_number(v) is not None or bool(d) for v, d in zip(filled, digits, strict=True)) >= len(filled)


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
    point = re.fullmatch(r"\s*[+-]?\d{1,3}(,\d{3})*\.\d+([eE][+-]?\d+)?\s*", text)
    return bool(point) and not re.fullmatch(r"\s*[+-]?[1-9]\d{0,2}(\.\d{3})+\s*", text)


def _number(raw: Any, field: str) -> float | Unusable:
    if isinstance(raw, bool) or not isinstance(raw, (int, float, str, decimal.Decimal)):
        return Unusable(f"{field} is not a number: {raw!r}")
    text, factor = raw, 1.0
    if isinstance(raw, str):
        text, factor = _letters(raw.strip(), field) or (raw.strip(), 1.0)
        # Commas stand between thousands where there are two groups of three, or a point behind.
        if re.fullmatch(r"[+-]?\d{1,3}(,\d{3}){2,}(\.\d*)?|[+-]?\d{1,3}(,\d{3})+\.\d*", text):
            text = text.replace(",", "")
        elif re.fullmatch(r"[+-]?\d+,\d+([eE][+-]?\d+)?", text):
            point, none = text.replace(",", "."), text.replace(",", "")
            either = f"a comma that may stand for thousands or for a decimal point; write {none} or {point}"
            three = re.fullmatch(r"[+-]?\d{1,3},\d{3}", text)
            return Unusable(f"{field} {text!r} has {either if three else f'a decimal comma; write {point}'}")
    try:
        return float(text) * factor
    except OverflowError:
        return math.inf
    except ValueError:
        return Unusable(f"{field} is not a number: {raw!r}")


def _letters(text: str, field: str) -> tuple[str, float] | None:
    """`25.008M` -> (`25.008`, 1e6), for fields that people write so; None where there are no such letters."""
    if field not in _UNITS:
        return None
    parts = re.fullmatch(r"([+-]?[\d.,]*\d(?:[eE][+-]?\d+)?)\s*([A-Za-z]+(?: [A-Za-z]+)?)", text)
    if not parts:
        return None
    word = re.sub(rf"\s*{_UNITS[field]}$", "", parts[2].lower())
    factors = {"": 1.0, "g": 1e9} | MULTIPLIERS | (FLOP_PREFIXES if field in ("flops", "budget") else {})
    return (parts[1], factors[word]) if word in factors else None
