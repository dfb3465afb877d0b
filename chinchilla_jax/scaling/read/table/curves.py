"""Which training curve belongs to a run: one in a cell of its row, or one of a second table? Why is one left out?

The second table has a row for each point, or is the export of a chart, one column a run: trackers export `Step, RUN -
eval/loss, RUN - eval/loss__MIN, ...`; spreadsheets hold `step, run-0, run-1`. A chart holds no N: it is no table of
runs.
"""

from __future__ import annotations

import collections
import json
import math
import pathlib
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence

from chinchilla_jax.base import files
from chinchilla_jax.scaling.read.runs import BadRow, FitRefused, Run
from chinchilla_jax.scaling.read.table.cells import Unusable, holds_numbers, missing, number
from chinchilla_jax.scaling.read.table.columns import CURVE_FIELDS, choose_columns, derive_loss, require
from chinchilla_jax.scaling.read.table.formats import Column, Row, Table, read_table
from chinchilla_jax.scaling.read.table.headers import HEADERS, is_header
from chinchilla_jax.scaling.read.table.records import Point, Record, row_name, to_curve

_AXES = ("step", "tokens", "flops")
_SHOWN = 3  # runs spelt out for one chart


def read_curves_in_cells(records: Iterable[Record], table: Table) -> list[BadRow]:
    """Gives runs the curves of a column that holds [[tokens, loss], ...], in CSV as JSON; what is wrong with some."""
    bad: list[BadRow] = []
    for record in records:
        pairs = table.cell(record.row, "curve")
        if pairs is None or pairs == "":
            continue
        try:
            pairs = json.loads(pairs) if isinstance(pairs, str) else pairs
            points = [
                (f"{record.label}, point {place}", number(at, "tokens"), number(loss, "loss"))
                for place, (at, loss) in enumerate(pairs, 1)
            ]
            curve, problems = to_curve(points, record.run, "")
            record.change(curve=curve)
            bad += problems
        except (ValueError, TypeError):
            bad.append(BadRow(record.label, "curve left out: it is not a list of [tokens, loss]"))
    return bad


def read_curves_of_table(
    records: Sequence[Record], table: Table, path: pathlib.Path, by_hand: Mapping[str, str]
) -> list[BadRow]:
    """Gives runs the curves of a second table, joined by name, and `table` the notes; what is wrong with some.

    The table at `path` has a row for each point, or a column for each run; `curves.tokens` ... in `by_hand` are its
    columns. A name that several runs share gets no curve. Refused as `not_found`, or `columns`.
    """
    if not files.is_file(path):
        raise FitRefused("not_found", f"{path}: no such table of curves")
    second = read_table(path)
    chart = points_of_chart(second)
    if chart is not None and not any(key.startswith("curves.") for key in by_hand):
        second = chart[1]
        second.notes.append(f"{chart[0]}, read as such")
    said, second.notes = second.notes, []  # told after the guesses
    choose_columns(second, by_hand, CURVE_FIELDS, curves=True)
    second.notes += said
    derive_loss(second)
    require(second, "name", "loss")
    axis = next((field for field in ("tokens", "flops", "step") if field in second.columns), "tokens")
    require(second, axis)
    column = second.columns[axis]
    says = {
        "tokens": f": {column}, {second.columns['loss']}",
        "flops": f"; tokens at a point are D times its share of C ({column})",
        "step": "; tokens at a step are D times its share of the run's last step",
    }
    table.notes += [f"curves are read from {path.name}{says[axis]}", *second.notes]
    rows: dict[str, list[Row]] = collections.defaultdict(list)
    bad = []
    for row in second.rows:
        if row.problem:
            bad.append(BadRow(f"{path.name} {row.where}", row.problem))
        else:
            rows[row_name(row, second)].append(row)
    shared = collections.Counter(record.name or record.run.name for record in records)
    per_step = _tokens_per_step(records, rows, column) if axis == "step" else None
    for record in records:
        name = record.name or record.run.name
        if shared[name] == 1:
            points = _points(rows.pop(name, []), path.name, second, axis, record.run, per_step)
            curve, problems = to_curve(points, record.run, record.run.name)
            record.change(curve=curve)
            bad += problems
    names = {row_name(row, table) for row in table.rows}
    for name, left in rows.items():
        why = "its row was left out" if name in names else "the table of runs has no such run"
        if shared[name] > 1:
            why = f"{shared[name]} runs have that name"
        where = f"{path.name} {left[0].where} ({name or 'no name'})"
        bad.append(BadRow(where, f"curve of {len(left)} point{'s' * (len(left) > 1)} left out: {why}"))
    return bad


