"""Is this table the export of a chart, one column a run, and which curves does it hold?

Trackers export `Step, RUN - eval/loss, RUN - eval/loss__MIN, ...`; spreadsheets hold `step, run-0, run-1`. Such a
table has curves and no N: it can be the second table, `--curves`, not the table of runs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from chinchilla_jax.scaling.read.table.cells import holds_numbers, missing
from chinchilla_jax.scaling.read.table.formats import Row, Table
from chinchilla_jax.scaling.read.table.headers import HEADERS, is_header

_AXES = ("step", "tokens", "flops")
_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Chart:
    """A column of `axis` (a field: step, tokens or flops), and one column for each run; `metric` where it is told."""

    axis: str
    at: str
    runs: dict[str, str]
    metric: str = ""

    def describe(self) -> str:
        """`curves of eval/loss by Step, of 4 runs in 4 columns (run-0, run-1, run-2 ...)`."""
        names = list(self.runs)
        shown = ", ".join(names[:_SHOWN]) + " ..." * (len(names) > _SHOWN)
        return f"curves{f' of {self.metric}' if self.metric else ''} by {self.at}, one column a run: {shown}"


def find_chart(table: Table) -> Chart | None:
    """The chart that a table is the export of, or None."""
    axes = ((field, name) for name in table.present for field in _AXES if is_header(field, name))
    axis, at = next(axes, ("", ""))
    others = [name for name in dict.fromkeys(table.present) if name != at]
    metrics = [match for name in others if (match := re.fullmatch(r"(.+?) - (.+)", name))]
    if axis and metrics and 2 * len(metrics) >= len(others):
        return _tracker_chart(axis, at, metrics)
    # Only below a first column of steps is a table of numbers under unknown headers a chart.
    if axis == "step" and at == table.present[0] and len(others) > 1 and _are_unknown_numbers(others, table):
        return Chart(axis, at, {name: name for name in others})
    return None


def _tracker_chart(axis: str, at: str, columns: Sequence[re.Match]) -> Chart | None:
    """The chart of columns `RUN - METRIC`, without those of its bands."""
    means = [match for match in columns if not re.search(r"__(MIN|MAX)$|_step$", match[0])]
    return Chart(axis, at, {match[1]: match[0] for match in means}, means[0][2]) if means else None


def _are_unknown_numbers(names: Sequence[str], table: Table) -> bool:
    known = any(is_header(field, name) for name in names for field in HEADERS)
    return not known and all(holds_numbers(table.cells(name)) for name in names)


def melt(table: Table, chart: Chart) -> Table:
    """The chart with a row for each point: columns `run`, the axis and `loss`; empty cells are no points."""
    rows = [
        Row(row.where, {"run": run, chart.at: row.values.get(chart.at), "loss": row.values[column]}, row.problem)
        for run, column in chart.runs.items()
        for row in table.rows
        if not missing(row.values.get(column))
    ]
    notes = (*table.notes, f"{chart.describe()}, read as such")
    return Table(table.source, tuple(rows), ("run", chart.at, "loss"), notes)
