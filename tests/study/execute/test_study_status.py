"""How far a study is, where the time of its runs went and how long the others take, from the files the runs write."""

import json
import subprocess
import sys

import pytest

from chinchilla_jax.study.execute import lease
from chinchilla_jax.study.execute.status import pace, status, training_order
from chinchilla_jax.study.folder import (
    MANIFEST,
    read_manifest,
    run_folder,
    write_manifest,
)
from chinchilla_jax.study.plan import plan
from configs.isoflop import tiny


def test_status_tells_done_running_and_waiting(study, small_plan, finish):
    done, running, stopped = small_plan.runs[:3]
    finish(None, run_folder(study, done.name), done.facts())
    for run in (running, stopped):
        run_folder(study, run.name).mkdir(parents=True)
        line = json.dumps({"step": 5, "tokens": run.tokens // 2, "loss": 4.5})
        (run_folder(study, run.name) / "metrics.jsonl").write_text(line + '\n{"step": 6, "tok')
        (run_folder(study, run.name) / "timing.jsonl").write_text('{"step": 5, "seconds": 7.0}\n')
    lease.claim(run_folder(study, running.name), study, "0")
    lines = []
    rows = {row.name: row for row in status(study, lines.append)}
    assert [rows[run.name].state for run in small_plan.runs[:4]] == ["done", "running", "waiting", "waiting"]
    assert rows[running.name].progress == pytest.approx(0.5, abs=0.01) and rows[running.name].loss == 4.5
    assert rows[running.name].seconds_left == pytest.approx(7.0, rel=0.05)
    assert "1 done, 1 running, 0 failed, 10 waiting" in lines[-1]


def begin(study, run, losses):
    """Makes a run one that trains: a line for each hundredth of it, and a lease."""
    folder = run_folder(study, run.name)
    folder.mkdir(parents=True)
    lines = [{"step": k, "tokens": k * run.tokens // 100, "loss": loss} for k, loss in enumerate(losses, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lease.claim(folder, study, "0")


def test_status_says_where_running_runs_will_end_and_which_go_wrong(study, small_plan):
    fine, wrong = small_plan.runs[:2]
    losses = [3.0 + 2.0 / k**0.5 for k in range(1, 51)]
    begin(study, fine, losses)
    begin(study, wrong, [*losses[:40], *(loss + 2.0 for loss in losses[40:])])
    lines = []
    rows = {row.name: row for row in status(study, lines.append)}
    end, low, high = rows[fine.name].forecast
    assert low < end < high and end < losses[-1]
    assert not rows[fine.name].wrong and rows[wrong.name].wrong
    assert f"{end:.4f} +- " in next(line for line in lines if line.startswith(fine.name))
    assert next(line for line in lines if line.startswith(wrong.name)).endswith(" !")
    assert lines[-1].startswith(f"{wrong.name} goes wrong: at 41.") and "off its course" in lines[-1]


def test_status_of_a_study_of_which_nothing_runs_imports_no_statistics(study):
    code = (
        "import sys; from chinchilla_jax.study.execute.status import status; before = set(sys.modules); "
        f"status({str(study)!r}, lambda line: None); print([m for m in set(sys.modules) - before if 'scaling' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def told(study, small_plan, finish):
    """The line of `status` about a study of which two runs are finished and one has begun."""
    for run, time, share in zip(
        small_plan.runs[:2],
        ({"step": 30.0, "compile": 5.0}, {"step": 10.0, "compile": 5.0}),
        ((0.2, 0.4), (0.5, 0.6)),
        strict=True,
    ):
        used = dict(zip(("6nd", "executed"), share, strict=True))
        finish(None, run_folder(study, run.name), run.facts(), time=time, utilisation={"step": used, "all": used})
    begun = run_folder(study, small_plan.runs[2].name)
    begun.mkdir(parents=True)
    stamp = {"step": 5, "seconds": 50.0, "time": {"step": 20.0, "startup": 30.0}}
    (begun / "timing.jsonl").write_text(json.dumps(stamp) + "\n")
    lines = []
    status(study, lines.append)
    return lines[-2]


def test_status_adds_up_the_time_of_finished_and_unfinished_runs(told):
    assert told.startswith("time: step 60.0%, startup 30.0%, compile 10.0%; ")


def test_status_averages_utilisation_over_the_step_time_of_finished_runs(told):
    assert told.endswith("; utilisation 27.5% of peak (6nd), 45.0% (executed)")


@pytest.fixture()
def tiny_study(tmp_path):
    write_manifest(tmp_path / MANIFEST, plan(tiny()))
    return tmp_path


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"loss": "x"}'])
def test_status_shows_a_damaged_result_and_the_rest(tiny_study, content):
    first = read_manifest(tiny_study / MANIFEST).runs[0].name
    (tiny_study / "runs" / first).mkdir(parents=True)
    (tiny_study / "runs" / first / "result.json").write_text(content)
    said = []
    rows = status(tiny_study, said.append)
    assert [row.state for row in rows].count("damaged") == 1 and len(rows) == 24
    assert first in said[-1] and "result.json" in said[-1]


def test_before_a_run_is_finished_its_time_is_the_planned_one(tmp_path, study, small_plan):
    for folder in (study, tmp_path / "nothing"):
        assert [pace(folder)(run) for run in small_plan.runs] == [run.estimated_seconds for run in small_plan.runs]


def test_afterwards_it_is_that_of_finished_runs_of_its_size_and_what_else_they_took(study, small_plan, finish):
    """The smallest model takes twice as long for a FLOP as the largest, and each run 5 s besides."""
    small, *_, large = sorted(small_plan.runs, key=lambda run: run.params)
    for run, slowness in ((small, 2e-10), (large, 1e-10)):
        step = slowness * run.spent("executed")
        finish(None, run_folder(study, run.name), run.facts(), time={"step": step}, seconds=step + 5.0)
    seconds = pace(study)
    for run in small_plan.runs:
        near = 2e-10 if run.params**2 < small.params * large.params else 1e-10
        assert seconds(run) == pytest.approx(near * run.spent("executed") + 5.0)


def test_of_runs_of_one_budget_the_slowest_is_taken_first(small_plan):
    runs = [run for run in small_plan.runs if run.budget == small_plan.runs[0].budget]
    order = training_order(runs, lambda run: 1e6 / run.params)
    assert order == sorted(runs, key=lambda run: run.params)
