"""Training curves in a cell or a second table: joined to their runs, or listed with what is wrong."""

import json

import numpy as np
import pytest

from chinchilla_jax.scaling.read.load import load_runs
from tests.scaling.read.cases import listed, refusal


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


def test_a_factor_given_by_hand_holds_for_the_losses_of_a_second_table_too(table):
    curves = table("run,tokens,loss\na,1e9,30\n", "curves.csv")
    loaded = load_runs(table(RUNS), columns={"curves.loss": "loss*0.1"}, curves=curves)
    assert loaded.runs[0].curve.loss.tolist() == [3.0]
