"""Approach 3: the refit of the published points, other misfits, tied exponents, recovery, coverage, refusals."""

import jax
import numpy as np
import pytest
import scipy.optimize

from chinchilla_jax.scaling.fits.approach3.parametric import fit_parametric, paper_starts
from chinchilla_jax.scaling.fits.minimise import L1, SQUARED_LOG
from chinchilla_jax.scaling.fits.resample import Resampling, interval
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.read.runs import FitRefused, Run


def law_runs(surface, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    grid = [(n, d) for n in np.geomspace(1e6, 1e9, 8) for d in n * np.array([3.0, 10.0, 30.0, 100.0])]
    return [
        Run(str(i), n, d, 6 * n * d, surface.loss(n, d) * (1 + noise * rng.standard_normal()))
        for i, (n, d) in enumerate(grid)
    ]


@pytest.fixture(scope="module")
def refit(figure_4_trimmed):
    return fit_parametric(figure_4_trimmed, resampling=Resampling(1000))


def check(fit, A, B, E, alpha, beta, a, objective):
    s = fit.surface
    assert fit.objective == pytest.approx(objective, rel=1e-6)
    assert (s.alpha, s.beta, s.E) == pytest.approx((alpha, beta, E), abs=2e-4)
    assert s.A == pytest.approx(A, rel=2e-3) and s.B == pytest.approx(B, rel=3e-3)
    assert s.a == pytest.approx(a, abs=2e-4) and s.a + s.b == pytest.approx(1)
    assert fit.converged and fit.gradient < 1e-4


def test_starts_are_those_of_the_paper():
    starts = paper_starts()
    assert starts.shape == (4500, 5) and len(np.unique(starts, axis=0)) == 4500
    assert starts.min(0).tolist() == [0, 0, -1, 0, 0] and starts.max(0).tolist() == [25, 25, 1, 2, 2]


def test_figure_4_without_outliers(refit):
    check(refit, 477.81, 2143.4, 1.81721, 0.34731, 0.36717, 0.5139, 1.0182781e-3)
    assert refit.n_starts == 4500 and refit.n_runs == 240
    assert 0.3 < refit.agreement < 0.6


def test_figure_4_all_points(figure_4):
    check(fit_parametric(figure_4, resampling=None), 495.69, 12844, 1.89133, 0.34931, 0.45304, 0.56464, 1.8260231e-3)


def test_tiny_threshold_is_the_absolute_loss(figure_4_trimmed):
    s = fit_parametric(figure_4_trimmed, misfit=L1, starts=paper_starts()[::9], resampling=None).surface
    assert (s.alpha, s.beta, s.E) == pytest.approx((0.34781, 0.36584, 1.81685), abs=3e-4)
    assert s.A == pytest.approx(481.98, rel=3e-3) and s.B == pytest.approx(2085.0, rel=4e-3)


def test_infinite_threshold_is_least_squares(figure_4_trimmed):
    n, d, loss = (np.log([getattr(r, f) for r in figure_4_trimmed]) for f in ("params", "tokens", "loss"))
    independent = scipy.optimize.least_squares(
        lambda t: np.logaddexp(np.logaddexp(t[0] - t[3] * n, t[1] - t[4] * d), t[2]) - loss,
        [6.3, 8.4, 0.6, 0.35, 0.4],
        x_scale="jac",
        xtol=1e-14,
        ftol=1e-14,
        gtol=1e-14,
    )
    fit = fit_parametric(figure_4_trimmed, misfit=SQUARED_LOG, starts=paper_starts()[::9], resampling=None)
    assert fit.objective == pytest.approx(independent.cost, rel=1e-9)
    assert fit.surface.alpha == pytest.approx(independent.x[3], abs=1e-6)


def test_bootstrap_intervals(refit):
    expected = {"E": (1.772, 1.870), "alpha": (0.319, 0.372), "beta": (0.331, 0.417), "a": (0.481, 0.555)}
    assert refit.boot_kept == 1.0
    for name, bounds in expected.items():
        width = bounds[1] - bounds[0]
        # 5% of the width for the method, and as much again for another random resampling.
        assert interval(getattr(refit.boot, name), 0.95) == pytest.approx(bounds, abs=0.1 * width), name
    assert np.std(refit.boot.a) == pytest.approx(0.0193, rel=0.1)


def test_planted_law_is_recovered():
    truth = Surface(1.7, 300.0, 900.0, 0.33, 0.37)
    s = fit_parametric(law_runs(truth), starts=paper_starts()[::9], resampling=None).surface
    assert (s.E, s.A, s.B, s.alpha, s.beta) == pytest.approx((1.7, 300, 900, 0.33, 0.37), rel=1e-5)


def test_bootstrap_covers_a_planted_law_with_noise():
    truth = Surface(1.7, 300.0, 900.0, 0.33, 0.37)
    covered = 0
    for seed in range(10):
        few = paper_starts()[::45]
        fit = fit_parametric(law_runs(truth, 0.004, seed), starts=few, resampling=Resampling(200), seed=seed)
        low, high = interval(fit.boot.a, 0.95)
        covered += low <= truth.a <= high
    assert covered >= 7


def test_refusals():
    truth = Surface(1.7, 300.0, 900.0, 0.33, 0.37)
    runs = law_runs(truth)
    for bad, reason in (
        (runs[:5], "few_points"),
        ([Run(r.name, 1e6, r.tokens, r.flops, r.loss) for r in runs], "same_size"),
        ([Run(r.name, r.params, 1e9, r.flops, r.loss) for r in runs], "same_size"),
        ([Run(r.name, r.params, 20 * r.params, r.flops, 2 + 50 * r.params**-0.3) for r in runs], "collinear"),
        ([Run(r.name, r.params, r.tokens, r.flops, 2 + 50 * r.params**-0.3) for r in runs], "no_optimum"),
        ([Run(r.name, r.params, r.tokens, r.flops, 2 + 1e-3 * r.params**0.2) for r in runs], "no_optimum"),
    ):
        with pytest.raises(FitRefused) as caught:
            fit_parametric(bad, starts=paper_starts()[::45], resampling=None)
        assert caught.value.reason == reason


def test_float64_is_not_switched_on_for_everyone(refit):
    assert not jax.config.jax_enable_x64
