"""Back-ends: one that is registered trains a study without a change to the package, and is held to its word; a finished
run answers for another one of the same config.
"""

import dataclasses

import pytest

from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.study.execute import worker
from chinchilla_jax.study.execute.backend import BACKENDS, Backend, get_backend, register, reuse, run_manifest
from chinchilla_jax.study.execute.worker import Stopped, work_alone
from chinchilla_jax.study.folder import MANIFEST, VERIFICATION, StudyError, planned_runs, read_result, run_folder
from chinchilla_jax.study.pipeline import run_study
from configs.isoflop import tiny
from tests.study.cases import quiet

LAW = Surface(2.0, 30.0, 90.0, 0.4, 0.42)


@pytest.fixture
def in_this_process(finish):
    """Registers a back-end that trains in this process, with losses of a law; `calls` is what it was asked to do."""
    calls = []

    def train(config, folder, facts, echo):
        loss = float(LAW.loss(facts["params"], facts["tokens"]))
        metrics = [
            f'{{"step": {i}, "tokens": {facts["tokens"] * i // 4}, "loss": {loss + 0.2 * (4 - i)}}}'
            for i in range(1, 5)
        ]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").write_text("\n".join(metrics) + "\n")
        return finish(config, folder, facts, loss=loss)

    def run(study, manifest, workers, echo, ready):
        calls.append((manifest, workers, ready))
        work_alone(study, manifest, 0, echo, train)

    register("in this process", Backend(run))
    yield calls
    del BACKENDS["in this process"]


def test_a_registered_backend_brings_the_tiny_study_to_its_report(tmp_path, in_this_process):
    config = tiny()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=str(tmp_path / "data")))
    study, lines = tmp_path / "study", []
    report = run_study(config, study, 2, lines.append, backend="in this process")
    assert report.exists() and in_this_process == [(MANIFEST, 2, None), (VERIFICATION, 2, None)]
    runs = planned_runs(study)
    assert len(runs) == 27 and all(read_result(study, run.name)["loss"] > 2.0 for run in runs)
    assert not (study / "logs").exists(), "a worker process was started"
    assert any(line.startswith("=== 5/6 held-out runs") for line in lines)


def test_an_unknown_backend_is_refused_before_anything_is_done(tmp_path):
    with pytest.raises(StudyError, match=r"unknown back-end 'locl' \(did you mean 'local'\?\); one of local"):
        run_study(tiny(), tmp_path / "study", 1, quiet, backend="locl")
    assert not (tmp_path / "study").exists()
    assert get_backend("local").stand_by is not Backend(quiet).stand_by


def test_a_backend_that_leaves_runs_is_named_with_them(study, small_plan, monkeypatch):
    monkeypatch.setitem(BACKENDS, "idle", Backend(lambda *_, **__: None))
    with pytest.raises(StudyError, match=f"back-end 'idle' ended without finishing {small_plan.runs[0].name}, ") as no:
        run_manifest("idle", study, MANIFEST, 1, quiet)
    assert no.value.exit_code == 1


def test_a_backend_that_only_prints_stops_the_study_with_code_42(tmp_path, monkeypatch):
    def show(study, manifest, workers, echo, ready):
        raise Stopped(f"would start {len(planned_runs(study))} runs")

    monkeypatch.setitem(BACKENDS, "print", Backend(show))
    config = tiny()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=str(tmp_path / "data")))
    with pytest.raises(worker.Stopped, match="would start 24 runs") as stopped:
        run_study(config, tmp_path / "study", 1, quiet, backend="print")
    assert stopped.value.exit_code == 42


def test_a_branch_answers_with_its_loss_and_without_the_seconds_of_its_tail(study, small_plan, finish):
    whole = small_plan.runs[0]
    branch = dataclasses.replace(whole, name="branch", trunk="trunk", fork_step=1)
    finish(None, run_folder(study, branch.name), branch.facts(), loss=2.5)
    reuse(study, [whole], [branch], quiet)
    result = read_result(study, whole.name)
    assert (result["loss"], result["reused"], result["reused_seconds"]) == (2.5, "branch", None)
    assert not {"trunk", "fork_step", "flops_spent"} & result.keys()
