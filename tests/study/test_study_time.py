"""Where the time of a study's runs went, finished or not."""

import json

import pytest

from chinchilla_jax.study.folder import run_folder
from chinchilla_jax.study.status import status


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
