"""Files of a study that were edited, cut off or overwritten are noticed, and named."""

import pytest

from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import FitRefused
from chinchilla_jax.study.execute.status import status
from chinchilla_jax.study.folder import (
    MANIFEST,
    VERIFICATION,
    StudyError,
    read_json_or,
    planned_runs,
    read_manifest,
    read_result,
    write_manifest,
)
from chinchilla_jax.study.plan import plan
from configs.isoflop import tiny


@pytest.fixture()
def study(tmp_path):
    write_manifest(tmp_path / MANIFEST, plan(tiny()))
    return tmp_path


@pytest.mark.parametrize("damage", [
    lambda text: text.replace('"peak_lr": ', '"peak_lr": 1', 1),
    lambda text: "".join(text.splitlines(keepends=True)[:-1]),
    lambda text: text[:-40],
    lambda text: "[]",
    lambda text: "",
], ids=["edited", "a run cut off", "half a line", "not a manifest", "empty"])  # fmt: skip
def test_a_manifest_that_is_not_what_was_written_is_refused_by_name(study, damage):
    path = study / MANIFEST
    assert len(read_manifest(path).runs) == 24
    path.write_text(damage(path.read_text()))
    with pytest.raises(StudyError, match="manifest.jsonl"):
        read_manifest(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"loss": "x"}'])
def test_status_shows_a_damaged_result_and_the_rest(study, content):
    first = read_manifest(study / MANIFEST).runs[0].name
    (study / "runs" / first).mkdir(parents=True)
    (study / "runs" / first / "result.json").write_text(content)
    said = []
    rows = status(study, said.append)
    assert [row.state for row in rows].count("damaged") == 1 and len(rows) == 24
    assert first in said[-1] and "result.json" in said[-1]


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


def test_a_study_in_which_nothing_is_finished_loads_with_every_run_listed(study):
    loaded = load_runs(study)
    assert not loaded.runs and len(loaded.bad) == 24
    assert all(row.reason == "not finished: no result.json" for row in loaded.bad)
