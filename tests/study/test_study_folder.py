"""Files of a study: a manifest that never changes; what was edited, cut off or overwritten is noticed, and named."""

import dataclasses
import json

import pytest

from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import FitRefused
from chinchilla_jax.study.folder import (
    MANIFEST,
    VERIFICATION,
    Manifest,
    StudyError,
    planned_runs,
    read_json_or,
    read_manifest,
    read_result,
    write_manifest,
)
from chinchilla_jax.study.plan import plan
from configs.isoflop import tiny
from tests.study.cases import study_config


@pytest.fixture()
def study(tmp_path):
    write_manifest(tmp_path / MANIFEST, plan(tiny()))
    return tmp_path


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"peak_lr": ', '"peak_lr": 1', 1),
        lambda text: "".join(text.splitlines(keepends=True)[:-1]),
        lambda text: text[:-40],
        lambda text: "[]",
        lambda text: "",
    ],
    ids=["edited", "a run cut off", "half a line", "not a manifest", "empty"],
)
def test_a_manifest_that_is_not_what_was_written_is_refused_by_name(study, damage):
    path = study / MANIFEST
    assert len(read_manifest(path).runs) == 24
    path.write_text(damage(path.read_text()))
    with pytest.raises(StudyError, match="manifest.jsonl"):
        read_manifest(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"loss": "x"}', '{"loss": null}'])
def test_no_one_goes_on_with_a_damaged_result(study, content):
    first = read_manifest(study / MANIFEST).runs[0].name
    path = study / "runs" / first / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(StudyError, match="result.json.*delete the file") as caught:
        read_result(study, first)
    assert caught.value.exit_code == 2 and first in str(caught.value)
    # A fit goes on with the other runs, and says which one it does without.
    (bad,) = [row for row in load_runs(study).bad if row.where == first]
    assert bad.reason.startswith(("result.json is not", "params is missing"))


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"'])
def test_damaged_times_of_the_stages_are_named(study, content):
    (study / "stages.json").write_text(content)
    with pytest.raises(StudyError, match="stages.json: not valid JSON .*delete the file"):
        read_json_or(study / "stages.json", {})


def test_a_damaged_plan_of_held_out_runs_is_named(study):
    text = (study / MANIFEST).read_text()
    (study / VERIFICATION).write_text(text[:-40])
    with pytest.raises(StudyError, match="verification.jsonl: not a manifest"):
        planned_runs(study)
    with pytest.raises(FitRefused, match="verification.jsonl: line 25: not JSON") as caught:
        load_runs(study)
    assert caught.value.reason == "manifest"


def test_a_fit_does_not_take_a_manifest_that_was_edited(study):
    text = (study / MANIFEST).read_text()
    (study / MANIFEST).write_text(text.replace('"seed": 0', '"seed": 1', 1))
    with pytest.raises(FitRefused, match="not as it was written: edited, or cut off"):
        load_runs(study)


def test_the_result_of_another_run_and_one_that_is_no_number_are_refused(study):
    first, second, *_ = (run.name for run in read_manifest(study / MANIFEST).runs)
    for result, told in (
        ({"name": second, "loss": 3.0}, f"is the result of the run {second}; delete the file"),
        ({"name": first, "loss": float("nan")}, "its loss is nan; delete the file"),
    ):
        path = study / "runs" / first / "result.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))
        with pytest.raises(StudyError, match=told):
            read_result(study, first)


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "..", ".", "", "a/b", "a\\b"])
def test_a_manifest_whose_runs_would_lie_elsewhere_is_refused_whoever_wrote_its_digest(tmp_path, name):
    planned = plan(tiny())
    forged = dataclasses.replace(planned.runs[0], name=name)
    write_manifest(tmp_path / MANIFEST, Manifest(planned.header, (forged, *planned.runs[1:])))
    with pytest.raises(StudyError, match="is no name of a run's folder"):
        read_manifest(tmp_path / MANIFEST)


def test_a_study_in_which_nothing_is_finished_loads_with_every_run_listed(study):
    loaded = load_runs(study)
    assert not loaded.runs and len(loaded.bad) == 24
    assert all(row.reason == "not finished: no result.json" for row in loaded.bad)


def test_planning_is_deterministic_and_a_manifest_is_never_changed(tmp_path, manifest, config):
    path = tmp_path / MANIFEST
    assert write_manifest(path, manifest) is True
    before = path.read_bytes()
    newer = Manifest(manifest.header | {"revision": "another", "package": "later"}, plan(config).runs)
    assert write_manifest(path, newer) is False
    with pytest.raises(StudyError, match="another plan"):
        write_manifest(path, plan(study_config(size_ratio=1.4)))
    assert path.read_bytes() == before
    assert read_manifest(path) == manifest
    assert [p.name for p in tmp_path.iterdir()] == [MANIFEST]


def test_a_manifest_from_before_a_key_is_still_this_plan(tmp_path, config):
    before = plan(config)
    del before.header["config"]["study"]["cores"]
    for run in before.runs:
        run.config["train"].pop("remat")  # as if this key had come later
    write_manifest(tmp_path / MANIFEST, before)
    assert write_manifest(tmp_path / MANIFEST, plan(config)) is False
    assert read_manifest(tmp_path / MANIFEST).template() == config


@pytest.mark.parametrize("text", ["", "{}\n", '{"manifest": {}}\n{"name": 1}\n', "not json\n"])
def test_a_damaged_manifest_is_told_in_one_line(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(StudyError, match="not a manifest"):
        read_manifest(tmp_path / MANIFEST)
