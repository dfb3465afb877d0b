"""Which law of mixtures is asked: planted constants come back from a table, stated ones from a file."""

import json

import numpy as np
import pytest

from chinchilla_jax.scaling.answers.serving.experts import Mixture
from chinchilla_jax.scaling.answers.serving.law import constants_of, fitted_law, points_of, stated_law
from chinchilla_jax.scaling.laws.form import form
from chinchilla_jax.scaling.laws.published import law, surface
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns, Run

PLANTED = {"A": 120.0, "B": 0.9, "C": 250.0, "F": 1.3, "alpha": 0.28, "beta": 0.6, "gamma": 0.27, "d": -0.001}
PLANTED |= {"E_start": 1.8, "E_max": 300.0}


def table(path, noise=0.0, experts=(1, 4, 16, 256), header="params,tokens,loss,experts", dense=1.0, seed=0):
    """Runs of the planted law, 3 sizes x 3 counts of tokens for each number of experts."""
    rng, rows = np.random.default_rng(seed), [header]
    for params in np.geomspace(2e7, 3e9, 3):
        for tokens in np.geomspace(1e9, 1e11, 3):
            for e in experts:
                loss = float(form("routed_served").value(PLANTED, params=params, tokens=tokens, experts=max(e, 1)))
                loss *= np.exp(noise * rng.standard_normal()) * (1.0 if e else 1.01)
                more = f",{params!r}" if "dense" in header else ""
                rows.append(f"{dense * float(params)!r},{float(tokens)!r},{loss!r},{e or ''}{more}")
    path.write_text("\n".join(rows).replace("np.float64(", "").replace(")", "") + "\n")
    return load_runs(path)


def test_planted_constants_are_recovered_without_noise(tmp_path):
    """Of a table in which `params` counts something else, and some rows do not say their experts."""
    header = "params,tokens,loss,experts,params_dense"
    loaded = table(tmp_path / "runs.csv", experts=(0, 1, 4, 16, 256), header=header, dense=7.0)
    fitted = fitted_law(loaded, starts=16)
    assert fitted.constants == pytest.approx(PLANTED, rel=1e-3)
    assert fitted.ranges["experts"] == (1.0, 256.0) and fitted.interval(1e9, 1e10, 8) is None
    assert fitted.ranges["D/N"] == pytest.approx((1e9 / 3e9, 1e11 / 2e7))
    notes = " ".join(fitted.notes)
    assert (
        "N is that of the dense model, as stated" in notes and "9 runs do not say how many experts they have" in notes
    )


def test_with_noise_the_law_lies_within_its_interval(tmp_path):
    fitted = fitted_law(table(tmp_path / "runs.csv", noise=0.003), replicates=40, starts=16)
    for params, tokens, experts in ((3e8, 1e10, 1), (3e8, 1e10, 16), (3e9, 1e11, 64), (1e10, 3e11, 16)):
        truth = float(form("routed_served").value(PLANTED, params=params, tokens=tokens, experts=experts))
        low, high = fitted.interval(params, tokens, experts)
        assert low < truth < high and high / low - 1 < 0.06, (params, tokens, experts)
    rows = constants_of(fitted).rows
    assert [row["constant"] for row in rows] == list(fitted.constants) and all("to" in row["95%"] for row in rows)
    assert "36 runs, by experts: 1 (9), 4 (9), 16 (9), 256 (9)" in " ".join(fitted.notes)


