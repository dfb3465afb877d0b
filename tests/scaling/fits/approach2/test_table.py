"""Which runs make a profile, and which budgets are refused."""

import numpy as np
import pytest

from chinchilla_jax.scaling.fits.approach2.isoflop import AKIMA, CORRECTED, fit_isoflop
from chinchilla_jax.scaling.read.runs import FitRefused, Run


def profile(budget, log_sizes, loss):
    return [Run(f"{budget:g}-{z}", np.exp(z), budget / (6 * np.exp(z)), budget, loss(z), budget) for z in log_sizes]


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


@pytest.mark.parametrize("preset", [CORRECTED, AKIMA], ids=lambda preset: preset.name)
@pytest.mark.parametrize(
    ("sizes", "curve", "reason"),
    [
        (np.linspace(10, 13, 7), lambda z: 3 - 0.07 * (z - 11.7) ** 2, "downward"),
        (np.linspace(10, 13, 7), lambda z: 3 + 0.07 * (z - 14.0) ** 2, "edge"),
        (np.linspace(10, 13, 3), lambda z: 3 + 0.07 * (z - 11.7) ** 2, "few_points"),
        (np.array([11.0, 11.0, 11.0, 12.0, 13.0]), lambda z: 3 + 0.07 * (z - 11.7) ** 2, "same_size"),
    ],
)
def test_other_curves_refuse_the_same_profiles(preset, sizes, curve, reason):
    good = [run for c in (1e12, 4e12) for run in profile(c, np.linspace(10, 14, 7), lambda z: 3 + 0.07 * (z - 12) ** 2)]
    fit = fit_isoflop(good + profile(16e12, sizes, curve), preset=preset, resampling=None)
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
