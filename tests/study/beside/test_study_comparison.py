"""A comparison from its config to its page, with runs that only pretend to be trained."""

import dataclasses
import json

import numpy as np
import pytest

from chinchilla_jax import data
from chinchilla_jax.config import ModelConfig
from chinchilla_jax.evaluation import experts
from chinchilla_jax.model.experts import Selection
from chinchilla_jax.scaling.read.directories import BY_EXPERTS
from chinchilla_jax.study import folder
from chinchilla_jax.study.beside import comparison
from chinchilla_jax.study.beside.comparison import compare_methods
from tests.study.cases import study_config

MODEL = ModelConfig(n_layers=2, d_model=64, n_heads=4, n_kv_heads=4, head_dim=16, d_ff=256, vocab_size=512)
WAYS = ("plain", "patch size=4", "ds_moe experts=4")


@pytest.fixture
def config():
    base = study_config(MODEL, sizes=2, size_ratio=1.5, ladder="width", seeds=(3,), methods=WAYS)
    return dataclasses.replace(base, train=dataclasses.replace(base.train, log_every=1))


@pytest.fixture
def pretended(monkeypatch):
    """Runs get the result that a training would leave; one of them diverges. Gives the names that were asked for."""
    asked, rng = [], np.random.default_rng(0)

    def run_manifest(backend, study, name, workers, echo, ready=None):
        for run in folder.unfinished(study, folder.read_manifest(study / name).runs):
            asked.append(run.name)
            path = folder.run_folder(study, run.name)
            path.mkdir(parents=True)
            worse = 1.02 if run.method.startswith("patch") else 1.0
            loss = 3.0 * (run.budget / 3e11) ** -0.06 * worse * (1 + 0.001 * rng.standard_normal())
            diverged = run.method.startswith("ds_moe") and run.name.endswith("-s2")
            result = run.facts() | {"loss": None if diverged else loss, "diverged": diverged, "time": {"step": 5.0}}
            (path / "result.json").write_text(json.dumps(result))
            (path / "config.json").write_text(json.dumps({"config": run.config}))
            lines = [{"step": s, "tokens": run.tokens * s / 20, "loss": loss + 1 - s / 20} for s in range(1, 21)]
            (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    monkeypatch.setattr(comparison, "run_manifest", run_manifest)
    monkeypatch.setattr(comparison, "_standing_by", lambda *arguments: None)
    monkeypatch.setattr(data, "prepare", lambda *arguments: None)
    monkeypatch.setattr(experts, "losses_of_run", lambda config, workdir, tops, echo: [row(top) for top in tops])
    return asked


def row(top):
    return experts.Loss(Selection(top=top), top / 4, 1.0, {"validation_loss": 3.0 + 0.1 / top})


def test_a_comparison_goes_from_its_config_to_its_page_and_again(config, pretended, tmp_path):
    told = []
    report = compare_methods(config, tmp_path, 2, told.append)
    facts = json.loads((tmp_path / "comparison.json").read_text())
    arms = {arm["name"]: arm["target"] for arm in facts["comparison"]["arms"]}
    assert list(arms) == list(WAYS) and arms["patch size=4"]["factor_95"][1] < 1.0
    assert report.exists() and len(pretended) == 2 * 3 * (3 + 2)
    evaluated = sorted(path.parent.name for path in (tmp_path / "runs").glob(f"*/{BY_EXPERTS}"))
    assert len(evaluated) == 4 and not any(name.endswith("-s2") for name in evaluated), "not the one that diverged"
    assert [row["selection"] for row in facts["by_experts"]["ds_moe experts=4"]] == ["top 4", "top 2", "top 1"]
    assert any("where the time went" in line for line in told)
    compare_methods(config, tmp_path, 2, told.append)
    assert len(pretended) == 30, "what is done is not done again"
