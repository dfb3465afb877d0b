"""From trained runs to trajectories, tables and a plot: their losses are those that training evaluated."""

import dataclasses
import json

import numpy as np
import pytest

from chinchilla_jax import cli
from chinchilla_jax.config import ConfigError, MeshConfig
from chinchilla_jax.evaluation.trajectories import series
from chinchilla_jax.evaluation.trajectories.collect import collect
from chinchilla_jax.training.loop import train
from chinchilla_jax.training.record.metrics import read_metrics


@pytest.fixture(scope="module")
def collected(kept_runs):
    """What was collected of both runs, and what was said."""
    said = []
    return collect(kept_runs[::-1], echo=said.append), said


def test_losses_are_those_of_the_runs_own_evaluations(collected, kept_runs):
    found, said = collected
    assert [run.name for run in found.runs] == ["small", "large"], "smallest first"
    assert found.weights.sum() == pytest.approx(1.0) and len(said) == 12 and said[-1].endswith("; 0 s left")
    for run, folder in zip(found.runs, kept_runs, strict=True):
        evaluated = {r["step"]: r["validation_loss"] for r in read_metrics(folder) if "validation_loss" in r}
        assert list(run.step) == [1, 2, 3, 4, 5, 6] == sorted(evaluated)
        np.testing.assert_allclose(run.loss, [evaluated[step] for step in run.step], atol=1e-6, rtol=0)
        result = json.loads((folder / "result.json").read_text())
        assert run.params == result["params"] and run.tokens[-1] == result["tokens"]
        assert run.flops[-1] == pytest.approx(result["flops_by_convention"]["executed"])


def test_a_mesh_and_fewer_rows_give_the_same_losses_of_the_same_tokens(collected, kept_runs):
    found = collect(kept_runs[:1], sequences=5, mesh=MeshConfig(data=2, fsdp=2), echo=lambda line: None)
    whole, part = collected[0].runs[0].nats, found.runs[0].nats
    assert part.shape[1] < whole.shape[1]
    assert {len(found.targets)} == {part.shape[1], len(found.weights)}
    first = next(n for n in range(len(found.targets), 0, -1) if (found.targets[:n] == collected[0].targets[:n]).all())
    assert first >= 32
    np.testing.assert_allclose(part[:, :first], whole[:, :first], rtol=2e-5, atol=2e-5)


def test_runs_of_other_text_or_without_checkpoints_are_refused(kept_runs, tiny_run, tmp_path):
    other = dataclasses.replace(tiny_run, data=dataclasses.replace(tiny_run.data, mixture="uniform"))
    train(other, tmp_path / "other", echo=lambda line: None)
    with pytest.raises(ConfigError, match=r"other was trained on other text.*one section `data`"):
        collect([kept_runs[0], tmp_path / "other"], sequences=4, echo=lambda line: None)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text((tmp_path / "other" / "config.json").read_text())
    with pytest.raises(ConfigError, match=r"empty has no readable checkpoint"):
        collect([tmp_path / "empty"])
    assert cli.main(["export", str(kept_runs[0]), str(tmp_path / "weights")]) == 0
    with pytest.raises(ConfigError, match=r"weights holds weights, and nothing of their training"):
        collect([tmp_path / "weights"])
    with pytest.raises(ConfigError, match=r"small is named twice"):
        collect([kept_runs[0], kept_runs[1], kept_runs[0]])
    with pytest.raises(ConfigError, match=r"small has the name of .*small; runs are told apart by the names"):
        collect([kept_runs[0], tmp_path / "another" / "small"])


def test_the_verb_goes_from_runs_to_tables_and_a_plot(kept_runs, tmp_path, capsys):
    file = tmp_path / "t.npz"
    assert cli.main(["trajectories", "collect", *map(str, kept_runs), f"--output={file}", "--sequences=8"]) == 0
    assert "12 checkpoints of 2 runs" in capsys.readouterr().out
    assert series.load(file).runs[1].name == "large"
    for action in ("classify", "match"):
        words = ["trajectories", action, str(file), f"--output={tmp_path / 'a.json'}"]
        assert cli.main(words + ["--after=10,50"] * (action == "classify")) == 0, capsys.readouterr().err
        out = capsys.readouterr().out
        assert "small" in out and "large" in out and ("stagnated" if action == "classify" else "equal tokens") in out
        assert set(json.loads((tmp_path / "a.json").read_text())) <= {"trends", "across", "matches"}
    assert cli.main(["trajectories", "plot", str(file), f"--output={tmp_path / 'p.png'}"]) == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["trajectories", "classify", str(file), "--after=95"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "has 1 checkpoints after 95%" in error
