"""What rows does a file hold: CSV with any separator, JSON lines, Parquet, or an Excel workbook?

Every row keeps the number of the line it ends on, counted from 1 with the header, whatever is quoted in it.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib
import io
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.scaling.read.runs import FitRefused
from chinchilla_jax.scaling.read.table.cells import Unusable, has_decimal_point, number, with_decimal_commas

_JSON_LINES = (".jsonl", ".json", ".ndjson")
_SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
_PARQUET, _ZIP = b"PAR1", b"PK\x03\x04"
_NOT_TEXT = {
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"BZh": "compressed with bzip2; unpack it first",
    b"\xfd7zXZ": "compressed with xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it first",
    b"\xd0\xcf\x11\xe0": "an Excel file of the old kind (.xls); save it as .xlsx or CSV",
    b"\xff\xfe": "in UTF-16; save it as UTF-8",
    b"\xfe\xff": "in UTF-16; save it as UTF-8",
}
_KINDS = "a CSV, JSON-lines, Parquet or .xlsx table of runs"

Line = tuple[str, list[Any], str]  # of a table: where it is, its cells, why they cannot be read


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a source: `where` it stands, its `values` by column, and the `problem` that makes it unreadable."""

    where: str
    values: Mapping[str, Any]
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Column:
    """Where a field comes from: a column `name` whose numbers are multiplied by `factor`, or a formula of that name.

    `count` is the named count it holds, or empty; `plain` says that the factor was given by hand: nothing else is
    done. `formula` computes the value from a row and raises `Unusable` where an ingredient is.
    """

    name: str
    factor: float = 1.0
    count: str = ""
    plain: bool = dataclasses.field(default=False, compare=False)
    formula: Callable[[Row], float] | None = dataclasses.field(default=None, compare=False)

    def __str__(self) -> str:
        return self.name if self.factor == 1.0 else f"{self.name} x {self.factor:g}"

    def cell(self, row: Row) -> Any:
        """What the row holds, before the factor; an `Unusable` where the formula has no value."""
        if self.formula is None:
            return row.values.get(self.name)
        try:
            return self.formula(row)
        except Unusable as reason:
            return reason

    def number(self, row: Row, field: str) -> float | Unusable:
        """The positive number that the row holds as `field`, or why there is none."""
        return number(self.cell(row), field, self.factor)


@dataclasses.dataclass
class Table:
    """The rows of a `source` and its columns in their order (a header that is there twice stands twice).

    The steps from a table to runs add to `notes`, what a reader should know, and to `columns`, by field.
    """

    source: str
    rows: Sequence[Row]
    present: Sequence[str]
    notes: list[str] = dataclasses.field(default_factory=list)
    columns: dict[str, Column] = dataclasses.field(default_factory=dict)

    def cells(self, name: str) -> list[Any]:
        """What the rows hold in a column, None where they hold nothing."""
        return [row.values.get(name) for row in self.rows]

    def cell(self, row: Row, field: str) -> Any:
        """What a row holds as `field`; None where no column serves as it."""
        return self.columns[field].cell(row) if field in self.columns else None

    def refused(self, reason: str, words: str) -> FitRefused:
        """The error that says what is wrong with this table."""
        return FitRefused(reason, f"{self.source}: {words}")


def table_of(source: str, rows: Sequence[Row]) -> Table:
    """A table of JSON objects: its columns are their keys, in the order in which they first occur."""
    return Table(source, rows, list(dict.fromkeys(key for row in rows for key in row.values)))


def read_table(path: pathlib.Path) -> Table:
    """The rows of a file; refused if it cannot be read (`not_found`), is empty (`no_runs`) or no table (`columns`)."""
    content = _bytes(path)
    if content.startswith(_PARQUET):
        return _read_parquet(path, content)
    if content.startswith(_ZIP):
        return _read_workbook(path, content)
    text = _text(path, content)
    if not text.strip():
        raise FitRefused("no_runs", f"{path}: the file is empty")
    if text.lstrip().startswith("["):
        raise _no_table(path, "a JSON array; write JSON lines, one object a line")
    if path.suffix.lower() in _JSON_LINES or text.lstrip().startswith("{"):
        rows = list(_parse_lines(text))
        if all(row.problem for row in rows):
            raise FitRefused("no_runs", f"{path}: not one line is a JSON object; {rows[0].where}: {rows[0].problem}")
        return table_of(str(path), rows)
    first = next(line for line in text.splitlines() if line.strip())
    separator = "\t" if path.suffix.lower() == ".tsv" else max(_SEPARATORS, key=first.count)
    table = _table(path, _csv_lines(text, separator))
    if separator != ",":
        table.notes.append(f"{path.name} is read as separated by {_SEPARATORS[separator]}")
    if separator == ";":
        _read_commas_as_points(table)
    return table


def json_lines(path: pathlib.Path) -> Iterator[Row]:
    """The objects of a JSON-lines file, refused if it is no text; a line that is no object has a problem."""
    return _parse_lines(_text(path, _bytes(path)))


def _no_table(path: pathlib.Path, words: str) -> FitRefused:
    return FitRefused("columns", f"{path}: {words}")


