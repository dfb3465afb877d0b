"""What `predict` and `suggest` refuse, before anything is fitted, and what they say beside their tables."""

import json
import pathlib

import pytest

from chinchilla_jax import cli
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns
from chinchilla_jax.scaling.report.ask import Question, ask
from chinchilla_jax.scaling.report.facts import facts_of
from chinchilla_jax.scaling.report.paper import figure_4

ROOT = pathlib.Path(__file__).parents[3]
COLUMNS = {name: name for name in ("params", "tokens", "flops", "loss", "budget")}
FITS = {"preset": "corrected", "replicates": 0, "seed": 0}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "nothing to answer"),
        (["--budget=1e300"], "--budget=1e+300 must lie between"),
        (["--params=-1"], "--params=-1"),
        (["--budget=1e20", "--law=nobody"], "no published law 'nobody'"),
        (["--budget=1e20", "--law=kaplan2020", "--params=1e9"], "--params needs a law"),
        (["--budget=1e20", "--law=kaplan2020", "--inputs=foo:3"], "--inputs=foo"),
        (["--budget=1e20", "--law=abnar2025", "--inputs=sparsity:1"], "below 1"),
        (["--budget=1e20", "--law=krajewski2024"], "--inputs=granularity:VALUE"),
        (["--budget=1e20", "--law=krajewski2024", "--inputs=granularity"], "NAME:VALUE"),
        (["--law=kaplan2020", "--params=1e9"], "kaplan2020 is asked about a budget only"),
        (["--chip=v4", "--chips=8"], "--days is missing"),
        (["--chip=v44", "--chips=8", "--days=1"], "did you mean 'v4'"),
        (["--chip=v4", "--chips=8", "--days=1", "--budget=1e20"], "either --budget or --chip"),
    ],
)
def test_a_question_that_cannot_be_answered_ends_in_one_line(capsys, argv, words):
    assert cli.main(["predict", *argv]) == 2
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1 and words in err, err


def test_scarce_data_and_serving_are_answered_from_runs_counted_as_6nd():
    runs = figure_4()
    assert all(abs(run.flops / (6 * run.params * run.tokens) - 1) < 0.01 for run in runs)
    lines = []
    ask(
        LoadedRuns("figure 4", runs, (), COLUMNS, "6nd"),
        (),
        Question(5.76e23, unique_tokens=3e11, inference_tokens=5e12),
        FITS,
        None,
        lines.append,
    )
    text = "\n".join(lines)
    assert "epochs" in text and "C, inference" in text and "recommended is isoflop" in text


def test_runs_counted_otherwise_are_refused_before_the_fit(tmp_path):
    runs = tuple(type(r)(r.name, r.params, r.tokens, 1.3 * r.flops, r.loss, r.budget) for r in figure_4())
    lines, loaded = [], LoadedRuns("x", runs, (), COLUMNS, "other")
    with pytest.raises(FitRefused, match="without --study or --runs"):
        ask(loaded, (), Question(1e24, unique_tokens=1e11), FITS, None, lines.append)
    assert not lines


def test_the_answer_is_written_whole_as_json(tmp_path, capsys):
    path = tmp_path / "answer.json"
    assert cli.main(["predict", "--budget=5.76e23", "--params=70e9", f"--output={path}"]) == 0
    said = json.loads(path.read_text())
    assert {section["key"] for section in said["answers"]} >= {"optimum", "fixed", "smaller", "presets"}
    assert cli.main(["predict", "--budget=1e20", f"--output={tmp_path}"]) == 2  # a folder
    assert [p.name for p in tmp_path.iterdir()] == ["answer.json"] and "Traceback" not in capsys.readouterr().err


def test_the_next_runs_are_told_and_written_with_what_else_the_flops_could_do(tmp_path, capsys):
    path, table = tmp_path / "next.json", "chinchilla_jax/tables/chinchilla_fig4_points.csv"
    asked = ["suggest", f"--runs={ROOT / table}", "--purse=2e22", "--number=4"]
    assert cli.main([*asked, f"--output={path}"]) == 0
    out, written = capsys.readouterr().out, json.loads(path.read_text())
    found = written["suggestion"]
    assert 1 <= len(found["runs"]) <= 4 and sum(run["flops"] for run in found["runs"]) <= 2e22
    assert found["after"] < min(found["before"], found["repeated"], found["even_grid"])
    assert [answer["key"] for answer in written["answers"]] == ["suggestion"] and written["target_budget"] > 0
    assert "Next runs, for the loss" in out and "repeats of the present runs" in out and "even grid" in out
    assert written["isoflop"] and list(written) == list(facts_of())


@pytest.mark.parametrize(
    ("argv", "words"),
    [([], "--purse=FLOPS is missing"), (["--purse=1e3"], "does not pay for one more run"), (["--purse=-1"], "purse")],
)
def test_a_purse_that_cannot_be_spent_ends_in_one_line(capsys, argv, words):
    assert cli.main(["suggest", f"--runs={ROOT / 'chinchilla_jax/tables/chinchilla_fig4_points.csv'}", *argv]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and words in err, err
