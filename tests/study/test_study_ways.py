"""Ways to train as an axis of a study: every cell in each of them, at the same C, and what cannot be is refused."""

import dataclasses

import pytest

from chinchilla_jax.config import ConfigError, ModelConfig
from chinchilla_jax.ledger import count_active, count_run
from chinchilla_jax.method import Growth, GrowthStage, Patch
from chinchilla_jax.study import ways
from chinchilla_jax.study.beside.comparison import plan_comparison
from chinchilla_jax.study.plan import plan
from tests.study.cases import study_config

MODEL = ModelConfig(n_layers=2, d_model=64, n_heads=4, n_kv_heads=4, head_dim=16, d_ff=256, vocab_size=512,
                    scan_layers=False)  # fmt: skip


def config(**study):
    """A study whose shapes can be halved."""
    base = study_config()
    changed = dataclasses.replace(base.study, ladder="width", **study)
    return dataclasses.replace(base, model=MODEL, study=changed)


def test_a_text_says_how_a_run_is_trained():
    base = dataclasses.replace(config(), study=None)
    assert ways.trained(base, "plain") is base
    assert ways.trained(base, "patch size = 8 share=0.5").method == Patch(size=8, share=0.5)
    stage = GrowthStage(share=0.3, d_model=32, n_heads=2, n_kv_heads=2, d_ff=128)
    assert ways.trained(base, "growth share=0.3 rewind=true").method == Growth(stages=(stage,), rewind=True)
    ds_moe = ways.trained(base, "ds_moe experts=8 router_loss=0.02")
    assert (ds_moe.model.feed_forward, ds_moe.model.experts, ds_moe.model.d_ff) == ("ds_moe", 8, 256)
    assert ds_moe.optimizer.router_loss == 0.02
    sparse = ways.trained(base, "top_k experts=8 active=2").model
    assert (sparse.d_ff, sparse.experts, sparse.active_experts) == (1024, 8, 2)
    assert count_active(sparse) == pytest.approx(count_active(MODEL), rel=0.02), "as many parameters meet a token"


@pytest.mark.parametrize("texts, told", [
    (("plain", "pach"), r"unknown way 'pach' .did you mean 'patch'\?.; one of plain, patch, growth"),
    (("plain", "patch sise=4"), "'sise=4' in 'patch sise=4': write KEY=VALUE .did you mean 'size'"),
    (("plain", "patch size=four"), "size in 'patch size=four': expected int, got 'four'"),
    (("plain", "growth rewind=yes"), "true or false, got 'yes'"),
    (("patch",), "add 'plain'"),
    (("plain", "patch size=4", "patch size = 4"), "lists a way to train twice"),
    (("plain", ""), "unknown way ''"),
    (("plain", "patch", "patch size=4"), "lists a way to train twice"),
    (("plain", "patch size=4 size=2"), "says size twice"),
    (("plain", "top_k active=0"), "active in 'top_k active=0': must be positive and finite"),
])  # fmt: skip
def test_texts_that_cannot_be_read_are_refused_at_the_key(texts, told):
    with pytest.raises(ConfigError, match=f"study.methods: .*{told}"):
        ways.check(texts)


def test_every_cell_is_trained_in_every_way_at_the_same_c():
    methods = ("plain", "patch size=4 share=0.667", "top_k experts=4 active=2")
    runs, plain = plan(config(methods=methods)).runs, plan(config()).runs
    assert [run.method for run in runs[:3]] == list(methods) and len(runs) == 3 * len(plain)
    for run in runs:
        assert run.cost == pytest.approx(run.budget, rel=0.01)
        counted = count_run(run.run_config())
        assert counted.flops == run.flops and counted.tokens == run.tokens
    alone = [run for run in runs if run.method == "plain"]
    assert [(run.name, run.config_hash) for run in alone] == [(run.name, run.config_hash) for run in plain]
    assert not any(run.method for run in plain), "a study of one way does not name it"
    assert "method" not in plain[0].facts() and runs[1].facts()["method"] == methods[1]


