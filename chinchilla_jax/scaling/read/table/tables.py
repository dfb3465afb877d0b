"""Which runs does a table hold, with the training curves beside it, in it, or in the rows before a run's last?"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import pathlib
from collections.abc import Container, Iterable, Mapping, Sequence

from chinchilla_jax.scaling.read.runs import BadRow, FitRefused, LoadedRuns, Run
from chinchilla_jax.scaling.read.table.cells import Unusable, positive
from chinchilla_jax.scaling.read.table.chart import find_chart, melt
from chinchilla_jax.scaling.read.table.columns import CURVE_FIELDS, NONE, Column, Values, choose_columns, require
from chinchilla_jax.scaling.read.table.derive import derive_loss, derive_tokens
from chinchilla_jax.scaling.read.table.formats import Row, read_table
from chinchilla_jax.scaling.read.table.history import to_runs
from chinchilla_jax.scaling.read.table.rows import SIX_ND, Point, row_label, row_name, to_curve
from chinchilla_jax.scaling.read.table.select import Where, select
from chinchilla_jax.scaling.read.table.settings import best_per_cell, remarks


def load_table(
    path: pathlib.Path,
    wanted: Mapping[str, str],
    curves: pathlib.Path | None = None,
    where: Where | None = None,
    best: bool = False,
) -> LoadedRuns:
    """The runs of a table in a file, with their curves if there are any.

    Args:
      wanted: columns by field, see `load_runs`; `curves.tokens` ... are those of the second table.
      curves: a table with a row for each point of each run's training curve, or with a column for each run.
      where: values by column; rows without one of them are passed over.
      best: whether only the runs of the best setting are kept where several were tried for one N and D.

    Raises:
      FitRefused: `columns`, `curves`, `where` or `no_runs`.
    """
    table = read_table(path)
    if not table.rows:
        raise FitRefused("no_runs", f"{path}: no rows below the header")
    rows, selected = select(str(path), table.rows, table.present, where or {})
    present, values = table.present, _values(rows)
    columns, guesses = choose_columns(str(path), present, wanted, values=values)
    without = [field for field, name in wanted.items() if name == NONE]
    rows, columns, said = derive_tokens(rows, columns, present, values)
    rows, columns, unit, more = derive_loss(rows, columns, present, values, without)
    if any(field not in columns for field in ("params", "tokens")) and (chart := find_chart(present, values)):
        raise FitRefused("columns", f"{path}: the export of a chart: {chart.describe()}; N and D of the runs are "
                         "missing: give a table with a row for each run (name, params, tokens, loss) as --runs, and "
                         "this one as --curves")  # fmt: skip
    require(str(path), columns, ("params", "tokens", "loss"), present, values)
    if curves is None and any(key.startswith("curves.") for key in wanted):
        raise FitRefused("columns", "--columns: curves.FIELD names a column of --curves=TABLE, which is missing")
    histories = wanted["step"] != NONE if "step" in wanted else None
    usable, bad, decided = to_runs(rows, columns, present, histories)
    notes = (*table.notes, *selected, *guesses, *said, *more, *decided)
    if best:
        usable, said = best_per_cell(usable, columns, present)
        notes += said
    notes += remarks(usable, columns, present)
    if curves is not None:
        if "name" not in columns:
            raise FitRefused("curves", f"{path}: --curves needs names to join by; add a column name, or give "
                             "--columns=name:COLUMN")  # fmt: skip
        names = {row_name(row, columns) for row in rows}
        usable = [(row_name(row, columns) or run.name, run) for row, run in usable]
        runs, spoilt, said = _join_curves(usable, names, curves, wanted)
        notes += said
    else:
        runs, spoilt = _curves_within(usable, columns)
    echoed = {field: str(column) for field, column in columns.items()}
    unstated = f"not stated by {path.name} (with embeddings, or without?)"
    return LoadedRuns(
        source=str(path),
        runs=runs,
        bad=bad + spoilt,
        columns={"flops": SIX_ND} | echoed,
        convention=_convention(path, columns, runs),
        params_count=columns["params"].count or unstated,
        loss_unit=unit,
        notes=notes,
    )


def _values(rows: Sequence[Row]) -> Values:
    @functools.cache
    def values(name: str) -> list:
        return [row.values.get(name) for row in rows]

    return values


def _convention(path: pathlib.Path, columns: Mapping[str, Column], runs: tuple[Run, ...]) -> str:
    column = columns.get("flops")
    if column is None:
        count = columns["params"].count
        return f"6nd, computed{f' with the {count} N'.replace('_', '-') if count not in ('', 'total') else ''}"
    if column.count:
        return column.count
    equal = runs and all(abs(run.flops / (6.0 * run.params * run.tokens) - 1.0) < 1e-3 for run in runs)
    return f"not stated by {path.name}{', but equal to 6 N D' if equal else ''}"


def _curves_within(
    usable: Iterable[tuple[Row, Run]], columns: Mapping[str, Column]
) -> tuple[tuple[Run, ...], tuple[BadRow, ...]]:
    """The runs with the curves of a column that holds [[tokens, loss], ...]; in CSV as JSON in the cell."""
    made, bad = [], []
    for row, run in usable:
        pairs = row.values.get(columns["curve"].name) if "curve" in columns else None
        label, curve = row_label(row, columns), None
        if pairs is not None and pairs != "":
            try:
                pairs = json.loads(pairs) if isinstance(pairs, str) else pairs
                points = [Point(f"{label}, point {number}", at, loss) for number, (at, loss) in enumerate(pairs, 1)]
                curve, spoilt = to_curve(points, run, "")
                bad += spoilt
            except (ValueError, TypeError):
                bad.append(BadRow(label, "curve left out: it is not a list of [tokens, loss]"))
        made.append(dataclasses.replace(run, curve=curve) if "curve" in columns else run)
    return tuple(made), tuple(bad)


def _join_curves(
    named: Sequence[tuple[str, Run]], names: Container[str], curves: pathlib.Path, wanted: Mapping[str, str]
) -> tuple[tuple[Run, ...], tuple[BadRow, ...], tuple[str, ...]]:
    """The runs with the curves of a second table, joined by name.

    Args:
      named: the name of a run in its table, which several may share, and the run.
      names: those of all rows, usable or not.
    """
    if not curves.is_file():
        raise FitRefused("not_found", f"{curves}: no such table of curves")
    table = read_table(curves)
    chart = find_chart(table.present, _values(table.rows))
    if chart is not None and not any(key.startswith("curves.") for key in wanted):
        table = melt(table, chart)
    rows, present, values = table.rows, table.present, _values(table.rows)
    columns, more = choose_columns(str(curves), present, wanted, CURVE_FIELDS, curves=True, values=values)
    rows, columns, _, said = derive_loss(rows, columns, present, values)
    more += (*table.notes, *said)
    require(str(curves), columns, ("name", "loss"), present, values)
    axis = next((field for field in ("tokens", "flops", "step") if field in columns), None)
    if axis is None:
        require(str(curves), columns, ("tokens",), present, values)
    grouped: dict[str, list[Row]] = collections.defaultdict(list)
    bad = []
    for row in rows:
        if row.problem:
            bad.append(BadRow(f"{curves.name} {row.where}", row.problem))
        else:
            grouped[row_name(row, columns)].append(row)
    made = []
    at, loss = columns[axis].name, columns["loss"].name
    shared = collections.Counter(name for name, _ in named)
    for name, run in named:
        if shared[name] > 1:
            made.append(run)
            continue
        points = [
            Point(f"{curves.name} {row.where}", row.values.get(at), row.values.get(loss))
            for row in grouped.pop(name, ())
        ]
        curve, spoilt = to_curve(_in_tokens(points, axis, columns[axis], run), run, run.name)
        bad += spoilt
        made.append(dataclasses.replace(run, curve=curve))
    for name, left in grouped.items():
        why = "its row was left out" if name in names else "the table of runs has no such run"
        if shared[name] > 1:
            why = f"{shared[name]} runs have that name"
        where = f"{curves.name} {left[0].where} ({name or 'no name'})"
        bad.append(BadRow(where, f"curve of {len(left)} point{'s' * (len(left) > 1)} left out: {why}"))
    says = {
        "tokens": f"curves are read from {curves.name}: {columns[axis]}, {columns['loss']}",
        "flops": f"curves are read from {curves.name}; tokens at a point are D times its share of C ({columns[axis]})",
        "step": f"curves are read from {curves.name}; tokens at a step are D times its share of the run's last step",
    }[axis]
    return tuple(made), tuple(bad), (says, *more)


def _in_tokens(points: list[Point], axis: str, column: Column, run: Run) -> list[Point]:
    """The points with `at` in tokens; values that are no numbers stay, to be told."""
    scale = column.factor
    if axis == "flops":
        scale *= run.tokens / run.flops
    elif axis == "step":
        last = max((value for point in points if (value := _value(point.at))), default=1.0)
        scale = run.tokens / last
    return [dataclasses.replace(p, at=value * scale if (value := _value(p.at)) is not None else p.at) for p in points]


def _value(raw: object) -> float | None:
    try:
        return positive(raw, "tokens")
    except Unusable:
        return None
