"""Predicting the next budget: accuracy on planted laws, the recommendation rule, honest limits."""

import dataclasses

import numpy as np
import pytest

from chinchilla_jax.scaling.predict.analysis import analyse
from chinchilla_jax.scaling.predict.predict import predict, recommend
from chinchilla_jax.scaling.predict.verdicts import judge
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import FitRefused, Run, flops_per_token

TARGET = 1.08e13


def last(rollouts):
    """Those for the largest budget."""
    return [rollout for rollout in rollouts if rollout.budget == rollouts[-1].budget]


@pytest.fixture(scope="module")
def study(tmp_path_factory, write_study):
    root = tmp_path_factory.mktemp("study")
    best = write_study(root)
    return load_runs(root).runs, best


@pytest.fixture(scope="module")
def prediction(study):
    return predict(analyse(study[0], replicates=300), TARGET)


def test_both_approaches_predict_a_four_times_larger_budget(study, prediction, planted_flops_per_token):
    params, tokens, loss = study[1]
    assert prediction.extrapolation == pytest.approx(4.0)
    for estimate in prediction.estimates.values():
        assert estimate.loss == pytest.approx(loss, rel=0.01), estimate.approach
        assert estimate.params == pytest.approx(params, rel=0.15)
        assert estimate.tokens == pytest.approx(tokens, rel=0.15)
        for quantity in ("params", "tokens", "tokens_per_param", "loss"):
            (low, high), (lower, higher) = (estimate.intervals[quantity][level] for level in (0.8, 0.95))
            assert lower <= low < high <= higher
    low, high = prediction.best.intervals["loss"][0.95]
    assert low < loss < high
    assert prediction.tokens_at_budget == pytest.approx(
        TARGET / planted_flops_per_token(prediction.best.params), rel=0.01
    )


def test_a_larger_best_size_sees_fewer_tokens(prediction):
    """So D/N is as uncertain as N and D together; and all are those of the best size of a budget, not of its law."""
    estimate = prediction.estimates["isoflop"]
    width = {
        name: np.log(high / low)
        for name in ("params", "tokens", "tokens_per_param")
        for low, high in [estimate.intervals[name][0.95]]
    }
    assert width["tokens_per_param"] == pytest.approx(width["params"] + width["tokens"], rel=0.1)
    fit = prediction.fits.isoflop
    low, high = fit.params_law.interval(TARGET, 0.95)
    assert width["params"] == pytest.approx(np.log(high / low), rel=0.15)
    low, high = np.percentile(fit.boot_params.at(TARGET), [2.5, 97.5])
    assert width["params"] > 1.05 * np.log(high / low)
    assert estimate.intervals["loss"][0.8] == fit.loss_law.interval(TARGET, 0.8)


def test_loss_accuracy_over_noise_draws(tmp_path, write_study):
    errors = []
    for seed in range(1, 4):
        best = write_study(tmp_path / str(seed), seed=seed)
        errors.append(
            predict(analyse(load_runs(tmp_path / str(seed)).runs, replicates=0), TARGET).best.loss / best[2] - 1
        )
    assert np.abs(errors).max() < 0.01 and np.sqrt(np.mean(np.square(errors))) < 0.005


def test_rehearsals_of_every_budget_are_reported_and_choose_nothing(study, prediction):
    assert {r.candidate for r in last(prediction.rollouts)} == {"isoflop", "parametric"}
    assert {(r.budget, r.fitted) for r in prediction.rollouts} == {(9e11, 2), (2.7e12, 3)}
    assert prediction.recommended == "isoflop"
    # A change of the losses far below their noise changes the answer by as little.
    nudged = [dataclasses.replace(r, loss=r.loss * (1 + 1e-5 * (-1) ** i)) for i, r in enumerate(study[0])]
    other = predict(analyse(nudged, replicates=0), TARGET)
    assert other.recommended == "isoflop"
    assert other.best.loss == pytest.approx(prediction.best.loss, rel=1e-4)


