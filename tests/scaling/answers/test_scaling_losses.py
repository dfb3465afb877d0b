"""Several losses of the same runs: each by itself, the macro average with the noise they share, downstream errors."""

import csv
import json
import math

import numpy as np
import pytest

from chinchilla_jax import cli
from chinchilla_jax.scaling.answers.downstream import downstream, scores
from chinchilla_jax.scaling.answers.losses import fit_losses
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.losses import MACRO, domains_of, load_losses
from chinchilla_jax.scaling.read.runs import FitRefused
from chinchilla_jax.scaling.read.tasks import MEAN, errors_of
from chinchilla_jax.scaling.report import report

LAW, TARGET = Surface(1.7, 60.0, 300.0, 0.32, 0.36), 3.2e12
FACTORS = {"eval/web/loss": 1.0, "eval/code/loss": 0.6}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Two losses, one 0.6 times the other, with noise in common and apart; a training loss; accuracy and error."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("losses") / "runs.csv"
    with path.open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "params", "tokens", "flops", "budget", *FACTORS, "train_loss", "hellaswag_acc", "error"])
        for budget in (1e11, 2e11, 4e11, 8e11):
            for i in range(6):
                params = float(LAW.optimum(budget)[0]) * 1.5 ** (i - 2.5)
                tokens = budget / 6 / params
                common = math.exp(0.004 * rng.standard_normal())
                loss = float(LAW.loss(params, tokens)) * common
                losses = [factor * loss * math.exp(0.001 * rng.standard_normal()) for factor in FACTORS.values()]
                error = 0.9 - 2.0 * math.exp(-0.8 * losses[0])
                rows.writerow([f"{budget:g}-{i}", params, tokens, budget, budget, *losses, loss, 1 - error, error])
    return path


def test_every_loss_of_a_table_is_fitted_but_that_of_training(table):
    losses = load_losses(table)
    assert list(losses) == [*FACTORS, MACRO]
    web, code, macro = fit_losses(losses, TARGET)
    truth = float(LAW.optimum(TARGET)[2])
    for fit, factor in ((web, 1.0), (code, 0.6), (macro, 0.8)):
        assert fit.loss == pytest.approx(factor * truth, rel=0.02)
        assert fit.loss_95[0] < fit.loss < fit.loss_95[1]
    assert macro.noise > 0.7 * web.noise  # shared noise does not average out


def test_named_losses_alone(table):
    with pytest.raises(FitRefused, match="is the only loss"):
        load_losses(table, ["eval/web/loss"])
    with pytest.raises(FitRefused, match="no column"):
        load_losses(table, ["eval/web/loss", "eval/maths/loss"])


def test_a_loss_that_carries_no_fit_says_why(table):
    losses = load_losses(table)
    few = {name: load_runs(table, where={"name": ("1e+11-0", "1e+11-1")}) for name in ("a", "b")}
    fits = fit_losses(losses | few, TARGET)
    assert [bool(fit.refused) for fit in fits] == [False, False, False, True, True]


def test_downstream_errors_follow_the_loss(table):
    loaded = load_runs(table, columns={"loss": "eval/web/loss"})
    fit = fit_losses({"loss": loaded}, TARGET)[0]
    accuracy, error = downstream(loaded, errors_of(loaded, ["hellaswag_acc", "error"]), fit).rows
    assert error["at the target"] == pytest.approx(0.9 - 2.0 * math.exp(-0.8 * fit.loss), abs=0.005)
    assert accuracy["at the target"] == pytest.approx(error["at the target"], abs=1e-6)
    with pytest.raises(FitRefused, match="an error is a share"):
        errors_of(loaded, ["budget"])
    with pytest.raises(FitRefused, match="no run has a number in nothing"):
        errors_of(loaded, ["nothing"])


def test_the_domains_of_a_study_are_fitted_and_drawn_in_its_report(tmp_path, write_study, monkeypatch):
    monkeypatch.setattr(report, "_draw", lambda *_: {})  # of the other figures
    write_study(tmp_path)
    for path in (tmp_path / "runs").glob("*/result.json"):
        result = json.loads(path.read_text())
        domains = {
            f"validation_loss/{name}": factor * result["loss"] for name, factor in (("docs", 1.1), ("prose", 0.9))
        }
        path.write_text(json.dumps(result | {"validation": domains}))
    loaded = load_runs(tmp_path)
    assert list(domains_of(loaded)) == ["docs", "prose", "bits_per_byte", MACRO]
    page = report.write_report(tmp_path, replicates=10)
    answer = json.loads((tmp_path / "report.json").read_text())["answers"][-1]
    assert [row["loss of"] for row in answer["rows"]] == ["docs", "prose", "bits_per_byte", MACRO]
    assert answer["rows"][3]["loss"] == pytest.approx(
        0.5 * (answer["rows"][0]["loss"] + answer["rows"][1]["loss"]), rel=1e-3
    )
    assert "Each loss at C" in page.read_text()
    assert (tmp_path / "plots" / "losses.png").exists()


