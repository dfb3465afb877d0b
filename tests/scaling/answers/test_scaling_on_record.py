"""Predictions on record: written once before the run begins, judged afterwards, and no other way round."""

import dataclasses
import json
import shutil

import pytest

from chinchilla_jax import cli
from chinchilla_jax.config import RunConfig
from chinchilla_jax.scaling.answers import on_record
from chinchilla_jax.scaling.answers.on_record import Target, outcomes, register, verify
from chinchilla_jax.scaling.predict.analysis import analyse
from chinchilla_jax.scaling.predict.predict import predict
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import FitRefused
from chinchilla_jax.scaling.report import report

BUDGET = 1.08e13


@pytest.fixture(scope="module")
def study(tmp_path_factory, write_study):
    """A planted study without its held-out runs, its prediction, and the loss that the law has at the prediction."""
    root = tmp_path_factory.mktemp("study")
    write_study(root, held_out=False)
    loaded = load_runs(root)
    return root, loaded, predict(analyse(loaded.runs, replicates=50), BUDGET)


@pytest.fixture
def record(study, tmp_path):
    """A prediction of the recommended size on record."""
    root, loaded, prediction = study
    path = tmp_path / "predictions" / "large.json"
    target = Target(prediction.best.params, prediction.tokens_at_budget, BUDGET)
    return path, target, register(path, prediction, loaded, target)


def train(folder, target, loss, began="2999-01-01T00:00:00.000000+00:00", hash="abc", **more):
    folder.mkdir(parents=True)
    row = {"name": folder.name, "params": target.params, "tokens": target.tokens, "flops": target.flops, "loss": loss}
    (folder / "result.json").write_text(json.dumps(row | {"convention": "executed", "diverged": False} | more))
    (folder / "config.json").write_text(json.dumps({"hash": hash, "config": {}} | ({"began": began} if began else {})))
    return folder


def test_a_finished_run_is_judged_once_and_the_verdict_stays(record, tmp_path):
    path, target, content = record
    run = train(tmp_path / "runs" / "large", target, content["loss"] * 1.001)
    outcome = verify(path, run)
    assert (outcome.status, outcome.inside) == ("pass", True)
    assert outcome.error == pytest.approx(-0.001, abs=1e-5)
    verdict = path.with_name("large.large.verdict.json").read_bytes()
    assert verify(path, run) == outcome
    assert path.with_name("large.large.verdict.json").read_bytes() == verdict
    (run / "result.json").write_text((run / "result.json").read_text().replace('"diverged": false', '"diverged": true'))
    with pytest.raises(FitRefused, match="another result"):
        verify(path, run)


def test_a_loss_far_off_fails_and_so_does_a_run_that_diverged(record, tmp_path):
    path, target, content = record
    assert verify(path, train(tmp_path / "off", target, content["loss"] * 1.2)).status == "fail"
    assert verify(path, train(tmp_path / "broken", target, content["loss"], diverged=True)).status == "fail"


@pytest.mark.parametrize("began", ["2001-01-01T00:00:00+00:00", "2001-01-01T23:59:00-05:00"])
def test_a_run_that_began_before_its_prediction_is_refused(record, tmp_path, began):
    path, target, content = record
    with pytest.raises(FitRefused, match="before the prediction was on record"):
        verify(path, train(tmp_path / "early", target, content["loss"], began))


@pytest.mark.parametrize("began", [None, 5, "yesterday"])
def test_a_run_that_does_not_say_when_it_began_is_refused(record, tmp_path, began):
    path, target, content = record
    with pytest.raises(FitRefused, match="does not say when it began"):
        verify(path, train(tmp_path / "copy", target, content["loss"], began))


def test_a_run_that_diverged_is_judged_if_it_is_the_one_on_record(record, tmp_path):
    path, target, content = record
    other = Target(**vars(target) | {"params": 2.0 * target.params})
    with pytest.raises(FitRefused, match="N is"):
        verify(path, train(tmp_path / "other", other, content["loss"], diverged=True))


def test_a_config_on_other_validation_data_is_not_put_on_record(study):
    _, loaded, _ = study
    elsewhere = dataclasses.replace(loaded, validation={"data.vocab_size": "7"})
    with pytest.raises(FitRefused, match="data.vocab_size is .* in the config, '7' in"):
        on_record.target_of(RunConfig.from_dict({}), elsewhere)


