"""Which runs does a table hold: CSV with any separator, or JSON lines, with the training curves beside it or in it?

Every row keeps the number of the line it ends on, counted from 1 with the header, whatever is quoted in it.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Container, Iterable, Iterator, Mapping

from chinchilla_jax.scaling.columns import CURVE_FIELDS, Column, choose_columns, require
from chinchilla_jax.scaling.rows import SIX_ND, Point, Row, Unusable, positive, row_label, row_name, to_curve, to_runs
from chinchilla_jax.scaling.runs import BadRow, FitRefused, LoadedRuns, Run

_JSON_LINES = (".jsonl", ".json", ".ndjson")
_SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
_NOT_TEXT = {
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"BZh": "compressed with bzip2; unpack it first",
    b"\xfd7zXZ": "compressed with xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it first",
    b"PK\x03\x04": "a zip archive or an Excel file; save the table as CSV",
    b"PAR1": "a Parquet file; save the table as CSV",
    b"\xff\xfe": "in UTF-16; save it as UTF-8",
    b"\xfe\xff": "in UTF-16; save it as UTF-8",
}


def load_table(path: pathlib.Path, wanted: Mapping[str, str], curves: pathlib.Path | None = None) -> LoadedRuns:
    """The runs of a CSV or JSON-lines file, with their curves if there are any.

    Args:
      wanted: columns by field, see `load_runs`; `curves.tokens` ... are those of the second table.
      curves: a table with a row for each point of each run's training curve.

    Raises:
      FitRefused: `columns`, `curves` or `no_runs`.
    """
    rows, present, notes = _read(path)
    columns, more = choose_columns(str(path), present, wanted)
    require(str(path), columns, ("params", "tokens", "loss"), present)
    if not rows:
        raise FitRefused("no_runs", f"{path}: no rows below the header")
    if curves is None and any(key.startswith("curves.") for key in wanted):
        raise FitRefused("columns", "--columns: curves.FIELD names a column of --curves=TABLE, which is missing")
    usable, bad = to_runs(rows, columns)
    if curves is not None:
        if "name" not in columns:
            raise FitRefused("curves", f"{path}: --curves needs names to join by; add a column name, or give "
                             "--columns=name:COLUMN")  # fmt: skip
        names = {row_name(row, columns) for row in rows}
        runs, spoilt, said = _join_curves([run for _, run in usable], names, curves, wanted)
        more += said
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
        loss_unit="taken as nats per token: the numbers cannot tell it from bits, or from a loss per byte",
        notes=notes + more,
    )


def _convention(path: pathlib.Path, columns: Mapping[str, Column], runs: tuple[Run, ...]) -> str:
    column = columns.get("flops")
    if column is None:
        non_embedding = columns["params"].count == "non_embedding"
        return f"6nd, computed{' with the non-embedding N' if non_embedding else ''}"
    if column.count:
        return column.count
    equal = runs and all(abs(run.flops / (6.0 * run.params * run.tokens) - 1.0) < 1e-3 for run in runs)
    return f"not stated by {path.name}{', but equal to 6 N D' if equal else ''}"


def _read(path: pathlib.Path) -> tuple[list[Row], list[str], tuple[str, ...]]:
    """(rows, columns, remarks) of a table."""
    text = _text(path)
    if not text.strip():
        raise FitRefused("no_runs", f"{path}: the file is empty")
    if text.lstrip().startswith("["):
        raise FitRefused("columns", f"{path}: a JSON array; write JSON lines, one object a line")
    if path.suffix.lower() in _JSON_LINES or text.lstrip().startswith("{"):
        rows = list(_parse_lines(text))
        if all(row.problem for row in rows):
            raise FitRefused("no_runs", f"{path}: not one line is a JSON object; {rows[0].where}: {rows[0].problem}")
        return rows, list(dict.fromkeys(key for row in rows for key in row.values)), ()
    return _read_csv(path, text)


def _text(path: pathlib.Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FitRefused("not_found", f"{path}: cannot be read: {error.strerror}") from None
    for start, what in _NOT_TEXT.items():
        if content.startswith(start):
            raise FitRefused("columns", f"{path}: {what}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise FitRefused("columns", f"{path}: not a text file in UTF-8 (byte {content[error.start]:#04x} in line "
                         f"{line}); give a CSV or JSON-lines table of runs") from None  # fmt: skip
    if "\0" in text:
        raise FitRefused("columns", f"{path}: not a text file; give a CSV or JSON-lines table of runs")
    return text


def _read_csv(path: pathlib.Path, text: str) -> tuple[list[Row], list[str], tuple[str, ...]]:
    first = next(line for line in text.splitlines() if line.strip())
    separator = "\t" if path.suffix.lower() == ".tsv" else max(_SEPARATORS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] = []
    rows = []
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if not header:
                raise FitRefused("columns", f"{path}: line {start}: the header is not CSV: {error}") from None
            lines = f"line {start}" + (f" to {reader.line_num}" if reader.line_num > start else "")
            rows.append(Row(lines, {}, f"not CSV: {error}; is a quote opened and not closed?"))
            continue
        if not any(cell.strip() for cell in cells):
            continue  # a blank line holds no run
        if not header:
            header = [cell.strip() for cell in cells]
            continue
        problem = ""
        if len(cells) < len(header) or any(cell.strip() for cell in cells[len(header) :]):
            problem = f"{len(cells)} cells, the header has {len(header)}"
        rows.append(Row(f"line {reader.line_num}", dict(zip(header, cells, strict=False)), problem))
    notes = () if separator == "," else (f"{path.name} is read as separated by {_SEPARATORS[separator]}",)
    return rows, header, notes


def json_lines(path: pathlib.Path) -> Iterator[Row]:
    """The objects of a JSON-lines file; a line that is none has a problem.

    Raises:
      FitRefused: `columns`, not a text file.
    """
    return _parse_lines(_text(path))


def _parse_lines(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            problem = "" if isinstance(values, dict) else "not an object"
        except (ValueError, RecursionError) as error:
            values, problem = {}, f"not JSON: {error}"
        yield Row(f"line {number}", {} if problem else values, problem)


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
        made.append(dataclasses.replace(run, curve=curve))
    return tuple(made), tuple(bad)


def _join_curves(
    runs: Iterable[Run], names: Container[str], curves: pathlib.Path, wanted: Mapping[str, str]
) -> tuple[tuple[Run, ...], tuple[BadRow, ...], tuple[str, ...]]:
    """The runs with the curves of a second table, joined by name; `names` are those of all rows, usable or not."""
    if not curves.is_file():
        raise FitRefused("not_found", f"{curves}: no such table of curves")
    rows, present, notes = _read(curves)
    columns, more = choose_columns(str(curves), present, wanted, CURVE_FIELDS, curves=True)
    require(str(curves), columns, ("name", "loss"), present)
    axis = next((field for field in ("tokens", "flops", "step") if field in columns), None)
    if axis is None:
        require(str(curves), columns, ("tokens",), present)
    grouped: dict[str, list[Row]] = collections.defaultdict(list)
    bad = []
    for row in rows:
        if row.problem:
            bad.append(BadRow(f"{curves.name} {row.where}", row.problem))
        else:
            grouped[row_name(row, columns)].append(row)
    made = []
    at, loss = columns[axis].name, columns["loss"].name
    for run in runs:
        points = [
            Point(f"{curves.name} {row.where}", row.values.get(at), row.values.get(loss))
            for row in grouped.pop(run.name, ())
        ]
        curve, spoilt = to_curve(_in_tokens(points, axis, columns[axis], run), run, run.name)
        bad += spoilt
        made.append(dataclasses.replace(run, curve=curve))
    for name, left in grouped.items():
        why = "its row was left out" if name in names else "the table of runs has no such run"
        where = f"{curves.name} {left[0].where} ({name or 'no name'})"
        bad.append(BadRow(where, f"curve of {len(left)} point{'s' * (len(left) > 1)} left out: {why}"))
    says = {
        "tokens": f"curves are read from {curves.name}: {columns[axis]}, {columns['loss']}",
        "flops": f"curves are read from {curves.name}; tokens at a point are D times its share of C ({columns[axis]})",
        "step": f"curves are read from {curves.name}; tokens at a step are D times its share of the run's last step",
    }[axis]
    return tuple(made), tuple(bad), (says, *notes, *more)


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