@pytest.fixture
def asked(tmp_path, write_study):
    """A study whose runs were asked two tasks, the errors of which follow the loss, and how likely a text is."""
    write_study(tmp_path)
    for path in (tmp_path / "runs").glob("*/result.json"):
        result = json.loads(path.read_text())
        tasks = {}
        for name, rate in (("cloze", 0.8), ("hellaswag/5", 0.6)):
            acc = 0.1 + 2.0 * math.exp(-rate * result["loss"])
            tasks[name] = {"metrics": {"acc": acc, "acc_stderr": 0.01}, "main": "acc", "questions": 400, "shots": 0}
        tasks["bits"] = {"metrics": {"bits_per_byte": result["loss"] / 2}, "main": "bits_per_byte", "questions": 9}
        path.write_text(json.dumps(result | {"tasks": tasks}))
    return tmp_path


def test_scores_on_tasks_are_input_of_the_law_of_downstream_errors(asked):
    loaded = load_runs(asked)
    errors = errors_of(loaded, ["tasks"])
    assert list(errors) == [MEAN, "cloze", "hellaswag/5"]  # bits are no share
    run = loaded.runs[0]
    assert errors["cloze"][run.name] == pytest.approx(0.9 - 2.0 * math.exp(-0.8 * run.loss))
    assert errors[MEAN][run.name] == pytest.approx((errors["cloze"][run.name] + errors["hellaswag/5"][run.name]) / 2)
    fit = fit_losses({"loss": loaded}, TARGET)[0]
    rows = {row["error"]: row for row in downstream(loaded, errors, fit).rows}
    assert rows["cloze"]["at the target"] == pytest.approx(0.9 - 2.0 * math.exp(-0.8 * fit.loss), abs=1e-4)
    flat = downstream(loaded, {"flat": dict.fromkeys(errors["cloze"], 0.75)}, fit)
    assert flat.rows[0]["at the target"] == "refused" and "nothing of it goes with the loss" in flat.notes[-1]


def test_runs_that_were_asked_otherwise_are_not_compared(asked):
    path = next((asked / "runs").glob("*/result.json"))
    result = json.loads(path.read_text())
    for key, value in (("questions", 100), ("seed", 1)):
        task = result["tasks"]["cloze"] | {key: value}
        path.write_text(json.dumps(result | {"tasks": result["tasks"] | {"cloze": task}}))
        with pytest.raises(FitRefused, match="cloze was asked in several ways"):
            errors_of(load_runs(asked), ["tasks"])
    for path in (asked / "runs").glob("*/result.json"):
        path.write_text(json.dumps({key: v for key, v in json.loads(path.read_text()).items() if key != "tasks"}))
    with pytest.raises(FitRefused, match="no run has scores of tasks"):
        errors_of(load_runs(asked), ["tasks"])
    assert scores(load_runs(asked)) == ()


def test_tasks_are_in_the_report(asked, monkeypatch):
    monkeypatch.setattr(report, "_draw", lambda *_: {})
    page = report.write_report(asked, replicates=10).read_text()
    told, law = json.loads((asked / "report.json").read_text())["tasks"]
    assert [row["task"] for row in told["rows"]] == ["cloze", "hellaswag/5", "bits"] and "Scores on tasks" in page
    lowest = min(load_runs(asked).runs, key=lambda run: run.loss)
    assert told["rows"][0]["run of the lowest loss"] == pytest.approx(0.1 + 2.0 * math.exp(-0.8 * lowest.loss))
    assert [row["error"] for row in law["rows"]] == [MEAN, "cloze", "hellaswag/5"] and "Downstream error" in page


def test_from_the_command_line(table, capsys, tmp_path):
    output = tmp_path / "facts.json"
    words = ["fit", f"--runs={table}", "--columns=loss:eval/web/loss", "--losses=all", "--errors=hellaswag_acc"]
    assert cli.main([*words, f"--output={output}"]) == 0
    out = capsys.readouterr().out
    assert "Each loss at C" in out and "Downstream error at a loss of" in out
    assert [answer["key"] for answer in json.loads(output.read_text())["answers"]] == ["losses", "downstream"]
    assert cli.main([*words, "--save=x.npz"]) == 2
