"""How long runs will take, by those that are finished, and in which order they are taken."""

import pytest

from chinchilla_jax.study.execute.pace import pace
from chinchilla_jax.study.folder import run_folder, training_order


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