def test_a_shape_that_cannot_be_trained_so_is_left_out_with_the_reason():
    manifest = plan(config(methods=("plain", "growth factor=4")))
    grown = [run for run in manifest.runs if run.method != "plain"]
    reasons = [row["reason"] for row in manifest.header["dropped"]]
    assert grown and reasons and all(reason.startswith("growth factor=4: ") for reason in reasons)
    assert len(grown) + len(reasons) == len(manifest.runs) - len(grown)
    with pytest.raises(ConfigError, match="study.methods: no size can be trained so, the first: growth factor=32: "):
        plan(config(methods=("plain", "growth factor=32")))


def test_experts_are_made_of_a_dense_layer_of_their_kind():
    base = dataclasses.replace(config(), study=None)
    gated = dataclasses.replace(base, model=dataclasses.replace(MODEL, feed_forward="swiglu"))
    assert ways.trained(gated, "top_k").model.feed_forward == "top_k_swiglu"
    for model, way in ((gated, "ds_moe"), (ways.trained(base, "top_k"), "top_k")):
        with pytest.raises(ways.Unfit):
            ways.trained(model, way)


@pytest.mark.parametrize("study, key", [
    ({"schedule": "trunk", "methods": ("plain", "patch")}, "study.methods"),
])  # fmt: skip
def test_trunks_are_trained_plainly(study, key):
    base = config(**study)
    cooled = dataclasses.replace(base, optimizer=dataclasses.replace(base.optimizer, schedule="cooldown"))
    with pytest.raises(ConfigError, match=f"{key}: trunks and branches are trained plainly"):
        plan(cooled)


def test_a_study_names_its_ways_and_has_no_method_of_its_own():
    with pytest.raises(ConfigError, match="method: a study says how it trains in study.methods"):
        plan(dataclasses.replace(config(), method=Patch()))


def test_runs_say_which_plain_model_they_stand_for():
    manifest = plan_comparison(config(sizes=2, methods=("plain", "top_k experts=8 active=2")))
    of_way = {way: [run for run in manifest.runs if run.method.startswith(way)] for way in ("plain", "top_k")}
    sizes = sorted({run.params for run in of_way["plain"]})
    assert sorted({run.params_plain for run in of_way["top_k"]}) == sizes
    assert all(run.params > 1.5 * run.params_plain for run in of_way["top_k"])
    assert all(run.params == run.params_plain == run.facts()["params_plain"] for run in of_way["plain"])


def test_the_models_of_a_comparison_have_no_method_of_their_own():
    with pytest.raises(ConfigError, match="method: a study says how it trains in study.methods"):
        plan_comparison(dataclasses.replace(config(methods=("plain", "patch")), method=Patch()))


def test_a_comparison_trains_plainly_around_the_budget_of_the_others():
    budgets = sorted(config().study.budgets)[:3]
    manifest = plan_comparison(config(budgets=tuple(budgets), sizes=2, seeds=(2,), methods=("plain", "patch")))
    cells = {(run.budget, run.method) for run in manifest.runs}
    assert cells == {*((budget, "plain") for budget in budgets), (budgets[1], "patch")}
    assert len(manifest.runs) == 4 * 2 * 2 and len({run.name for run in manifest.runs}) == len(manifest.runs)
    seeds = {run.config["train"]["seed"] for run in manifest.runs}
    assert len(seeds) == 2


@pytest.mark.parametrize("study, told", [
    ({"methods": ("plain",)}, "study.methods: needs a way to train beside"),
    ({"methods": ("plain", "patch"), "budgets": (1e10, 2e10)}, "study.budgets: needs budgets around"),
    ({"methods": ("plain", "growth factor=32"), "sizes": 1}, "study.methods: growth factor=32: N = .* cannot begin"),
    ({"methods": ("plain", "patch"), "schedule": "trunk"}, "trunk"),
])  # fmt: skip
def test_a_comparison_that_cannot_be_planned_says_why(study, told):
    with pytest.raises(ConfigError, match=told):
        plan_comparison(config(**study))
