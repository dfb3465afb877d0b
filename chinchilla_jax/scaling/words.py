"""How are sizes, budgets and losses written for people?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def count(value: float, _position: int | None = None) -> str:
    """1234567 -> '1.23M': parameters and tokens the way the field writes them."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{letter}" if abs(value) < 1e15 else f"{value:.3g}"
    return f"{value:.3g}"


def flops_text(value: float) -> str:
    """2.7e+12 -> '2.7e12'."""
    return f"{value:.3g}".replace("e+", "e")


def loss_text(value: float) -> str:
    """Four decimals: the fifth is noise in every study yet."""
    return f"{value:.4f}"


def percent(value: float) -> str:
    """0.0123 -> '1.23%'."""
    value = 0.0 if abs(value) < 5e-5 else value  # no "-0.00%"
    return f"{value:.2%}" if math.isfinite(value) else "never"


_FORMS: dict[str, Callable[[float], str]] = {
    "C": flops_text, "loss": loss_text, "above optimum": percent, "FLOPs wasted": percent, "extra FLOPs": percent,
    "saved": percent, "D/N": lambda v: f"{v:.3g}", "a": lambda v: f"{v:.4f}", "E": loss_text, "A": lambda v: f"{v:.5g}",
    "B": lambda v: f"{v:.5g}", "alpha": lambda v: f"{v:.4f}", "beta": lambda v: f"{v:.4f}",
}  # fmt: skip


def cell(column: str, value: Any) -> str:
    """A value of a table under its column's name: a number, an interval (low, high), text or None."""
    form = _FORMS.get(column.split(",")[0], count)
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, (tuple, list)):
        return f"{form(value[0])} to {form(value[1])}"
    return form(value) if math.isfinite(value) else "never"


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a plain table; the columns are the keys of the rows, in the order they first occur."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = [columns] + [[cell(column, row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in text) for i in range(len(columns))]
    return ["  ".join(word.ljust(w) if i == 0 else word.rjust(w) for i, (word, w) in enumerate(zip(line, widths,
            strict=True))).rstrip() for line in text]  # fmt: skip