def test_what_is_recommended_depends_on_what_could_be_fitted(study, prediction):
    two = [run for run in study[0] if run.role == "isoflop" and run.budget < 5e11]
    found = predict(analyse(two, replicates=0), TARGET)
    assert found.recommended == "parametric" and "2 profiles are too few" in found.why
    fits = prediction.fits
    alone = {name: recommend(dataclasses.replace(fits, **{name: None})) for name in ("isoflop", "parametric")}
    assert alone["parametric"] == ("isoflop", "isoflop is the only approach with a loss law that could be fitted")
    assert alone["isoflop"][0] == "parametric" and recommend(fits)[0] == "isoflop"


def test_rehearsal_does_not_see_the_hidden_budget(study, prediction):
    spoilt = [
        Run(r.name, r.params, r.tokens, r.flops, r.loss * (1.1 if r.budget == 2.7e12 else 1), r.budget, r.role)
        for r in study[0]
    ]
    other = predict(analyse(spoilt, replicates=0), TARGET)
    for a, b in zip(last(prediction.rollouts), last(other.rollouts), strict=True):
        assert (a.predicted_loss, a.predicted_params) == pytest.approx((b.predicted_loss, b.predicted_params))
        assert b.loss_error < a.loss_error - 0.05


def test_held_out_runs_change_nothing(study, prediction):
    fitted = [run for run in study[0] if run.role == "isoflop"]
    assert len(fitted) == len(study[0]) - 3
    alone = predict(analyse(fitted, replicates=300), TARGET)
    assert alone.estimates == prediction.estimates and alone.tokens_at_budget == prediction.tokens_at_budget


def test_a_table_without_budgets_leaves_approach_3(study):
    runs = [Run(r.name, r.params, r.tokens, r.flops, r.loss) for r in study[0] if r.role == "isoflop"]
    found = predict(analyse(runs, replicates=0), TARGET)
    assert found.recommended == "parametric" and "column `budget`" in found.fits.refused["isoflop"]


def test_neither_approach_gives_both_reasons():
    with pytest.raises(FitRefused, match="isoflop: .*parametric: ") as caught:
        predict(analyse([Run("a", 1e6, 1e7, 6e13, 3.0, 6e13)]), 1e15)
    assert caught.value.reason == "no_fit"


def test_far_extrapolation_and_thin_support_are_warned_of(study):
    warnings = " ".join(predict(analyse(study[0], replicates=0), 1e17).warnings)
    assert "times the largest budget" in warnings


def test_flops_per_token_from_runs(study, planted_flops_per_token):
    runs = [run for run in study[0] if run.role == "isoflop"]
    c = flops_per_token(runs)
    own = np.array([run.params for run in runs])
    assert c(own) == pytest.approx(planted_flops_per_token(own), rel=1e-9)
    between = np.geomspace(own.min(), own.max(), 50)
    assert c(between) == pytest.approx(planted_flops_per_token(between), rel=0.01)
    assert c(own.max() * 2) == pytest.approx(planted_flops_per_token(own.max() * 2), rel=0.03)
    six = [Run(r.name, r.params, r.tokens, 6 * r.params * r.tokens, r.loss) for r in runs]
    assert flops_per_token(six)(np.array([1e2, 1e9])) == pytest.approx([6e2, 6e9])


@pytest.mark.parametrize(
    "half, error, expected",
    [(0.01, 0.014, "pass"), (0.01, 0.016, "fail"), (0.03, 0.016, "pass"), (0.03, 0.031, "fail")],
)
def test_the_verdict_allows_what_the_prediction_says_of_itself_and_never_less_than_its_tolerance(
    prediction, half, error, expected
):
    loss = prediction.best.loss
    intervals = dict(prediction.best.intervals) | {"loss": {0.95: (loss * (1 - half), loss * (1 + half))}}
    best = dataclasses.replace(prediction.best, intervals=intervals)
    said = dataclasses.replace(prediction, estimates=dict(prediction.estimates) | {prediction.recommended: best})
    trained = Run("p", 1e6, 2e7, TARGET, loss / (1 + error), TARGET, "predicted")
    verdict = {v.name: v for v in judge(said, [trained], TARGET)}["loss"]
    assert verdict.status == expected and f"1.5%, or the half-width of its 95% interval, {half:.2%}" in verdict.question