def _tokens_per_step(records: Iterable[Record], rows: Mapping[str, Sequence[Row]], column: Column) -> float | None:
    """The tokens of a step, median over the finished runs: what a step is to a run that is under way."""
    ratios = []
    for record in records:
        steps = [number(column.cell(row), "tokens") for row in rows.get(record.name or record.run.name, ())]
        last = max((step for step in steps if not isinstance(step, Unusable)), default=0.0)
        if last and math.isfinite(record.run.loss):
            ratios.append(record.run.tokens / last)
    return statistics.median(ratios) if ratios else None


def _points(
    rows: Sequence[Row], file: str, table: Table, axis: str, run: Run, per_step: float | None = None
) -> list[Point]:
    """The points of one run's curve; tokens come from the column of the axis, of a run under way by `per_step`."""
    column = table.columns[axis]
    along = [number(column.cell(row), "tokens") for row in rows]
    scale = column.factor
    if axis == "flops":
        scale *= run.tokens / run.flops
    elif axis == "step" and math.isnan(run.loss):
        scale = per_step or math.nan
    elif axis == "step":
        scale = run.tokens / max((value for value in along if not isinstance(value, Unusable)), default=1.0)
    tokens = [value if isinstance(value, Unusable) else value * scale for value in along]
    losses = [table.columns["loss"].number(row, "loss") for row in rows]
    return list(zip((f"{file} {row.where}" for row in rows), tokens, losses, strict=True))


def points_of_chart(table: Table) -> tuple[str, Table] | None:
    """(what is shown, a row for each point: `run`, axis, `loss`) of a table that is the export of a chart, or None."""
    at, runs, metric = _columns_of_chart(table)
    if not runs:
        return None
    names = ", ".join(list(runs)[:_SHOWN]) + " ..." * (len(runs) > _SHOWN)
    rows = [
        Row(row.where, {"run": run, at: row.values.get(at), "loss": row.values[name]}, row.problem)
        for run, name in runs.items()
        for row in table.rows
        if not missing(row.values.get(name))  # an empty cell is no point
    ]
    words = f"curves{metric} by {at}, one column a run: {names}"
    return words, Table(table.source, rows, ["run", at, "loss"], list(table.notes))


def _columns_of_chart(table: Table) -> tuple[str, dict[str, str], str]:
    """(the column of the axis, that of each run, ` of METRIC`); without runs where the table is no chart."""
    axes = ((field, name) for name in table.present for field in _AXES if is_header(field, name))
    axis, at = next(axes, ("", ""))
    others = [name for name in dict.fromkeys(table.present) if name != at]
    tracked = [match for name in others if (match := re.fullmatch(r"(.+?) - (.+)", name))]
    if axis and tracked and 2 * len(tracked) >= len(others):
        means = [match for match in tracked if not re.search(r"__(MIN|MAX)$|_step$", match[0])]  # the others are bands
        return at, {match[1]: match[0] for match in means}, f" of {means[0][2]}" if means else ""
    # Only below a first column of steps is a table of numbers under unknown headers a chart.
    if axis == "step" and at == table.present[0] and len(others) > 1 and _are_unknown_numbers(others, table):
        return at, {name: name for name in others}, ""
    return at, {}, ""


def _are_unknown_numbers(names: Sequence[str], table: Table) -> bool:
    known = any(is_header(field, name) for name in names for field in HEADERS)
    return not known and all(holds_numbers(table.cells(name)) for name in names)