def test_what_was_changed_is_listed_and_a_verdict_counts_for_its_own_record_alone(study, record, tmp_path):
    path, target, content = record
    _, loaded, prediction = study
    verify(path, train(tmp_path / "run", target, content["loss"] * 1.001))
    assert [row.status for row in outcomes(path.parent)[0]] == ["pass"]
    path.unlink()
    register(path, prediction, loaded, target)
    assert [row.status for row in outcomes(path.parent)[0]] == ["pending"]
    (path.parent / "half.json").write_text('{"half')
    rows, unreadable = outcomes(path.parent)
    assert len(rows) == 1 and len(unreadable) == 1 and "half.json" in unreadable[0]
    with pytest.raises(FitRefused, match=r"without \.verdict"):
        register(path.with_name("x.y.verdict.json"), prediction, loaded, target)


def test_what_was_written_is_not_written_over_and_not_changed_unseen(study, record, tmp_path):
    path, target, content = record
    _, loaded, prediction = study
    with pytest.raises(FitRefused, match="never changed"):
        register(path, prediction, loaded, target)
    path.write_text(path.read_text().replace(str(content["loss"]), str(content["loss"] * 1.01)))
    with pytest.raises(FitRefused, match="it was changed, and proves nothing"):
        verify(path, train(tmp_path / "run", target, 2.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"params": 2.0}, "N is"), ({"tokens": 1.1}, "D is"), ({"flops": 0.9}, "C is")],
)
def test_another_run_than_that_on_record_is_refused(record, tmp_path, change, message):
    path, target, content = record
    ((name, factor),) = change.items()
    other = Target(**vars(target) | {name: getattr(target, name) * factor})
    with pytest.raises(FitRefused, match=message):
        verify(path, train(tmp_path / "other", other, content["loss"]))


def test_another_config_than_that_on_record_is_refused(study, tmp_path):
    _, loaded, prediction = study
    config = RunConfig.from_dict({})
    target = on_record.target_of(config, loaded)
    assert target.flops == target.flops_by_convention["executed"]
    path = tmp_path / "p.json"
    register(path, prediction, loaded, target)
    with pytest.raises(FitRefused, match="its config abc is not the one on record"):
        verify(path, train(tmp_path / "run", target, 2.0))
    assert verify(path, train(tmp_path / "same", target, 2.0, hash=config.content_hash())).status == "fail"


def test_a_prediction_of_another_size_is_higher_and_has_an_interval_about_it(study, tmp_path):
    _, loaded, prediction = study
    half = Target(prediction.best.params / 2, prediction.tokens_at(prediction.best.params / 2), BUDGET)
    content = register(tmp_path / "half.json", prediction, loaded, half)
    assert content["loss"] > prediction.best.loss
    low, high = content["intervals"]["95%"]
    assert low < content["loss"] < high
    assert sum(content["law"]["loss"]["weight"]) == pytest.approx(1.0)
    assert len(content["code_sha256"]) == len(content["runs"]["sha256"]) == 64
    with pytest.raises(FitRefused, match=r"NAME\.json"):
        register(tmp_path / "half.txt", prediction, loaded, half)


def test_the_report_lists_what_is_on_record_and_how_it_came_out(study, record, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_draw", lambda *_: {})
    root, _, _ = study
    path, target, content = record
    verify(path, train(tmp_path / "runs" / "large", target, content["loss"] * 1.002))
    shutil.copytree(path.parent, root / "predictions")
    page = report.write_report(root, replicates=20, output=root)
    facts = json.loads((root / "report.json").read_text())["on_record"]
    assert facts["calibration"]["judged"] == 1
    assert facts["calibration"]["mean_error"] == pytest.approx(-0.002, abs=1e-4)
    assert "Predictions on record" in page.read_text()
    assert [row.status for row in outcomes(root / "predictions")[0]] == ["pass"]


def test_from_the_command_line(study, tmp_path, capsys):
    root, _, prediction = study
    path = tmp_path / "p" / "large.json"
    words = [f"--study={root}", "--replicates=50", f"--budget={BUDGET}"]
    assert cli.main(["predict", *words, f"--register={path}"]) == 0
    assert f"on record: {path}" in capsys.readouterr().out
    target = Target(prediction.best.params, prediction.tokens_at_budget, BUDGET)
    assert cli.main(["verify", str(path), str(train(tmp_path / "run", target, prediction.best.loss))]) == 0
    assert "PASS large.json" in capsys.readouterr().out
    assert cli.main(["verify", str(path)]) == 2
    assert cli.main(["predict", "--law=besiroglu2024", "--budget=1e21", f"--register={tmp_path}/x.json"]) == 2
    assert "needs finished runs" in capsys.readouterr().err
