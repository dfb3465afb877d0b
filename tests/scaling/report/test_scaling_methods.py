"""The page of a comparison of ways to train: gains, what they resolve, final losses, time, and losses by experts."""

import json

import numpy as np
import pytest

from chinchilla_jax.config import RunConfig
from chinchilla_jax.scaling.report.methods import BY_EXPERTS, write_methods
from tests.study.cases import study_config

BUDGETS, WAYS = (5e10, 1e11, 2e11), ("plain", "patch size=4", "ds_moe experts=4")


@pytest.fixture
def study(tmp_path):
    """The folder of a comparison whose runs are finished."""
    study, rng, manifest = tmp_path, np.random.default_rng(0), [{"manifest": {"config": {}}}]
    config = RunConfig(train=study_config().train)
    for way in WAYS:
        for budget in BUDGETS if way == "plain" else BUDGETS[1:2]:
            for seed in range(4):
                loss = 3.0 * (budget / 1e11) ** -0.06 * {"patch size=4": 1.03}.get(way, 1.0)
                loss *= 1 + 0.002 * rng.standard_normal()
                folder = study / "runs" / f"{way[:3]}{budget:.0e}-s{seed}"
                folder.mkdir(parents=True)
                result = {"loss": loss, "params": 50000, "params_non_embedding": 40000, "tokens": budget / 3e5,
                          "budget": budget, "role": "isoflop", "convention": "executed", "method": way, "seed": seed,
                          "flops": budget, "flops_by_convention": {"executed": budget}, "diverged": False,
                          "time": {"step": 10.0 if way == "plain" else 15.0}}  # fmt: skip
                (folder / "result.json").write_text(json.dumps(result))
                (folder / "config.json").write_text(json.dumps({"config": config.to_dict()}))
                lines = [{"tokens": result["tokens"] * s / 20, "loss": loss + 1 - s / 20} for s in range(1, 21)]
                (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
                if way.startswith("ds_moe"):
                    rows = [{"selection": f"top {k}", "used": k / 4, "loss": loss + 0.01 * (4 - k)} for k in (4, 2, 1)]
                    (folder / BY_EXPERTS).write_text(json.dumps({"rows": rows}))
                manifest.append({"name": folder.name, "role": "isoflop"})
    (study / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in manifest))
    return study


def test_the_page(study):
    told = []
    path = write_methods(study, told.append)
    facts = json.loads((study / "comparison.json").read_text())
    arms = {arm["name"]: arm for arm in facts["comparison"]["arms"]}
    assert list(arms)[0] == "plain" and arms["patch size=4"]["target"]["factor_95"][1] < 1.0
    html, text = path.read_text(), "\n".join(told)
    for words in ("What the comparison can resolve", "Final losses at 1e11 FLOPs", "Loss by the experts that are used",
                  "1.50 x that of plain for a FLOP", "could not be told from none"):  # fmt: skip
        assert words in html and words in text, words
    assert [row["selection"] for row in facts["by_experts"]["ds_moe experts=4"]] == ["top 4", "top 2", "top 1"]
    assert sorted(facts["plots"]) == ["Frontiers and gain", "Loss by experts used", "Loss on the way"]
    assert all((study / plot).stat().st_size > 10_000 for plot in facts["plots"].values())
