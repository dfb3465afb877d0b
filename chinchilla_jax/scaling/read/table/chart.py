"""Is this table the export of a chart, one column a run, and which curves does it hold?

Trackers export `Step, RUN - eval/loss, RUN - eval/loss__MIN, ...`; spreadsheets hold `step, run-0, run-1`. Such a
table has curves and no N: it can be the second table, `--curves`, not the table of runs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from chinchilla_jax.scaling.read.table.cells import holds_numbers, missing
from chinchilla_jax.scaling.read.table.columns import Values
from chinchilla_jax.scaling.read.table.formats import Row, Table
from chinchilla_jax.scaling.read.table.headers import HEADERS, INGREDIENTS, is_header

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


def find_chart(present: Sequence[str], values: Values) -> Chart | None:
    """The chart that a table is the export of, or None."""
    found = next(((field, name) for name in present for field in _AXES if is_header(field, name)), None)
    if found is None:
        return None
    axis, at = found
    others = [name for name in dict.fromkeys(present) if name != at]
    named = {name: match for name in others if (match := re.fullmatch(r"(.+?) - (.+)", name))}
    if named and 2 * len(named) >= len(others):
        main = {name: match for name, match in named.items() if not re.search(r"__(MIN|MAX)$|_step$", name)}
        metrics = {match[2] for match in main.values()}
        if not main:
            return None
        return Chart(axis, at, {match[1]: name for name, match in main.items()}, metrics.pop())
    if axis != "step" or at != present[0]:  # only then is a table of numbers under unknown headers a chart
        return None
    fields = [*HEADERS, *INGREDIENTS]
    plain = [name for name in others if not any(is_header(field, name) for field in fields)]
    if len(plain) < 2 or len(plain) != len(others) or not all(holds_numbers(values(name)) for name in plain):
        return None
    return Chart(axis, at, {name: name for name in plain})


def melt(table: Table, chart: Chart) -> Table:
    """The chart with a row for each point: columns `run`, the axis and `loss`; empty cells are no points."""
    rows = [
        Row(row.where, {"run": run, chart.at: row.values.get(chart.at), "loss": row.values[column]}, row.problem)
        for run, column in chart.runs.items()
        for row in table.rows
        if not missing(row.values.get(column))
    ]
    notes = (*table.notes, f"{chart.describe()}, read as such")
    return Table(tuple(rows), ("run", chart.at, "loss"), notes)