def _bytes(path: pathlib.Path) -> bytes:
    try:
        return files.read_bytes(path)
    except OSError as error:
        raise FitRefused("not_found", f"{path}: cannot be read: {error.strerror}") from None


def _text(path: pathlib.Path, content: bytes) -> str:
    for start, what in _NOT_TEXT.items():
        if content.startswith(start):
            raise _no_table(path, what)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        byte = f"byte {content[error.start]:#04x} in line {line}"
        raise _no_table(path, f"not a text file in UTF-8 ({byte}); give {_KINDS}") from None
    if "\0" in text:
        raise _no_table(path, f"not a text file; give {_KINDS}")
    return text


def _table(path: pathlib.Path, lines: Iterable[Line]) -> Table:
    """The table whose header is the first line."""
    header: list[str] = []
    rows = []
    for where, cells, problem in lines:
        if not header:
            if problem:
                raise _no_table(path, f"{where.partition(' to ')[0]}: the header is {problem}")
            header = ["" if cell is None else str(cell).strip() for cell in cells]
            continue
        if problem:
            problem = f"{problem}; is a quote opened and not closed?"
        elif len(cells) < len(header) or _filled(cells[len(header) :]):
            problem = f"{len(cells)} cells, the header has {len(header)}"
        rows.append(Row(where, dict(zip(header, cells, strict=False)), problem))
    return Table(str(path), rows, header)


def _csv_lines(text: str, separator: str) -> Iterator[Line]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            end = f" to {reader.line_num}" if reader.line_num > start else ""
            yield f"line {start}{end}", [], f"not CSV: {error}"
            continue
        if _filled(cells):
            yield f"line {reader.line_num}", cells, ""


def _read_commas_as_points(table: Table) -> None:
    """Where a semicolon separates, a comma is the decimal point, unless some number of the table has a point."""
    cells = [cell for row in table.rows for cell in row.values.values()]
    if any(map(has_decimal_point, cells)) or not any(with_decimal_commas(cell) != cell for cell in cells):
        return
    table.rows = [
        dataclasses.replace(row, values={name: with_decimal_commas(cell) for name, cell in row.values.items()})
        for row in table.rows
    ]
    table.notes.append("commas in numbers are read as decimal points, since a semicolon separates the columns")


def _parse_lines(text: str) -> Iterator[Row]:
    for place, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            problem = "" if isinstance(values, dict) else "not an object"
        except (ValueError, RecursionError) as error:
            values, problem = {}, f"not JSON: {error}"
        yield Row(f"line {place}", {} if problem else values, problem)


def _read_parquet(path: pathlib.Path, content: bytes) -> Table:
    parquet = _library(path, "pyarrow.parquet", "a Parquet file")
    try:
        table = parquet.read_table(io.BytesIO(content))
        columns = [[name, *column.to_pylist()] for name, column in zip(table.column_names, table.columns, strict=True)]
    except Exception as error:  # the library raises half a dozen kinds over a damaged file
        raise _damaged(path, "Parquet", error) from None
    return _table(path, ((f"row {place}", list(cells), "") for place, cells in enumerate(zip(*columns, strict=True))))


def _read_workbook(path: pathlib.Path, content: bytes) -> Table:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.namelist()
    except Exception as error:  # likewise
        raise _damaged(path, "Excel or zip", error) from None
    if "xl/workbook.xml" not in members:
        raise _no_table(path, "a zip archive; unpack it first")
    openpyxl = _library(path, "openpyxl", "an Excel file")
    try:
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        sheets = {sheet.title: list(_sheet_lines(sheet.iter_rows(values_only=True))) for sheet in book.worksheets}
    except Exception as error:  # likewise: errors of XML, keys and values
        raise _damaged(path, "Excel", error) from None
    first, *others = [name for name, lines in sheets.items() if lines] or [""]
    if not first:
        raise FitRefused("no_runs", f"{path}: no sheet holds anything")
    table = _table(path, sheets[first])
    if others:
        table.notes.append(f"sheet {first!r} of {path.name} is read; not read: {', '.join(others)}")
    return table


def _sheet_lines(rows: Iterable[Sequence[Any]]) -> Iterator[Line]:
    """The rows of a sheet that hold anything, texts on one line; empty cells beyond the header are no cells."""
    width = 0
    for place, row in enumerate(rows, 1):
        cells = [" ".join(cell.split()) if isinstance(cell, str) else cell for cell in row]
        while cells and not _filled(cells[-1:]):
            cells.pop()
        if cells:
            width = width or len(cells)
            yield f"row {place}", cells + [None] * (width - len(cells)), ""


def _filled(cells: Sequence[Any]) -> bool:
    return any(cell is not None and str(cell).strip() for cell in cells)


def _library(path: pathlib.Path, module: str, what: str) -> Any:
    """The module that reads a kind of file, imported when the first such file is met."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        fix = f"pip install {package}, or save the table as CSV"
        raise _no_table(path, f"{what}, and {package} is not installed: {fix}") from None


def _damaged(path: pathlib.Path, kind: str, error: Exception) -> FitRefused:
    words = " ".join(str(error).split())[:120] or type(error).__name__
    return _no_table(path, f"a damaged {kind} file ({words}); save the table as CSV")
