"""`predict --experts`: text, JSON and page of one set of facts; what is missing is one line, before any fit."""

import json

import numpy as np
import pytest

from chinchilla_jax import cli
from chinchilla_jax.scaling.answers.serving.law import fitted_law
from chinchilla_jax.scaling.laws.form import form
from chinchilla_jax.scaling.report.facts import facts_of

CONSTANTS = {"A": 120.0, "B": 0.3, "C": 250.0, "F": 1.3, "alpha": 0.28, "beta": 0.6, "gamma": 0.27, "d": -0.001}
CONSTANTS |= {"E_start": 1.8, "E_max": 300.0}
SERVE = "--serve=prompt:161,output:338"
ASK = ["predict", "--experts=1,4,8,16", "--budget=6e21", "--chip=v5e"]


@pytest.fixture
def law(tmp_path):
    path = tmp_path / "law.json"
    path.write_text(json.dumps({"form": "routed_served", "constants": CONSTANTS}))
    return f"--law={path}"


def answers(path):
    return {answer["key"]: answer for answer in json.loads(path.read_text())["answers"]}


def test_text_json_and_page_hold_the_same(law, tmp_path, capsys):
    more = ["--price=1.2", "--throughput=7e9:4000:8"]
    assert cli.main([*ASK, SERVE, law, *more, f"--output={tmp_path / 'out.json'}"]) == 0
    text = capsys.readouterr().out
    assert cli.main([*ASK, SERVE, law, *more, f"--output={tmp_path / 'out'}"]) == 0
    page, facts = (tmp_path / "out" / "experts.html").read_text(), json.loads((tmp_path / "out.json").read_text())
    with_plot = json.loads((tmp_path / "out" / "experts.json").read_text())
    assert facts | {"plots": with_plot["plots"]} == with_plot
    assert [(tmp_path / "out" / plot).stat().st_size > 10_000 for plot in with_plot["plots"].values()] == [True]
    assert "data:image/png;base64," in page
    assert list(facts) == list(facts_of()) and facts["question"]["experts"] == [1, 4, 8, 16]
    for answer in facts["answers"]:
        assert answer["title"] in text and answer["title"] in page
        assert answer["rows"] or answer["key"] == "experts_paper"
        for note in answer["notes"]:
            assert f"{note}." in text
    assert "dollars for a million output tokens" in text and "times the roofline, by the throughput stated" in text


def test_the_rows_keep_their_bounds_and_the_findings_follow_from_them(law, tmp_path):
    output = tmp_path / "out.json"
    assert cli.main([*ASK, SERVE, law, "--reference=4", f"--output={output}"]) == 0
    told = answers(output)
    optimal = {row["experts"]: row for row in told["experts_optimal"]["rows"]}
    loss = {row["experts"]: row for row in told["experts_bounded_loss"]["rows"]}
    cost = {row["experts"]: row for row in told["experts_bounded_cost"]["rows"]}
    assert loss["1"]["N"] is None, "the dense model does not reach the loss of four experts"
    assert "No mixture of 1 experts reaches it with this C" in told["experts_bounded_loss"]["notes"]
    for e in ("4", "8", "16"):
        assert loss[e]["loss"] == pytest.approx(optimal["4"]["loss"], rel=1e-9)
        assert cost[e]["cost"] <= optimal["4"]["cost"] * (1 + 1e-12)
        assert loss[e]["N/N_E"] == pytest.approx(loss[e]["N"] / optimal[e]["N"])
    said = " ".join(told["experts_paper"]["notes"])
    for e in ("8", "16"):
        share = loss[e]["cost"] / optimal["4"]["cost"]
        assert (
            f"Cost of {e} experts at the loss of 4 experts, over the cost of the latter: {share:.1%}; the paper" in said
        )
    best = min((row for row in cost.values()), key=lambda row: row["loss"])
    assert f"Best at a bounded cost: {best['experts']} experts at {best['N/N_E']:.0%} of" in said


