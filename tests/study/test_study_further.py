"""Next runs of a study: a further manifest, planned as the first, which stays; once finished they are fitted too."""

import json

import numpy as np
import pytest

from chinchilla_jax import cli
from chinchilla_jax.scaling.predict.analysis import fit_all
from chinchilla_jax.scaling.predict.predict import predict
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import FitRefused, target_budget
from chinchilla_jax.scaling.report import report
from chinchilla_jax.study import folder
from chinchilla_jax.study.cell import TOLERANCE
from chinchilla_jax.study.execute.status import status
from chinchilla_jax.study.folder import MANIFEST, StudyError, write_manifest
from chinchilla_jax.study.further import plan_next

PURSE = 4.0  # times the largest budget


def finish(study, name):
    """Gives the runs of a manifest the losses of a law, with noise."""
    rng = np.random.default_rng(3)
    for run in folder.read_manifest(study / name).runs:
        loss = float((1.8 + 20 / run.params**0.25 + 60 / run.tokens**0.28) * np.exp(0.002 * rng.standard_normal()))
        place = folder.run_folder(study, run.name)
        place.mkdir(parents=True, exist_ok=True)
        (place / folder.RESULT).write_text(json.dumps(run.facts() | {"loss": loss, "diverged": False}))


@pytest.fixture
def study(manifest, tmp_path):
    write_manifest(tmp_path / MANIFEST, manifest)
    finish(tmp_path, MANIFEST)
    return tmp_path


@pytest.fixture
def purse(config):
    return PURSE * max(config.study.budgets)


def planned(study, purse, **asked):
    return plan_next(study, None, purse, asked.get("count", 8), asked.get("quantity", "loss"), lambda line: None)


def test_the_next_runs_spend_their_budgets_and_the_first_manifest_stays(study, purse, manifest):
    before = (study / MANIFEST).read_bytes()
    name, further = planned(study, purse)
    assert name == "next.jsonl" and 1 <= len(further.runs) <= 8
    assert sum(run.cost for run in further.runs) <= purse * (1 + TOLERANCE)
    for run in further.runs:
        assert abs(run.cost / run.budget - 1) <= TOLERANCE and run.role == "isoflop" and run.recipe
        assert run.run_config().content_hash() == run.config_hash
    names = [run.name for run in (*manifest.runs, *further.runs)]
    hashes = [run.config_hash for run in (*manifest.runs, *further.runs)]
    assert len(set(names)) == len(names) and len(set(hashes)) == len(hashes)
    assert (study / MANIFEST).read_bytes() == before


def test_finished_they_are_fitted_with_the_others_and_the_target_stays(study, purse):
    before = load_runs(study)
    name, further = planned(study, purse)
    write_manifest(study / name, further)
    assert {row.where for row in load_runs(study).bad} >= {run.name for run in further.runs}
    with pytest.raises(StudyError, match=f"{len(further.runs)} of its runs are not finished.*--manifest=next.jsonl"):
        planned(study, purse)
    finish(study, name)
    after = load_runs(study)
    assert len(after.role("isoflop")) == len(before.runs) + len(further.runs)
    assert target_budget(after) == target_budget(before)
    rows = status(study, lambda line: None)
    assert {run.name for run in further.runs} <= {row.name for row in rows} and all(r.state == "done" for r in rows)
    second, _ = planned(study, purse)
    assert second == "next_2.jsonl"


def test_a_purse_that_pays_for_nothing_and_a_folder_without_a_study_are_refused(study, tmp_path):
    with pytest.raises(FitRefused, match="does not pay for one more run"):
        planned(study, 1e3)
    with pytest.raises(StudyError, match="no such manifest"):
        planned(tmp_path / "nothing", 1e12)


def test_the_verb_writes_the_manifest_and_says_how_to_train_it(study, purse, capsys):
    arguments = ["plan", "--next", f"--study={study}", f"--purse={purse}", "--number=4"]
    assert cli.main([*arguments, "--dry_run"]) == 0 and not (study / "next.jsonl").exists()
    capsys.readouterr()
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "Next runs, for the loss" in out and "work --study=" in out and "--manifest=next.jsonl" in out
    assert " runs, " in out and "; about " in out  # what they cost and take
    assert cli.main(["plan", "--next", f"--study={study}"]) == 2


def test_they_stay_below_the_held_out_budget_and_wait_for_the_first_runs(study, purse):
    target = target_budget(load_runs(study))
    _, further = planned(study, 20 * purse)
    assert max(run.budget for run in further.runs) <= 0.5 * target
    name = folder.read_manifest(study / MANIFEST).runs[0].name
    (folder.run_folder(study, name) / folder.RESULT).unlink()
    with pytest.raises(StudyError, match="1 of its runs are not finished"):
        planned(study, purse)


def test_held_out_runs_are_judged_by_the_fit_before_them(study, purse):
    def judged_by():
        loaded = load_runs(study)
        prediction = predict(fit_all(loaded.role("isoflop"), "corrected", quick=True), target_budget(loaded))
        return len(loaded.runs), report._before_further(loaded, prediction, 0).best.loss

    count, before = judged_by()
    name, further = planned(study, purse)
    write_manifest(study / name, further)
    finish(study, name)
    assert judged_by() == (count + len(further.runs), pytest.approx(before, rel=1e-9))
