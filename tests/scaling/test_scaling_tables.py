"""Tables from anywhere: every row becomes a run or is listed with its line, and every form has one reading."""

import decimal
import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import FitRefused
from chinchilla_jax.scaling.read.table.cells import Unusable, holds_numbers, positive


@pytest.fixture
def table(tmp_path):
    """`table(text)`: the path of a file with that content."""

    def write(text, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def listed(loaded):
    """Reasons by place."""
    return {row.where: row.reason for row in loaded.bad}


def refusal(path, **options):
    """The refusal that loading `path` ends in."""
    with pytest.raises(FitRefused) as caught:
        load_runs(path, **options)
    return caught.value


def test_bad_rows_are_listed_with_line_name_and_reason(table):
    loaded = load_runs(table(
        "name,params,tokens,loss,diverged,comment\n"
        "a,1e6,2e7,3.5,,\n"
        "b,1e6,,3.5,,\n"
        "c,1e6,2e7,nan,,\n"
        'd,1e6,2e7,inf,,"two\nlines"\n'
        "e,0,2e7,3.5,,\n"
        "f,1e6,-2e7,3.5,,\n"
        "g,many,2e7,3.5,,\n"
        "h,1e6,2e7,3.5,,\n"
        "a,2e6,2e7,3.4,,\n"
        "i,1e6,2e7,3.4,True,\n"
        "j,1e6,2e7\n"
        "k,1e6,2e7,3.3,,,,9\n"
        "l,1e6,inf,3.3,,\n"
        "m,1e6,2e7,0,,\n"
        ",3e6,2e7,,,\n"
        "\n"
        "n,2e6,2e7,3.2,no,,,\n"
    ))  # fmt: skip
    assert [run.name for run in loaded.runs] == ["a", "a #2", "n"]
    assert listed(loaded) == {
        "line 3 (b)": "tokens is missing",
        "line 4 (c)": "diverged: loss is nan",
        "line 6 (d)": "diverged: loss is inf",
        "line 7 (e)": "params is not above 0: '0'",
        "line 8 (f)": "tokens is not above 0: '-2e7'",
        "line 9 (g)": "params is not a number: 'many'",
        "line 10 (h)": "duplicate of line 2 (a): same N, D, C and loss",
        "line 12 (i)": "diverged",
        "line 13 (j)": "3 cells, the header has 6",
        "line 14 (k)": "8 cells, the header has 6",
        "line 15 (l)": "tokens is not finite: 'inf'",
        "line 16 (m)": "loss is not above 0: '0'",
        "line 17": "loss is missing",
    }


def test_a_csv_row_that_breaks_off_costs_itself_and_what_it_swallowed(table):
    loaded = load_runs(table('name,N,D,loss\na,1,2,3\nb"x,1,3,3\n"b"x,1,4,3\nc,2,2,3\n"d,2,2,3\ne,2,2,3\n'))
    assert [run.name for run in loaded.runs] == ["a", 'b"x', "c"]
    assert [row.where for row in loaded.bad] == ["line 4", "line 6 to 7"]
    assert all("is a quote opened and not closed?" in row.reason for row in loaded.bad)


def test_json_lines_with_numbers_as_text_and_wrong_types(table):
    loaded = load_runs(table(
        '{"name": "a", "N": "1e6", "D": 20000000, "loss": 3.5, "flops": 1.2e14}\n'
        "\n"
        "{oops\n"
        "[1, 2]\n"
        '{"name": "b", "N": true, "D": 1, "loss": 3}\n'
        '{"name": "c", "N": [1], "D": 1, "loss": 3}\n'
        '{"name": "d", "N": 1, "D": 1, "loss": NaN, "flops": 6}\n'
        '{"name": "e", "N": 1, "D": 1' + "0" * 400 + ', "loss": 3, "flops": 6}\n'
        '{"name": 0, "N": 2e6, "D": 2e7, "loss": 3.5, "flops": null}\n'
        '{"name": 0, "N": 2e6, "D": 2e7, "loss": 3.5, "flops": 2.4e14}\n', "table.jsonl"))  # fmt: skip
    assert [run.name for run in loaded.runs] == ["a", "0"]
    found = listed(loaded)
    assert found.pop("line 3").startswith("not JSON: ")
    assert found.pop("line 8 (e)").startswith("tokens is not finite: ")
    assert found == {
        "line 4": "not an object",
        "line 5 (b)": "params is not a number: True",
        "line 6 (c)": "params is not a number: [1]",
        "line 7 (d)": "diverged: loss is nan",
        "line 9 (0)": "flops is missing",
    }


@pytest.mark.parametrize(("text", "value"), [
    ("1e9", 1e9), (" 12 ", 12.0), ("1,000,000", 1e6), ("1,234.5", 1234.5), ("12,345,678.9", 12345678.9), (7, 7.0),
    ("18.2M", 18.2e6), ("6.6B", 6.6e9), ("1.4 T", 1.4e12), ("70B params", 70e9), ("125 million", 125e6), ("500k", 5e5),
    ("2G", 2e9), ("3mm", 3e6), ("3 bn", 3e9), ("2 thousand", 2e3), (decimal.Decimal("3.5"), 3.5),
])  # fmt: skip
def test_a_number_in_a_form_of_one_reading_is_read(text, value):
    assert positive(text, "params") == value


@pytest.mark.parametrize(("text", "words"), [
    ("1,234", "may stand for thousands or for a decimal point; write 1234 or 1.234"),
    ("3,21", "has a decimal comma; write 3.21"),
    ("1,00,000", "is not a number"), ("1.000.000", "is not a number"), ("70 apples", "is not a number"),
    ("", "is missing"), (None, "is missing"), ("N/A", "is missing"), ("-inf", "is not finite"),
])  # fmt: skip
def test_a_number_of_two_readings_or_none_is_told(text, words):
    with pytest.raises(Unusable, match=words):
        positive(text, "params")


@pytest.mark.parametrize(("text", "value"), [
    ("2 ZFLOPs", 2e21), ("3 PFLOPs", 3e15), ("1.5 EFLOP", 1.5e18), ("4Y", 4e24), ("6e18 FLOPs", 6e18),
    ("5 GFLOPs", 5e9),
])  # fmt: skip
def test_flops_may_have_their_own_multipliers_and_parameters_may_not(text, value):
    assert positive(text, "flops") == positive(text, "budget") == pytest.approx(value)
    with pytest.raises(Unusable, match="not a number"):
        positive(text, "params")


def test_a_column_holds_numbers_where_half_of_its_cells_do():
    assert holds_numbers([]) and holds_numbers(["", "-"]) and holds_numbers(["1", "x", None]) and holds_numbers(["1,5"])
    assert not holds_numbers(["1", "x", "y"])


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_every_positive_number_comes_back_from_its_text(value):
    assert positive(repr(value), "loss") == positive(value, "loss") == value


@pytest.mark.parametrize(("name", "text", "separator"), [
    ("t.csv", "name;N;D;loss\na;1;2;3\n", "semicolon"),
    ("t.tsv", "name\tN\tD\tloss\na\t1\t2\t3\n", "tab"),
    ("t.txt", "name\tN\tD\tloss\na\t1\t2\t3\n", "tab"),
    ("t.tsv", "name\tN\tD\tloss\tmean, of, b, c, d\na\t1\t2\t3\t\n", "tab"),
    ("t.csv", "name|N|D|loss\r\na|1|2|3\r\n", "bar"),
    ("t.csv", "\ufeffname,N,D,loss\na,1,2,3\n", None),
    ("t.csv", "\n\nname, N, D, loss\na, 1, 2, 3\n", None),
    ("t.data", '{"name": "a", "N": 1, "D": 2, "loss": 3}\n', None),
])  # fmt: skip
def test_separators_byte_order_marks_and_blank_lines_are_taken_as_they_come(table, name, text, separator):
    loaded = load_runs(table(text, name))
    (run,) = loaded.runs
    assert (run.name, run.params, run.tokens, run.flops, run.loss) == ("a", 1.0, 2.0, 12.0, 3.0) and not loaded.bad
    assert any(f"separated by {separator}" in line for line in loaded.describe()) == bool(separator)


@pytest.mark.parametrize(("name", "content", "reason", "words"), [
    ("t.csv", b"", "no_runs", "the file is empty"),
    ("t.csv", b"\n \n", "no_runs", "the file is empty"),
    ("t.csv", b"N,D,loss\n", "no_runs", "no rows below the header"),
    ("t.jsonl", b"oops\n{\n", "no_runs", "not one line is a JSON object; line 1: not JSON"),
    ("t.json", b'[{"N": 1}]', "columns", "a JSON array; write JSON lines"),
    ("t.csv.gz", gzip.compress(b"N,D,loss\n", mtime=0), "columns", "compressed with gzip; unpack it first"),
    ("t.xlsx", b"PK\x03\x04rest", "columns", "save the table as CSV"),
    ("t.parquet", b"PAR1\x00", "columns", "Parquet"),
    ("t.csv", "N,D,loss\n".encode("utf-16"), "columns", "UTF-16; save it as UTF-8"),
    ("t.csv", b"\x89PNG\r\n\x1a\n\0\0", "columns", "not a text file"),
    ("t.csv", b"N,D,loss\n1,2,\0\n", "columns", "not a text file"),
    ("t.jsonl", b'{"N": 1}\n\xff\n', "columns", "byte 0xff in line 2"),
    ("t.csv", b'"N,D,loss\n1,2,3\n', "columns", "the header is not CSV"),
    ("t.csv", b"N,D\n1,2\n", "columns", "no column for loss among N, D; name it: --columns=loss:COLUMN"),
    ("t.csv", b"N,D,loss,loss\n1,2,3,4\n", "columns", "column 'loss' is there twice"),
    ("t.csv", b"N,D,loss\n1,2,-3\n1,2,0\n", "floor", "no loss is above 0"),
    ("t.csv", b"N,D,loss\n1,2,-3\n1,,2\n", "no_runs", "no usable run among 2 rows; the first: line 2: loss is not"),
    ("t.csv", b"N,D,loss\n1e200,1e200,3\n", "no_runs", "flops is beyond what a number holds"),
])  # fmt: skip
def test_what_holds_no_runs_is_refused_by_name(table, name, content, reason, words):
    path = table(content, name)
    error = refusal(path)
    assert error.reason == reason and words in str(error) and path.name in str(error)


def test_units_and_conventions_are_stated(table):
    loaded = load_runs(table("run,params (M),tokens_b,loss\na,70,1.4,2\n"))
    assert (loaded.runs[0].params, loaded.runs[0].tokens, loaded.runs[0].flops) == (70e6, 1.4e9, 6 * 70e6 * 1.4e9)
    assert loaded.describe() == [
        "N: parameters, not stated by table.csv (with embeddings, or without?); from params (M) x 1e+06",
        "D: training tokens; from tokens_b x 1e+09",
        "C: training FLOPs, convention 6nd, computed; from 6 * params * tokens",
        "loss: taken as nats per token: the numbers cannot tell it from bits, or from a loss per byte; from loss",
    ]


def test_a_flag_names_the_count_and_the_convention(table):
    path = table("N,D,C,loss,note\n100,2000,1300000,3.5,\n", "t.csv")
    loaded = load_runs(path)
    assert loaded.convention == "not stated by t.csv" and loaded.params_count.startswith("not stated by t.csv")
    loaded = load_runs(path, columns={"params_non_embedding": "N", "flops_table_a4": "C"})
    assert (loaded.params_count, loaded.convention) == ("non_embedding", "table_a4")
    path = table("N,D,C,loss\n100,2000,1200000,3.5\n", "t.csv")
    assert load_runs(path).convention == "not stated by t.csv, but equal to 6 N D"


def test_curves_in_json_lines(table):
    rows = [
        {"name": "a", "N": 10, "D": 100, "loss": 3.0, "curve": [[0, 9.0], [50, 4.0], [100, 3.0]]},
        {"name": "b", "N": 11, "D": 100, "loss": 3.0, "curve": [[50, 4.0], [50, 3.5], [40, 3.0], [100, 3.0]]},
        {"name": "c", "N": 12, "D": 100, "loss": 3.0, "curve": [[50, float("nan")], [100, 3.0]]},
        {"name": "d", "N": 13, "D": 100, "loss": 3.0, "curve": "steep"},
        {"name": "e", "N": 14, "D": 100, "loss": 3.0, "curve": [[50, 4.0], [200, 3.0]]},
        {"name": "f", "N": 15, "D": 100, "loss": 3.0},
        {"name": "g", "N": None, "D": 100, "loss": 3.0, "curve": [[50, 4.0]]},
        {"name": "g", "N": 16, "D": 100, "loss": 3.0, "curve": [[60, 4.0]]},
        {"name": "h", "N": 17, "D": 100, "loss": 3.0, "curve": [50, 4.0]},
    ]
    loaded = load_runs(table("\n".join(map(json.dumps, rows)), "t.jsonl"))
    assert [run.name for run in loaded.runs] == list("abcdefgh"), "a run keeps its row without its curve"
    curves = {run.name: run.curve for run in loaded.runs if run.curve is not None}
    assert list(curves) == ["a", "g"] and curves["g"].tokens.tolist() == [60.0]
    assert curves["a"].tokens.tolist() == [50.0, 100.0] and curves["a"].loss.tolist() == [4.0, 3.0]
    assert listed(loaded) == {
        "line 7 (g)": "params is missing",
        "line 2 (b), points 2, 3": "curve left out: tokens do not rise: 50 after 50",
        "line 3 (c), point 1": "curve left out: diverged: loss is nan",
        "line 4 (d)": "curve left out: it is not a list of [tokens, loss]",
        "line 5 (e), point 2": "curve left out: it goes on to 200 tokens, the run has D = 100",
        "line 9 (h)": "curve left out: it is not a list of [tokens, loss]",
    }
    assert "curves: training loss in nats per token, of 2 of 8 runs" in loaded.describe()


RUNS = "name,N,D,loss\na,10,1e9,3\nb,20,1e9,2.9\nc,,1e9,2.8\nd,30,1e9,2.7\n"


@pytest.mark.parametrize(("header", "points"), [
    ("run,tokens (M),loss", (500, 1000)),
    ("run,step,loss", (20, 40)),
    ("run,flops,loss", (3e10, 6e10)),
])  # fmt: skip
def test_curves_of_a_second_table_by_tokens_steps_or_flops(table, header, points):
    curves = table(f"{header}\na,{points[0]},4\na,{points[1]},3\n", "curves.csv")
    loaded = load_runs(table(RUNS), curves=curves)
    assert np.allclose(loaded.runs[0].curve.tokens, [5e8, 1e9]) and loaded.runs[1].curve is None
    assert any(line.startswith("curves are read from curves.csv") for line in loaded.describe())


def test_bad_points_of_a_second_table_are_listed_with_their_lines(table):
    text = "run,tokens,loss\na,1e8,4\nb,1e8,4\nb,2e8,nan\nb,3e8,\nb,4e8,inf\na,2e8,3\nc,1e8,4\nz,1e8,4\nz,2e8,3\n"
    falling = "".join(f"d,{1e8 - i},4\n" for i in range(9))
    curves = table(f"{text}{falling}d,1e8,4,5\n", "curves.csv")
    loaded = load_runs(table(RUNS), curves=curves)
    assert [run.name for run in loaded.runs if run.curve is not None] == ["a"]
    assert listed(loaded) == {
        "line 4 (c)": "params is missing",
        "curves.csv line 20": "4 cells, the header has 3",
        "curves.csv lines 4, 6 (b)": "curve left out: diverged: loss is nan",
        "curves.csv line 5 (b)": "curve left out: loss is missing",
        "curves.csv lines 12, 13, 14, 15, 16 and 3 more (d)": "curve left out: tokens do not rise: 1e+08 after 1e+08",
        "curves.csv line 8 (c)": "curve of 1 point left out: its row was left out",
        "curves.csv line 9 (z)": "curve of 2 points left out: the table of runs has no such run",
    }


def test_columns_of_the_second_table_are_mapped_with_a_prefix(table):
    curves = table("which,seen,l,loss\na,0.5,4,9\na,1,3,9\n", "curves.csv")
    wanted = {"curves.name": "which", "curves.tokens": "seen*1e9", "curves.loss": "l"}
    curve = load_runs(table(RUNS), columns=wanted, curves=curves).runs[0].curve
    assert curve.tokens.tolist() == [5e8, 1e9] and curve.loss.tolist() == [4.0, 3.0]
    assert refusal(table(RUNS), columns=wanted).reason == "columns"


@pytest.mark.parametrize(("runs", "curves", "reason", "words"), [
    ("N,D,loss\n1,2,3\n", "run,tokens,loss\na,1,4\n", "curves", "--curves needs names to join by"),
    (RUNS, None, "not_found", "no such table of curves"),
    (RUNS, "run,loss\na,4\n", "columns", "no column for tokens"),
    (RUNS, "run,tokens\na,4\n", "columns", "no column for loss"),
])  # fmt: skip
def test_curves_that_cannot_be_joined_are_refused(table, tmp_path, runs, curves, reason, words):
    path = table(curves, "curves.csv") if curves else tmp_path / "curves.csv"
    error = refusal(table(runs), curves=path)
    assert error.reason == reason and words in str(error)


def test_what_is_loaded_already_is_not_read_again(table):
    path = table(RUNS)
    loaded = load_runs(path, columns={"loss": "N"})
    path.unlink()
    assert load_runs(loaded) is loaded