def test_bounds_may_be_given(law, tmp_path):
    output = tmp_path / "out.json"
    assert cli.main([*ASK, f"{SERVE},max_loss:1.9,max_cost:0.05", law, f"--output={output}"]) == 0
    told = answers(output)
    assert told["experts_bounded_loss"]["rows"][1]["loss"] == pytest.approx(1.9)
    assert told["experts_bounded_cost"]["rows"][3]["cost"] == pytest.approx(0.05)
    assert all("The bound is as given" in " ".join(told[f"experts_bounded_{key}"]["notes"]) for key in ("loss", "cost"))


def test_a_table_of_runs_is_fitted_and_its_reach_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fitted_law, "__defaults__", (0, 0, 8))  # starts: this surface is an easy one
    rows = ["params,tokens,experts,loss"]
    for params in np.geomspace(1e8, 1e9, 3).tolist():
        for tokens in np.geomspace(2e9, 2e10, 3).tolist():
            for e in (1, 4, 16):
                loss = float(form("routed_served").value(CONSTANTS, params=params, tokens=tokens, experts=e))
                rows.append(f"{params},{tokens},{e},{loss}")
    (tmp_path / "runs.csv").write_text("\n".join(rows) + "\n")
    words = ["predict", "--experts=1,4,32", "--budget=6e20", "--chip=v5e", f"--runs={tmp_path / 'runs.csv'}", SERVE]
    assert cli.main([*words, "--replicates=0", f"--output={tmp_path / 'out.json'}"]) == 0
    text = capsys.readouterr().out
    assert "27 runs, by experts: 1 (9), 4 (9), 16 (9)" in text and "differ in experts only" not in text
    assert "Beyond the runs, whose experts is 1 to 16: 32 experts" in text
    optimal = answers(tmp_path / "out.json")["experts_optimal"]["rows"]
    for row, e in zip(optimal[:2], (1, 4), strict=True):
        truth = form("routed_served").value(CONSTANTS, params=row["N"], tokens=row["D"], experts=e)
        assert row["loss"] == pytest.approx(float(truth), rel=1e-3)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([SERVE, "--law=yun2024"], "published nowhere"),
        ([SERVE], "--experts asks one law"),
        ([SERVE, "--law=a.json,b.json"], "--experts asks one law"),
        ([SERVE, "--law=a.json", "--runs=b.csv"], "--experts asks one law"),
        ([SERVE, "LAW", "--experts=four"], "--experts=four: expected numbers"),
        ([SERVE, "LAW", "--experts=0"], "whole numbers from 1"),
        ([SERVE, "LAW", "--budget="], "budget"),
        (["LAW"], "prompt and output missing"),
        (["LAW", "--serve=prompt:1,output:2,top_l:3"], "did you mean 'top_k'"),
        (["LAW", "--serve=prompt"], "e.g. prompt:512"),
        (["LAW", f"{SERVE},max_cost:-1"], "must be above 0"),
        (["LAW", f"{SERVE},top_k:8"], "a token uses 8"),
        (["LAW", SERVE, "--chip=v2"], "memory and bandwidth are not known"),
        (["LAW", SERVE, "--price=0"], "--price must be above 0"),
        (["LAW", SERVE, "--throughput=7e9:4"], "expected 3 numbers"),
        (["LAW", SERVE, "--params=1e9"], "leave --params out"),
        (["LAW", SERVE, "--chips=8"], "give either --budget"),
        (["LAW", f"{SERVE},most_chips:1", "--budget=1e25"], "do not fit 1 v5e chips"),
    ],
)
def test_what_is_missing_is_said_in_one_line(law, capsys, argv, words):
    assert cli.main([*ASK, *(law if word == "LAW" else word for word in argv)]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and words in err, err


def test_the_chip_of_a_budget_in_chip_days_serves_too(law, capsys):
    words = ["predict", "--experts=1,4", "--chip=v5p", "--chips=256", "--days=10", SERVE, law]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "256 v5p chips for 10 days" in out and "servers of 1 to 256 v5p chips" in out
    assert cli.main(["predict", "--budget=6e21", "--serve=prompt:1", law]) == 2
    assert "--serve goes with --experts" in capsys.readouterr().err
