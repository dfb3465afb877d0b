"""Which training curve belongs to a run: one in a cell of its row, or one of a second table? Why is one left out?"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.scaling.read.runs import BadRow, Curve, FitRefused, Run
from chinchilla_jax.scaling.read.table.cells import Unusable, Zero, number
from chinchilla_jax.scaling.read.table.chart import find_chart, melt
from chinchilla_jax.scaling.read.table.columns import CURVE_FIELDS, Column, Columns, choose_columns, require
from chinchilla_jax.scaling.read.table.derive import derive_loss
from chinchilla_jax.scaling.read.table.formats import Row, read_table
from chinchilla_jax.scaling.read.table.records import Record, row_name

_SHOWN = 5  # line numbers spelt out for one curve


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of a curve: where it was read, tokens and loss, or why there is no such number."""

    where: str
    tokens: float | Unusable
    loss: float | Unusable


def to_curve(points: Sequence[Point], run: Run, label: str) -> tuple[Curve | None, list[BadRow]]:
    """The curve of `run`, or None and why it was left out: one bad point spoils it, since nothing fills the gap.

    Args:
      points: in the order they were read. A point at 0 tokens comes before any training: no curve begins there, and it
        is passed over.
      label: the run's name for bad rows, unless the points say it.
    """
    tokens, losses = [], []
    problems: dict[str, list[tuple[str, str]]] = {}
    for point in points:
        if isinstance(point.tokens, Zero) and not tokens:
            continue
        problem = next((str(value) for value in (point.tokens, point.loss) if isinstance(value, Unusable)), "")
        if not problem and tokens and point.tokens <= tokens[-1]:
            problem = f"tokens do not rise: {point.tokens:.6g} after {tokens[-1]:.6g}"
        if problem:
            problems.setdefault(problem.partition(":")[0], []).append((point.where, problem))
        else:
            tokens.append(point.tokens)
            losses.append(point.loss)
    if not problems and tokens and tokens[-1] > 1.01 * run.tokens:
        beyond = f"it goes on to {tokens[-1]:.6g} tokens, the run has D = {run.tokens:.6g}"
        problems["past"] = [(points[-1].where, beyond)]
    if problems:
        return None, [_bad_points(alike, label) for alike in problems.values()]
    return (Curve(np.array(tokens), np.array(losses)) if tokens else None), []


def _bad_points(points: Sequence[tuple[str, str]], label: str) -> BadRow:
    """One entry for the points of a curve that share a problem: their lines, and the first one's words."""
    kind = points[0][0].rpartition(" ")[0]
    numbers = [where.rpartition(" ")[2] for where, _ in points]
    lines = f"{kind}{'s' if len(points) > 1 else ''} {', '.join(numbers[:_SHOWN])}"
    more = f" and {len(points) - _SHOWN} more" if len(points) > _SHOWN else ""
    return BadRow(f"{lines}{more}{f' ({label})' if label else ''}", f"curve left out: {points[0][1]}")


def curves_in_cells(records: Iterable[Record], columns: Columns) -> tuple[tuple[Run, ...], tuple[BadRow, ...]]:
    """The runs with the curves of a column that holds [[tokens, loss], ...]; in CSV as JSON in the cell."""
    if "curve" not in columns:
        return tuple(record.run for record in records), ()
    runs, bad = [], []
    for record in records:
        curve, pairs = None, columns["curve"].cell(record.row)
        if pairs is not None and pairs != "":
            try:
                pairs = json.loads(pairs) if isinstance(pairs, str) else pairs
                points = [
                    Point(f"{record.label}, point {place}", number(at, "tokens"), number(loss, "loss"))
                    for place, (at, loss) in enumerate(pairs, 1)
                ]
                curve, problems = to_curve(points, record.run, "")
                bad += problems
            except (ValueError, TypeError):
                bad.append(BadRow(record.label, "curve left out: it is not a list of [tokens, loss]"))
        runs.append(dataclasses.replace(record.run, curve=curve))
    return tuple(runs), tuple(bad)


def curves_of_table(
    records: Sequence[Record], names: Iterable[str], path: pathlib.Path, by_hand: Mapping[str, str]
) -> tuple[tuple[Run, ...], tuple[BadRow, ...], tuple[str, ...]]:
    """(the runs with the curves of a second table, what is wrong, what to say), joined by name.

    Args:
      records: of the runs; a name in the table that several share gets no curve.
      names: those of all rows, usable or not.
      path: a table with a row for each point of each run's training curve, or with a column for each run.
      by_hand: columns by field; `curves.tokens` ... are those of this table.

    Raises:
      FitRefused: `not_found`, or `columns`.
    """
    if not files.is_file(path):
        raise FitRefused("not_found", f"{path}: no such table of curves")
    table = read_table(path)
    chart = find_chart(table)
    if chart is not None and not any(key.startswith("curves.") for key in by_hand):
        table = melt(table, chart)
    columns, guesses = choose_columns(table, by_hand, CURVE_FIELDS, curves=True)
    columns, _, derived = derive_loss(table, columns)
    require(table, columns, ("name", "loss"))
    axis = next((field for field in ("tokens", "flops", "step") if field in columns), "tokens")
    require(table, columns, (axis,))
    says = {
        "tokens": f"curves are read from {path.name}: {columns[axis]}, {columns['loss']}",
        "flops": f"curves are read from {path.name}; tokens at a point are D times its share of C ({columns[axis]})",
        "step": f"curves are read from {path.name}; tokens at a step are D times its share of the run's last step",
    }[axis]
    rows: dict[str, list[Row]] = collections.defaultdict(list)
    bad = []
    for row in table.rows:
        if row.problem:
            bad.append(BadRow(f"{path.name} {row.where}", row.problem))
        else:
            rows[row_name(row, columns)].append(row)
    runs = []
    shared = collections.Counter(record.name or record.run.name for record in records)
    for record in records:
        run, name = record.run, record.name or record.run.name
        if shared[name] == 1:
            points = _points(rows.pop(name, []), path.name, columns, axis, run)
            curve, problems = to_curve(points, run, run.name)
            bad += problems
            run = dataclasses.replace(run, curve=curve)
        runs.append(run)
    bad += _without_run(rows, path.name, shared, set(names))
    return tuple(runs), tuple(bad), (says, *guesses, *table.notes, *derived)


def _points(rows: Sequence[Row], file: str, columns: Columns, axis: str, run: Run) -> list[Point]:
    """The points of one run's curve; tokens come from the column of the axis."""
    column: Column = columns[axis]
    along = [number(column.cell(row), "tokens") for row in rows]
    scale = column.factor
    if axis == "flops":
        scale *= run.tokens / run.flops
    elif axis == "step":
        scale = run.tokens / max((value for value in along if not isinstance(value, Unusable)), default=1.0)
    return [
        Point(
            f"{file} {row.where}", at if isinstance(at, Unusable) else at * scale, columns["loss"].number(row, "loss")
        )
        for row, at in zip(rows, along, strict=True)
    ]


def _without_run(
    rows: Mapping[str, Sequence[Row]], file: str, shared: Mapping[str, int], names: set[str]
) -> list[BadRow]:
    """Why the curves that no run took are left out."""
    bad = []
    for name, left in rows.items():
        why = "its row was left out" if name in names else "the table of runs has no such run"
        if shared[name] > 1:
            why = f"{shared[name]} runs have that name"
        where = f"{file} {left[0].where} ({name or 'no name'})"
        bad.append(BadRow(where, f"curve of {len(left)} point{'s' * (len(left) > 1)} left out: {why}"))
    return bad
