"""The report: says what the data say, whole or half-finished, in one file without links out."""

import json
import re
import shlex
from html import escape

import numpy as np
import pytest

from chinchilla_jax import cli
from chinchilla_jax.base.words import count, flops_text
from chinchilla_jax.scaling.read.runs import FitRefused
from chinchilla_jax.scaling.report import report
from chinchilla_jax.scaling.report.report import render, write_report


def statuses(facts):
    return {v["name"]: v["status"] for v in facts["verdicts"]}


def read(page):
    return page.read_text(), json.loads((page.parent / "report.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory, write_study):
    root = tmp_path_factory.mktemp("finished") / "tiny"
    root.mkdir()
    best = write_study(root)
    (root / "runs" / "isoflop-03" / "result.json").write_text(
        '{"loss": NaN, "diverged": true, "convention": "executed"}'
    )
    return write_report(root, replicates=200), best


@pytest.fixture
def no_plots(monkeypatch):
    """For tests of words and verdicts: drawing takes half of the time."""
    monkeypatch.setattr(report, "_draw", lambda *_: {})


def test_report_of_a_finished_study(finished):
    page, best = finished
    html, facts = read(page)
    assert statuses(facts) == {"profiles": "pass", "loss": "pass", "size": "pass"}
    assert facts["target_budget"] == 4 * 2.7e12 and facts["convention"] == "executed"
    assert len(facts["runs"]) == 30 and facts["bad_rows"] == [{"where": "isoflop-03", "reason": "diverged"}]
    estimate = facts["prediction"]["estimates"][facts["prediction"]["recommended"]]
    assert estimate["loss"] == pytest.approx(best[2], rel=0.01)
    assert f"{estimate['loss']:.4f} nats per token" in html and "diverged" in html
    assert sum(row["seconds"] for row in facts["runs"]) == 30 * 12.5 and "375 seconds" in html
    assert html.count("data:image/png;base64,") == 7 and html.count("PASS") == 3


def test_the_page_says_which_law_which_tokens_and_explains_the_preset_last(finished):
    html, facts = read(finished[0])
    prediction = facts["prediction"]
    best = prediction["estimates"][prediction["recommended"]]
    number = {"isoflop": "approach 2", "parametric": "approach 3"}[prediction["recommended"]]
    assert f"Follows {number}, the recommended law" in html
    row = facts["answers"][0]["rows"][0]
    assert (row["N"], row["loss"]) == pytest.approx((best["params"], best["loss"]))
    assert row["D"] == pytest.approx(prediction["tokens_at_budget"]) == pytest.approx(best["tokens_at_budget"])
    assert ("Two numbers of tokens" in html) == (number == "approach 2")
    titles = re.findall("<h2>(.*?)</h2>", html)
    assert titles[-1] == "What preset corrected does, and why"
    for lines in facts["differences"].values():
        assert all(html.count(escape(line)) <= 1 for line in lines)
    assert html.count("class=best") == 1 and facts["loss_unit"] == "nats per token, on held-out text"
    assert "expect a validation loss of" in html


def test_report_is_self_contained_and_names_no_machine_path(finished):
    html, facts = read(finished[0])
    assert not re.search(r"https?://|<script|<link|src=\"(?!data:)", html)
    folder = finished[0].parent
    assert str(folder.parent) not in html + json.dumps(facts)
    for path in facts["plots"].values():
        assert (folder / path).read_bytes().startswith(b"\x89PNG")
    assert not list(folder.rglob("*.tmp"))


def test_json_holds_all_the_page_shows(finished):
    html, facts = read(finished[0])
    images = {title: (finished[0].parent / path).read_bytes() for title, path in facts["plots"].items()}
    assert render(facts, images) == html


def test_the_printed_command_makes_the_same_report(finished, monkeypatch):
    page = finished[0]
    before = page.read_text()
    command = json.loads((page.parent / "report.json").read_text())["command"]
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "chinchilla_jax", "report"]
    monkeypatch.chdir(page.parent.parent)
    assert cli.main(words[3:]) == 0
    assert page.read_text() == before


def test_unfinished_study_gives_a_report_with_open_questions(tmp_path, write_study):
    write_study(tmp_path, held_out=False)
    (tmp_path / "runs" / "isoflop-27" / "result.json").unlink()
    html, facts = read(write_report(tmp_path, replicates=50))
    assert statuses(facts) == {"profiles": "pending", "loss": "pending", "size": "pending"}
    assert facts["prediction"] and facts["target_budget"] == 4 * 2.7e12
    assert {row["where"] for row in facts["bad_rows"]} == {"isoflop-27", "predicted-28", "half-29", "double-30"}
    assert "1 runs to come" in html and html.count("PENDING") == 3


def test_target_of_a_half_finished_study_comes_from_its_config(tmp_path, write_study, no_plots):
    write_study(tmp_path, held_out=False)
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines()[:-3]
    header = {"manifest": {"config": {"study": {"budgets": [1e11, 3e11, 9e11, 2.7e12], "holdout_factor": 3.0}}}}
    (tmp_path / "manifest.jsonl").write_text("\n".join([json.dumps(header), *lines]) + "\n")
    for result in tmp_path.glob("runs/isoflop-2[1-7]/result.json"):
        result.unlink()
    facts = read(write_report(tmp_path, replicates=0))[1]
    assert facts["target_budget"] == pytest.approx(3 * 2.7e12)
    assert facts["extrapolation"] == pytest.approx(9.0) and len(facts["isoflop"]["profiles"]) == 3
    # A budget without a single run yet is not passed over.
    assert statuses(facts)["profiles"] == "pending"
    assert "7 runs to come" in render(facts, {})


def test_study_with_nothing_finished_yet(tmp_path, write_study):
    write_study(tmp_path, held_out=False)
    for result in tmp_path.glob("runs/*/result.json"):
        result.unlink()
    html, facts = read(write_report(tmp_path))
    assert facts["prediction"] is None and set(statuses(facts).values()) == {"pending"}
    assert "No prediction yet" in html and "no IsoFLOP run is finished yet" in html


def test_sizes_off_centre_fail_the_profile_verdict(tmp_path, write_study, no_plots):
    write_study(tmp_path, shift=6.0, noise=0.0)
    _, facts = read(write_report(tmp_path, replicates=0))
    assert statuses(facts)["profiles"] == "fail"
    assert "lies outside those tried" in json.dumps(facts["verdicts"])


def test_held_out_runs_that_disagree_fail_their_verdicts(tmp_path, write_study, no_plots):
    write_study(tmp_path)
    for role, factor in (("predicted-28", 1.05), ("half-29", 0.99)):
        path = tmp_path / "runs" / role / "result.json"
        row = json.loads(path.read_text())
        path.write_text(json.dumps(row | {"loss": row["loss"] * factor}))
    _, facts = read(write_report(tmp_path, replicates=50))
    assert statuses(facts) == {"profiles": "pass", "loss": "fail", "size": "fail"}


def test_a_held_out_model_of_several_seeds_is_judged_by_its_mean_and_shows_all(tmp_path, write_study, no_plots):
    write_study(tmp_path)
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines()
    planned = next(json.loads(line) for line in lines if '"predicted-28"' in line)
    result = json.loads((tmp_path / "runs" / "predicted-28" / "result.json").read_text())
    again = planned | {"name": "predicted-28-s1"}
    (tmp_path / "manifest.jsonl").write_text("\n".join([*lines, json.dumps(again)]) + "\n")
    (tmp_path / "runs" / "predicted-28-s1").mkdir()
    more = result | {"name": "predicted-28-s1", "loss": 1.02 * result["loss"], "seed": 1}
    (tmp_path / "runs" / "predicted-28-s1" / "result.json").write_text(json.dumps(more))
    html, facts = read(write_report(tmp_path, replicates=0))
    mean = 1.01 * result["loss"]
    said = f"{mean:.4f} (mean of 2 seeds: {result['loss']:.4f}, {more['loss']:.4f})"
    details = {v["name"]: v["detail"] for v in facts["verdicts"]}
    assert f"trained {said}; " in details["loss"] and f"predicted {said}, double" in details["size"]
    assert [run["seed"] for run in facts["runs"] if run["role"] == "predicted"] == ["", "1"]
    assert html.count("predicted-28") >= 2


def test_report_from_a_table(tmp_path, figure_4_path):
    html, facts = read(write_report(figure_4_path, budget=5.76e23, output=tmp_path, replicates=100))
    assert facts["isoflop"]["laws"]["params"]["exponent"] == pytest.approx(0.497, abs=0.02)
    largest = max(row["flops"] for row in facts["runs"])
    assert facts["extrapolation"] == pytest.approx(5.76e23 / largest, rel=0.03)
    assert f"{facts['extrapolation']:.3g} times the largest budget" in html and statuses(facts)["loss"] == "pending"
    assert "expect a loss of" in html and "taken as nats per token" in html  # a table does not say what its losses are


def test_hostile_names_are_escaped(tmp_path, no_plots):
    table = tmp_path / "table.csv"
    lines = [
        f"<script>alert({i})</script>,{n},{20 * n},{2 + 50 * n**-0.3}" for i, n in enumerate(np.geomspace(1e4, 1e7, 8))
    ]
    table.write_text("name,params,tokens,loss\n" + "\n".join(lines) + "\n")
    html, _ = read(write_report(table, replicates=0))
    assert "<script" not in html and "&lt;script&gt;" in html


def test_no_path_is_refused(tmp_path):
    with pytest.raises(FitRefused, match="no such file"):
        write_report(tmp_path / "nowhere")


def test_numbers_are_written_as_the_field_does():
    assert [count(v) for v in (7e10, 1.4e12, 239_000, 12.34, 999_600)] == ["70B", "1.4T", "239k", "12.3", "1M"]
    assert flops_text(5.76e23) == "5.76e23"