def test_what_a_token_uses_is_the_size_where_runs_state_it_and_tells_the_mixture():
    def run(name, params, loss=2.0):
        return Run(name, params, 1e9, 6e9 * params, loss)

    shared, routed = 4e6, 6e6  # of the dense model of the same products, of which two halves are used
    runs = tuple(run(f"e{e}", shared + routed * max(1.0, e / 2)) for e in (1, 4, 16))
    details = {r.name: {"params": r.params, "params_active": shared + routed} for r in runs}
    mixtures = zip(runs[1:], (4, 16), strict=True)
    planned = {r.name: {"config": {"model": {"experts": e, "active_experts": 2}}} for r, e in mixtures}
    planned["e1"] = {"config": {"model": {"d_ff": 8}}}
    columns = {"params": "params"}
    points = points_of(LoadedRuns("study", runs, (), columns, "6nd", details, planned))
    assert points.params.tolist() == [1e7] * 3 and points.experts.tolist() == [1.0, 4.0, 16.0]
    assert points.mixture == pytest.approx({"top_k": 2.0, "expert_size": 0.5, "routed_share": 0.6})
    for r, e in zip(runs, (1, 4, 16), strict=True):
        assert Mixture(**points.mixture).total(1e7, e) == pytest.approx(r.params)
        assert Mixture(**points.mixture).active(1e7, e) == pytest.approx(1e7)
    del details["e1"]["params_active"]  # of a dense model it is all of them
    assert points_of(LoadedRuns("study", runs, (), columns, "6nd", details, planned)).params.tolist() == [1e7] * 3
    # Where K differs from run to run nothing of the mixture is told; without active sizes params stands for N.
    details["e4"] |= {"active_experts": 1}
    assert points_of(LoadedRuns("study", runs, (), columns, "6nd", details, planned)).mixture == {}
    points = points_of(LoadedRuns("study", runs, (), columns, "6nd", {}, planned))
    assert points.params.tolist() == [r.params for r in runs] and points.counts == "params as it stands"


def test_mixtures_that_are_trained_densely_are_none_of_this_law():
    models = {"dense": {"experts": 1}, "sparse": {"experts": 4, "feed_forward": "top_k", "active_experts": 2}}
    models["ds_moe"] = {"experts": 16, "feed_forward": "ds_moe"}
    runs = tuple(Run(name, 1e7, 1e9, 6e16, 2.0) for name in models)
    planned = {name: {"config": {"model": model}} for name, model in models.items()}
    points = points_of(LoadedRuns("study", runs, (), {"params": "params"}, "6nd", {}, planned))
    assert points.experts.tolist() == [1.0, 4.0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"experts": (8,)}, "all 9 runs have 8"),
        ({"header": "params,tokens,loss,kind"}, "no run says how many"),
    ],
)
def test_runs_that_say_nothing_of_experts_are_refused(tmp_path, options, words):
    with pytest.raises(FitRefused, match=words) as refused:
        fitted_law(table(tmp_path / "runs.csv", **options))
    assert refused.value.reason == "columns"


def test_a_stated_law_is_asked_as_a_published_one(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"form": "routed_served", "constants": PLANTED, "notes": "made up"}))
    mine = stated_law(str(path))
    assert mine.constants == PLANTED and mine.boot is None and "made up" in mine.notes
    inputs = {"params": 1e9, "tokens": 1e11, "experts": 8}
    assert mine.loss(**inputs) == law(str(path)).value(**inputs) == form("routed_served").value(PLANTED, **inputs)
    path.write_text(
        json.dumps({"form": "chinchilla", "constants": {"E": 1.8, "A": 400, "B": 2e3, "alpha": 0.3, "beta": 0.4}})
    )
    assert surface(str(path)).E == 1.8
    with pytest.raises(FitRefused, match="from params, tokens;"):
        stated_law(str(path))


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("{", "unknown_law"),
        ("[]", "unknown_law"),
        (json.dumps({"form": "routed_served"}), "unknown_law"),
        (json.dumps({"form": "routed_served", "constants": {"A": "x"}}), "unknown_law"),
        (json.dumps({"form": "nobody", "constants": {}}), "unknown_form"),
        (json.dumps({"form": "routed_served", "constants": {"A": 1.0}}), "constants"),
        (json.dumps({"form": "routed_served", "constants": PLANTED | {"A": float("nan")}}), "constants"),
    ],
)
def test_a_file_that_states_no_law_is_refused(tmp_path, entry, reason):
    (tmp_path / "mine.json").write_text(entry)
    with pytest.raises(FitRefused) as refused:
        stated_law(str(tmp_path / "mine.json"))
    assert refused.value.reason == reason


def test_the_papers_law_says_that_its_constants_are_published_nowhere():
    with pytest.raises(FitRefused, match="published nowhere.*--law=FILE.json") as refused:
        stated_law("yun2024")
    assert refused.value.reason == "no_constants"
