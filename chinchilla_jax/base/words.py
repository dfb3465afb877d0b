"""How are sizes, budgets and losses written for people?"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Echo = Callable[[str], None]  # prints a line

MOST_PERCENT = 3.0  # a relative change beyond 300% is written as a factor


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
    """0.0123 -> '1.23%', and what is beyond 300% as a factor: 231.4 -> 'x232'."""
    value = 0.0 if abs(value) < 5e-5 else value  # no "-0.00%"
    if not math.isfinite(value):
        return "never"
    return f"{value:.2%}" if value <= MOST_PERCENT else f"x{_factor(1.0 + value)}"


def change(value: float) -> str:
    """A relative change with its sign: '+1.23%', or 'x5' beyond +300%."""
    return f"{value:+.2%}" if value <= MOST_PERCENT else percent(value)


def duration(seconds: float) -> str:
    """45 -> '45 s', 600 -> '10 min', 9000 -> '2.5 h', 1e6 -> '11.6 d'."""
    if not math.isfinite(seconds):
        return "?"
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{0 if name != 'h' else 1}f} {name}"
    return f"{seconds / 86400:.1f} d"


def _factor(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}" if value < 1e6 else flops_text(value)


def unit_of(loss_unit: str) -> str:
    """The unit alone of `LoadedRuns.loss_unit`, which goes on to say where it comes from."""
    return re.split(r"[:,;(]", loss_unit)[0].strip()


def in_unit(loss_unit: str) -> str:
    """`in nats per token`, or `taken as nats per token` where that was not stated."""
    unit = unit_of(loss_unit)
    return unit if unit.startswith("taken as") else f"in {unit}"


def loss_label(loss_unit: str) -> str:
    """The title of an axis of losses: `Validation loss (nats per token)`; `Loss` where nothing says it was held out."""
    return f"{'Validation loss' if 'held-out' in loss_unit else 'Loss'} ({unit_of(loss_unit)})"


_FORMS: dict[str, Callable[[float], str]] = {
    "C": flops_text, "loss": loss_text, "above optimum": percent, "FLOPs wasted": percent, "extra FLOPs": percent,
    "saved": percent, "D/N": lambda v: f"{v:.3g}", "a": lambda v: f"{v:.4f}", "E": loss_text, "A": lambda v: f"{v:.5g}",
    "B": lambda v: f"{v:.5g}", "alpha": lambda v: f"{v:.4f}", "beta": lambda v: f"{v:.4f}",
    "scatter": percent, "minimum inside": percent, "share": percent, "loss error": change, "cost of size": percent,
    "seconds": lambda v: f"{v:,.0f}",
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
    lines = ([line[i].rjust(width) if i else line[i].ljust(width) for i, width in enumerate(widths)] for line in text)
    return ["  ".join(line).rstrip() for line in lines]
