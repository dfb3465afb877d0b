"""Where the time of a study's runs went, finished or not."""

import json

import pytest

from chinchilla_jax.study.execute.pace import pace
from chinchilla_jax.study.execute.status import status
from chinchilla_jax.study.folder import run_folder, training_order
from chinchilla_jax.study.pipeline import where_the_time_went


@pytest.fixture
def told(study, small_plan, finish):
    """The line of `status` about a study of which two runs are finished and one has begun."""
    for run, time, share in zip(small_plan.runs[:2], ({"step": 30.0, "compile": 5.0}, {"step": 10.0, "compile": 5.0}),
                                ((0.2, 0.4), (0.5, 0.6)), strict=True):  # fmt: skip
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


@pytest.mark.parametrize("wall, expected", [(60.0, "33.3% of 2 workers x 60 s"), (10.0, "40 s of the workers' time")])
def test_no_share_is_given_of_runs_that_were_trained_outside_the_study(study, small_plan, finish, wall, expected):
    run = small_plan.runs[0]
    finish(None, run_folder(study, run.name), run.facts(), time={"step": 40.0}, seconds=45.0)
    (study / "stages.json").write_text(json.dumps({"isoflop runs": wall}))
    assert f"training took {expected}" in where_the_time_went(study, 2)[-1]
