"""Approach 3 from a planted law through plan, simulated losses and fit: how often do its intervals hold the truth?"""

import pytest

from chinchilla_jax.scaling.fits.approach3.parametric import fit_parametric, paper_starts
from chinchilla_jax.scaling.fits.resample import Resampling, interval
from chinchilla_jax.tools.simulate import simulate_isoflop
from tests.scaling.fits.approach3.cases import BUDGETS, FEW, SIZES, TARGET, TRUTH


def test_without_noise_the_law_itself_comes_back():
    runs = simulate_isoflop(TRUTH, BUDGETS, SIZES)
    fit = fit_parametric(runs, starts=paper_starts()[::45], resampling=Resampling(50))
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(fit.surface, name) == pytest.approx(getattr(TRUTH, name), rel=1e-5)
    low, high = interval(fit.boot.a, 0.95)
    assert low - 1e-6 <= TRUTH.a <= high + 1e-6


@pytest.mark.parametrize(("seeds", "least"), [(30, 28), pytest.param(100, 90, marks=pytest.mark.long)])
def test_bootstrap_intervals_hold_the_truth_in_at_least_9_of_10_seeds(seeds, least):
    held = {"a": 0, "N* at ten times the largest budget": 0}
    for seed in range(seeds):
        runs = simulate_isoflop(TRUTH, BUDGETS, SIZES, noise=0.003, seed=seed)
        boot = fit_parametric(runs, starts=FEW, resampling=Resampling(120), seed=seed).boot
        for name, samples, truth in (
            ("a", boot.a, TRUTH.a),
            ("N* at ten times the largest budget", boot.optimum(TARGET)[0], TRUTH.optimum(TARGET)[0]),
        ):
            low, high = interval(samples, 0.95)
            held[name] += low <= truth <= high
    assert min(held.values()) >= least, held
