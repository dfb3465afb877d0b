"""Tables from anywhere: every row becomes a run or is listed with its line, and every form has one reading."""

import gzip

import pytest

from chinchilla_jax.scaling.read.load import load_runs
from tests.scaling.read.cases import listed, refusal


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


RUNS = "name,N,D,loss\na,10,1e9,3\nb,20,1e9,2.9\nc,,1e9,2.8\nd,30,1e9,2.7\n"


def test_what_is_loaded_already_is_not_read_again(table):
    path = table(RUNS)
    loaded = load_runs(path, columns={"loss": "N"})
    path.unlink()
    assert load_runs(loaded) is loaded
