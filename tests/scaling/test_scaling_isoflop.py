"""Approach 2: published data, the closed-form bias of parabolas, refusals."""

import numpy as np
import pytest

from chinchilla_jax.scaling.frontier import fit_offset
from chinchilla_jax.scaling.isoflop import fit_isoflop
from chinchilla_jax.scaling.resample import Resampling, interval
from chinchilla_jax.scaling.runs import FitRefused, Run
from chinchilla_jax.scaling.surface import Surface


def profile(budget, log_sizes, loss):
    return [Run(f"{budget:g}-{z}", np.exp(z), budget / (6 * np.exp(z)), budget, loss(z), budget) for z in log_sizes]


def test_chinchilla_figure_4(figure_4_trimmed):
    fit = fit_isoflop(figure_4_trimmed, resampling=Resampling(1000))
    assert [len(p.runs) for p in fit.profiles] == [8, 16, 13, 9, 8, 8, 8, 15, 5] and not fit.refusals
    assert fit.params_law.exponent == pytest.approx(0.49919, abs=1e-4)
    assert fit.params_law.coefficient == pytest.approx(0.09101, rel=1e-3)
    assert fit.params_law.at(5.76e23) == pytest.approx(66.1e9, rel=1e-3)
    assert fit.tokens_law.exponent == pytest.approx(0.51314, abs=1e-4)
    assert fit.tokens_law.coefficient == pytest.approx(0.9921, rel=1e-3)
    optima = [155e6, 267e6, 511e6, 823e6, 1145e6, 1687e6, 2204e6, 2857e6, 3484e6]
    assert [p.params.best for p in fit.profiles] == pytest.approx(optima, rel=2e-3)
    low, high = interval(fit.boot_params.exponent, 0.8)
    assert low < 0.49919 < high and 0.01 < high - low < 0.08


@pytest.mark.parametrize(
    ("exponents", "factor", "intercept", "error"),
    [
        ((0.34, 0.28), 2, -0.556779, -0.0033),
        ((0.34, 0.28), 4, -0.561045, -0.0130),
        ((0.34, 0.28), 8, -0.568151, -0.0290),
        ((0.34, 0.28), 16, -0.578092, -0.0510),
        ((0.465, 0.155), 2, None, -0.0167),
        ((0.465, 0.155), 16, None, -0.2312),
        ((0.31, 0.31), 16, None, 0.0),
    ],
)
def test_bias_of_a_parabola_without_noise(exponents, factor, intercept, error):
    surface = Surface(1.69, 406.4, 410.7, *exponents)
    runs = []
    for budget in np.geomspace(1e17, 1e21, 5):
        best = surface.optimum(budget)[1]
        for tokens in best * np.geomspace(1 / factor, factor, 15):
            params = budget / (6 * tokens)
            runs.append(Run(f"{budget}{tokens}", params, tokens, budget, surface.loss(params, tokens), budget))
    law = fit_isoflop(runs, resampling=None).tokens_law
    assert law.exponent == pytest.approx(surface.b, abs=1e-6)
    if intercept is not None:
        assert np.log10(law.coefficient) == pytest.approx(intercept, abs=1e-6)
    assert law.at(1e24) / surface.optimum(1e24)[1] - 1 == pytest.approx(error, abs=6e-5)


def test_parabola_recovers_planted_values():
    runs = profile(1e12, np.linspace(10, 13, 7), lambda z: 3 + 0.07 * (z - 11.7) ** 2)
    runs += profile(4e12, np.linspace(11, 14, 7), lambda z: 2.8 + 0.07 * (z - 12.4) ** 2)
    fit = fit_isoflop(runs, resampling=Resampling(50))
    first = fit.profiles[0]
    assert np.log(first.params.best) == pytest.approx(11.7, abs=1e-9)
    assert first.params.curvature == pytest.approx(0.07, rel=1e-9)
    assert (first.params.lowest, first.scatter) == pytest.approx((3, 0), abs=1e-9)
    # Exact data leave the bootstrap nothing to vary.
    assert np.ptp(fit.boot_params.exponent) < 1e-7


@pytest.mark.parametrize(
    ("sizes", "curve", "reason"),
    [
        (np.linspace(10, 13, 7), lambda z: 3 - 0.07 * (z - 11.7) ** 2, "downward"),
        (np.linspace(10, 13, 7), lambda z: 3 + 0.07 * (z - 13.2) ** 2, "edge"),
        (np.linspace(10, 13, 3), lambda z: 3 + 0.07 * (z - 11.7) ** 2, "few_points"),
        (np.array([11.0, 11.0, 11.0, 12.0, 13.0]), lambda z: 3 + 0.07 * (z - 11.7) ** 2, "same_size"),
        (np.full(6, 11.0), lambda z: 3.0, "same_size"),
    ],
)
def test_unusable_profiles_are_refused_with_a_reason(sizes, curve, reason):
    good = [
        run for budget in (1e12, 4e12) for run in profile(budget, np.linspace(10, 14, 7), lambda z: 3 + (z - 12) ** 2)
    ]
    fit = fit_isoflop(good + profile(16e12, sizes, curve), resampling=None)
    assert [p.budget for p in fit.profiles] == [1e12, 4e12]
    assert [(r.budget, r.reason) for r in fit.refusals] == [(16e12, reason)]


def test_one_budget_is_refused():
    runs = profile(1e12, np.linspace(10, 13, 7), lambda z: 3 + 0.07 * (z - 11.7) ** 2)
    with pytest.raises(FitRefused, match="two usable profiles") as caught:
        fit_isoflop(runs)
    assert caught.value.reason == "few_budgets"


def test_no_budget_is_refused():
    with pytest.raises(FitRefused, match="column `budget`") as caught:
        fit_isoflop([Run("a", 1e6, 1e7, 6e13, 3.0)])
    assert caught.value.reason == "no_budget"


def test_held_out_runs_do_not_enter_the_fit():
    runs = [r for c in (1e12, 4e12) for r in profile(c, np.linspace(10, 14, 7), lambda z: 3 + (z - 12) ** 2)]
    held = Run("held", 1e5, 1e7, 16e12, 9.0, 16e12, "predicted")
    assert len(fit_isoflop([*runs, held], resampling=None).profiles) == 2


def test_offset_law_recovers_its_constants_in_every_replicate():
    flops = np.geomspace(1e11, 2.7e12, 4)
    truth = np.array([[1.7, 900.0, 0.22], [0.0, 50.0, 0.09]])
    losses = truth[:, :1] + truth[:, 1:2] * flops ** -truth[:, 2:]
    law = fit_offset(flops, losses)
    assert law.irreducible == pytest.approx(truth[:, 0], abs=2e-3)
    assert law.exponent == pytest.approx(truth[:, 2], rel=2e-3)
    assert law.at(1e13) == pytest.approx(truth[:, 0] + truth[:, 1] * 1e13 ** -truth[:, 2], rel=1e-5)


def test_offset_law_never_goes_below_zero_loss():
    flops = np.geomspace(1e11, 2.7e12, 4)
    # Steepening in log-log: an unbounded fit would ask for E < 0.
    law = fit_offset(flops, 6.0 - 0.9 * np.log10(flops / 1e11))
    assert law.irreducible == 0.0
