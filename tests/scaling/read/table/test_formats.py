"""Parquet, Excel and semicolon tables hold the same rows as CSV, and what is damaged ends in one line."""

import csv
import io
import pathlib
import random
import zipfile

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_jax import cli
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns
from chinchilla_jax.scaling.read.table.cells import has_decimal_point, with_decimal_commas

REPORTS = pathlib.Path(__file__).parents[2] / "data" / "reports"


def rows_of(name):
    """Header and rows of a table, numbers as numbers."""
    header, *rows = csv.reader((REPORTS / f"{name}.csv").open())
    return header, [[float(cell) if cell.replace(".", "").replace("e+", "").isdigit() else cell for cell in row]
                    for row in rows]  # fmt: skip


def workbook(path, *sheets):
    """An .xlsx of (title, rows)."""
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets:
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def parquet(path, header, rows):
    columns = [pyarrow.array(list(column)) for column in zip(*rows, strict=True)]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=header), path)
    return path


@pytest.mark.parametrize("name", ["seeds", "sweep_export", "history_long"])
def test_the_same_rows_give_the_same_runs_in_every_format(tmp_path, name):
    header, rows = rows_of(name)
    expected = load_runs(REPORTS / f"{name}.csv")
    for path in (parquet(tmp_path / "t.parquet", header, rows),
                 workbook(tmp_path / "t.xlsx", ("empty", []), ("runs", [[], header, *rows]))):  # fmt: skip
        loaded = load_runs(path)
        assert [(run.name, run.seed) for run in loaded.runs] == [(run.name, run.seed) for run in expected.runs]
        for field in ("params", "tokens", "flops", "loss", "budget"):  # a workbook keeps 15 digits
            assert [getattr(run, field) for run in loaded.runs] == pytest.approx(
                [getattr(run, field) for run in expected.runs], rel=1e-14)  # fmt: skip
        assert len(loaded.bad) == len(expected.bad)
        assert loaded.notes == expected.notes


def test_a_workbook_says_which_sheet_was_read_and_numbers_its_rows(tmp_path):
    rows = [["N", "D", "loss", None], [1e6, 2e7, 3.5, None], [None] * 4, ["", 2e7, 3.5], [2e6, 2e7, "#DIV/0!"]]
    path = workbook(tmp_path / "t.xlsx", ("runs", rows), ("notes", [["hello"]]))
    loaded = load_runs(path)
    assert [run.name for run in loaded.runs] == ["row 2"]
    assert [(row.where, row.reason) for row in loaded.bad] == [
        ("row 4", "params is missing"), ("row 5", "loss is not a number: '#DIV/0!'"),
    ]  # fmt: skip
    assert "sheet 'runs' of t.xlsx is read; not read: notes" in loaded.notes


def test_empty_cells_of_parquet_are_missing(tmp_path):
    path = parquet(tmp_path / "t", ["N", "D", "loss"], [[1e6, 2e7, 3.5], [2e6, None, 3.0], [3e6, 1e7, float("nan")]])
    loaded = load_runs(path)
    assert [(row.where, row.reason) for row in loaded.bad] == [
        ("row 2", "tokens is missing"), ("row 3", "diverged: loss is nan"),
    ]  # fmt: skip


def _zip(name, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(("content", "words"), [
    (b"PAR1" + b"\0" * 60 + b"PAR1", "a damaged Parquet file"),
    (b"PK\x03\x04rest", "a damaged Excel or zip file"),
    (_zip("table.csv", "N,D,loss\n"), "a zip archive; unpack it first"),
    (_zip("xl/workbook.xml", "<no"), "a damaged Excel file"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1", "an Excel file of the old kind"),
])  # fmt: skip
def test_a_damaged_file_is_refused_in_one_line(tmp_path, capsys, content, words):
    path = tmp_path / "table.bin"
    path.write_bytes(content)
    assert cli.main(["fit", f"--runs={path}"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and words in err and "table.bin" in err


def test_a_workbook_without_a_filled_sheet_holds_no_runs(tmp_path):
    with pytest.raises(FitRefused, match="no sheet holds anything"):
        load_runs(workbook(tmp_path / "t.xlsx", ("a", [])))


def test_without_the_library_the_message_says_what_to_install(tmp_path, monkeypatch):
    path = workbook(tmp_path / "t.xlsx", ("a", [["N"]]))
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(FitRefused, match="pip install openpyxl, or save the table as CSV"):
        load_runs(path)


@pytest.mark.parametrize(("text", "read"), [
    ("3,52", "3.52"), ("25,008", "25.008"), ("1.234.567,8", "1234567.8"), ("1.000.000", "1000000"),
    ("1,5e9", "1.5e9"), ("25,0M", "25.0M"), ("a,b", "a,b"), ("1,000,000", "1,000,000"), ("1e+18", "1e+18"),
])  # fmt: skip
def test_decimal_commas(text, read):
    assert with_decimal_commas(text) == read


def test_a_point_somewhere_keeps_commas_what_they_are(tmp_path):
    assert has_decimal_point("3.5") and not has_decimal_point("1.000") and not has_decimal_point("v1.5")
    (tmp_path / "t.csv").write_text("N;D;loss\n1,234;1000000;3.5\n")
    with pytest.raises(FitRefused, match="may stand for thousands or for a decimal point"):
        load_runs(tmp_path / "t.csv")


TABLES = [path.read_bytes() for path in sorted(REPORTS.glob("*.csv"))]
PIECES = [b",", b";", b"\n", b'"', b"nan", b"-1", b"0", b"1e400", b"\xff", b"\0", b"=1/0", b"{", b"[", b"run", b"loss",
          b"params", b"step", b"\xef\xbb\xbf", b"1,5", b"crashed", b""]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(TABLES), st.integers(0, 2**32), st.integers(1, 6))
def test_a_damaged_table_is_read_or_refused_in_words(tmp_path_factory, content, seed, damages):
    rng = random.Random(seed)
    for _ in range(damages):
        at, length = rng.randrange(len(content) + 1), rng.choice((0, 1, 3, 40, 400))
        if rng.random() < 0.3:  # in the header, where it tells most
            at = rng.randrange(60)
        content = content[:at] + rng.choice(PIECES) + content[at + length :]
    path = tmp_path_factory.getbasetemp() / "damaged.csv"
    path.write_bytes(content)
    for options in ({}, {"best_per_cell": True}, {"curves": path}):
        try:
            loaded = load_runs(path, **options)
        except FitRefused as refused:
            assert str(path) in str(refused) and refused.reason
        else:
            assert isinstance(loaded, LoadedRuns) and loaded.describe()
            assert len({run.name for run in loaded.runs}) == len(loaded.runs)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["parquet", "xlsx"]))
def test_a_damaged_binary_file_is_read_or_refused_in_words(tmp_path_factory, seed, kind):
    rng = random.Random(seed)
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    header, rows = rows_of("seeds")
    (parquet(path, header, rows[:9]) if kind == "parquet" else workbook(path, ("runs", [header, *rows[:9]])))
    content = bytearray(path.read_bytes())
    for _ in range(rng.randrange(1, 20)):
        content[rng.randrange(4, len(content))] = rng.randrange(256)
    path.write_bytes(content[: rng.randrange(5, len(content))] if rng.random() < 0.3 else content)
    try:
        load_runs(path)
    except FitRefused as refused:
        assert str(path) in str(refused)
