"""Where the time of a study went, by its stages and its workers."""

import json

import pytest

from chinchilla_jax.study.folder import run_folder
from chinchilla_jax.study.pipeline import where_the_time_went


@pytest.mark.parametrize("wall, expected", [(60.0, "33.3% of 2 workers x 60 s"), (10.0, "40 s of the workers' time")])
def test_no_share_is_given_of_runs_that_were_trained_outside_the_study(study, small_plan, finish, wall, expected):
    run = small_plan.runs[0]
    finish(None, run_folder(study, run.name), run.facts(), time={"step": 40.0}, seconds=45.0)
    (study / "stages.json").write_text(json.dumps({"isoflop runs": wall}))
    assert f"training took {expected}" in where_the_time_went(study, 2)[-1]
