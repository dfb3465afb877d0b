"""What a study predicts is on record before a held-out run begins, whatever stopped it before, and is judged after."""

import json

import pytest

from chinchilla_jax.scaling.predict.analysis import analyse
from chinchilla_jax.scaling.predict.predict import predict
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.study import folder, records
from chinchilla_jax.study.folder import MANIFEST, write_manifest
from chinchilla_jax.study.plan import holdout_budget, verification
from tests.study.test_study_further import finish


@pytest.fixture
def study(manifest, tmp_path):
    """A study whose first runs are finished, its prediction, and the held-out runs, planned."""
    write_manifest(tmp_path / MANIFEST, manifest)
    finish(tmp_path, MANIFEST)
    loaded = load_runs(tmp_path)
    prediction = predict(analyse(loaded.runs, replicates=20), holdout_budget(manifest.template()))
    return tmp_path, prediction, loaded, verification(tmp_path, prediction.best.params).runs


def begin(study, run, began="2999-01-01T00:00:00+00:00"):
    place = folder.run_folder(study, run.name)
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps({"hash": run.config_hash, "config": run.config, "began": began}))
    return place


def test_a_record_that_a_stop_left_out_is_written_later_unless_its_run_has_begun(study):
    root, prediction, loaded, runs = study
    records.put_on_record(root, prediction, loaded, runs[:1])
    first = (root / "predictions" / f"{runs[0].name}.json").read_bytes()
    begin(root, runs[1])
    assert records.not_on_record(root, runs) == list(runs[2:])
    records.put_on_record(root, prediction, loaded, runs)
    assert records.not_on_record(root, runs) == []
    assert not (root / "predictions" / f"{runs[1].name}.json").exists()
    assert (root / "predictions" / f"{runs[0].name}.json").read_bytes() == first


def test_finished_runs_are_judged_and_a_damaged_one_stops_nothing(study):
    root, prediction, loaded, runs = study
    records.put_on_record(root, prediction, loaded, runs)
    losses = prediction.best.loss
    for run in runs[:2]:
        place = begin(root, run)
        (place / folder.RESULT).write_text(json.dumps(run.facts() | {"loss": losses, "diverged": False}))
    (folder.run_folder(root, runs[1].name) / folder.RESULT).write_text("{")
    lines = []
    records.judge_by_record(root, lines.append)
    assert len(lines) == 2 and any("PASS" in line for line in lines)
    assert any(line.startswith("not judged") and "cannot be read" in line for line in lines)
