"""Intervals of approach 2 by every scheme."""

import numpy as np
import pytest

from chinchilla_jax.scaling.fits.approach2.isoflop import AKIMA, CORRECTED, PAPER, fit_isoflop
from chinchilla_jax.scaling.fits.resample import MinimaScatter, Resampling, Residuals, interval
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.read.runs import Run
from chinchilla_jax.tools.simulate import plan_isoflop, simulate_isoflop

LAW = Surface(1.69, 406.4, 410.7, 0.34, 0.28)

BUDGETS = np.geomspace(1e18, 2.7e19, 4)


def profile(budget, log_sizes, loss):
    return [Run(f"{budget:g}-{z}", np.exp(z), budget / (6 * np.exp(z)), budget, loss(z), budget) for z in log_sizes]


SCHEMES = [
    (preset, scheme) for preset in (PAPER, AKIMA) for scheme in (Resampling(200), Resampling(100, 0.8), Residuals(200))
] + [(CORRECTED, MinimaScatter(200))]


@pytest.mark.parametrize("preset, scheme", SCHEMES, ids=lambda value: getattr(value, "name", str(value)))
def test_every_scheme_gives_an_interval_about_the_fit(preset, scheme):
    runs = simulate_isoflop(LAW, BUDGETS, plan_isoflop(LAW, BUDGETS), noise=0.001)
    fit = fit_isoflop(runs, preset=preset, resampling=scheme)
    for law, boot in ((fit.params_law, fit.boot_params), (fit.tokens_law, fit.boot_tokens)):
        low, high = interval(boot.exponent, 0.95)
        assert low < law.exponent < high and high - low < 0.5
    lowest = [profile.params.lowest for profile in fit.profiles]
    assert fit.loss_law.at(np.array(BUDGETS)) == pytest.approx(lowest, rel=1.5e-3)
    low, high = fit.loss_law.interval(BUDGETS[-1], 0.95)
    assert low < fit.loss_law.at(BUDGETS[-1]) < high and all(0 < p.kept_draws <= 1 for p in fit.profiles)


def test_residual_intervals_grow_with_the_noise_and_not_with_the_replicates():
    widths = {}
    for noise in (0.0005, 0.001, 0.002):
        runs = simulate_isoflop(LAW, BUDGETS, plan_isoflop(LAW, BUDGETS), noise=noise, seed=2)
        boot = fit_isoflop(runs, preset=PAPER, resampling=Residuals(1000)).boot_params.exponent
        widths[noise] = np.subtract(*interval(boot, 0.95)[::-1])
    assert widths[0.001] / widths[0.0005] == pytest.approx(2, rel=0.15)
    assert widths[0.002] / widths[0.001] == pytest.approx(2, rel=0.15)


def test_replicates_leave_out_the_budgets_they_would_have_refused():
    runs = simulate_isoflop(LAW, BUDGETS, plan_isoflop(LAW, BUDGETS, shift=(1, 1, 1, 3.2)), noise=0.002, seed=1)
    fit = fit_isoflop(runs, preset=PAPER, resampling=Resampling(300))
    assert fit.profiles[3].kept_draws < 1 and np.isfinite(fit.boot_params.exponent).all()
