"""Approach 3 beyond its default: other misfits, tied exponents, variable projection, as published, profiles."""

import numpy as np
import pytest
import scipy.stats

from chinchilla_jax.scaling.fits.approach3.as_published import fit_as_published
from chinchilla_jax.scaling.fits.approach3.likelihood import profile_likelihood, quantities
from chinchilla_jax.scaling.fits.approach3.objective import SurfaceProblem
from chinchilla_jax.scaling.fits.approach3.parametric import fit_parametric, paper_starts
from chinchilla_jax.scaling.fits.approach3.varpro import fit_varpro
from chinchilla_jax.scaling.fits.multistart import (
    HUBER,
    L1,
    MISFITS,
    SQUARED_LOG,
    SQUARED_RAW,
    Misfit,
)
from chinchilla_jax.scaling.fits.resample import PAPER, Resampling, interval
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.read.runs import FitRefused, Run

FEW = paper_starts()[::45]
TRUTH = Surface(1.7, 300.0, 900.0, 0.33, 0.37)
# Constants of eq. 10 before rounding (TeX source, quoted by Besiroglu et al. 2024), as a start in a, b, e, alpha, beta.
PUBLISHED = np.array([[6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083]])


def law_runs(noise=0.0, seed=0, surface=TRUTH):
    rng = np.random.default_rng(seed)
    grid = [(n, d) for n in np.geomspace(1e6, 1e9, 8) for d in n * np.array([3.0, 10.0, 30.0, 100.0])]
    return [Run(str(i), n, d, 6 * n * d, surface.loss(n, d) * np.exp(noise * rng.standard_normal()))
            for i, (n, d) in enumerate(grid)]  # fmt: skip


@pytest.mark.parametrize(
    ("misfit", "A", "B", "E", "alpha", "beta", "a"),
    [
        (L1, 481.98, 2085.0, 1.81685, 0.34781, 0.36584, 0.51263),
        (SQUARED_RAW, 567.8, 7582.0, 1.8828, 0.3576, 0.4276, 0.5446),
    ],
)
def test_figure_4_under_other_misfits(figure_4_trimmed, misfit, A, B, E, alpha, beta, a):
    s = fit_parametric(figure_4_trimmed, misfit=misfit, starts=FEW, resampling=None).surface
    assert (s.alpha, s.beta, s.E, s.a) == pytest.approx((alpha, beta, E, a), abs=3e-4)
    assert (s.A, s.B) == pytest.approx((A, B), rel=4e-3)


def test_squared_raw_loss_of_figure_4_has_the_known_residual_sum(figure_4_trimmed):
    fit = fit_parametric(figure_4_trimmed, misfit=SQUARED_RAW, starts=FEW, resampling=None)
    assert 2 * fit.objective == pytest.approx(0.0832, abs=5e-5)
    residual = fit.surface.loss(*(np.array([getattr(r, f) for r in figure_4_trimmed]) for f in ("params", "tokens")))
    residual -= [r.loss for r in figure_4_trimmed]
    assert fit.objective == pytest.approx(0.5 * (residual**2).sum(), rel=1e-9)


def test_variable_projection_finds_the_same_minimum(figure_4_trimmed):
    descent = fit_parametric(figure_4_trimmed, misfit=SQUARED_RAW, starts=FEW, resampling=None)
    projected = fit_varpro(figure_4_trimmed)
    assert projected.objective == pytest.approx(descent.objective, rel=1e-8)
    assert projected.surface.a == pytest.approx(descent.surface.a, abs=1e-5)
    planted = fit_varpro(law_runs()).surface
    assert (planted.E, planted.alpha, planted.beta) == pytest.approx((1.7, 0.33, 0.37), rel=1e-5)


def test_variable_projection_refuses_a_law_without_a_floor():
    with pytest.raises(FitRefused, match="floor") as caught:
        fit_varpro(law_runs(surface=Surface(1e-9, 60.0, 90.0, 0.1, 0.12), noise=0.01, seed=3))
    assert caught.value.reason == "no_optimum"


@pytest.mark.parametrize("misfit", MISFITS.values(), ids=MISFITS)
def test_tied_exponents_are_equal_and_fit_no_better(misfit):
    runs = law_runs(0.004)
    tied = fit_parametric(runs, misfit=misfit, tied=True, starts=paper_starts()[::3], resampling=Resampling(20))
    free = fit_parametric(runs, misfit=misfit, starts=FEW, resampling=None)
    assert tied.surface.alpha == pytest.approx(tied.surface.beta, rel=1e-12) and tied.surface.a == pytest.approx(0.5)
    assert tied.objective >= free.objective * (1 - 1e-9)
    assert tied.boot.alpha == pytest.approx(tied.boot.beta) and np.ptp(tied.boot.alpha) > 0


def test_tied_exponents_recover_a_law_that_is_tied():
    truth = Surface(1.9, 500.0, 1500.0, 0.353, 0.353)
    s = fit_parametric(law_runs(surface=truth), tied=True, starts=paper_starts()[::3], resampling=None).surface
    assert (s.E, s.A, s.B, s.alpha) == pytest.approx((1.9, 500, 1500, 0.353), rel=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("misfit", [HUBER, SQUARED_RAW, Misfit("wide", "raw", 0.05)], ids=lambda m: m.name)
def test_derivatives_are_those_of_the_value(misfit, tied):
    problem = SurfaceProblem(law_runs(0.01), tied)
    value = problem.objective(misfit, np.random.default_rng(0).integers(0, 3, (4, 32)).astype(float), np.arange(4))
    rows = np.arange(4)
    theta = problem.standardise(np.array([[5.0, 6.5, 0.5, 0.3, 0.35]] * 4))
    theta = theta + 0.1 * np.random.default_rng(1).standard_normal(theta.shape)
    _, gradient, hessian = value(theta, rows)
    for i, step in enumerate(np.eye(problem.unknowns) * 1e-6):
        (up, g_up, _), (down, g_down, _) = value(theta + step, rows), value(theta - step, rows)
        assert gradient[:, i] == pytest.approx((up - down) / 2e-6, rel=2e-4, abs=1e-4 * np.abs(gradient).max())
        if misfit is not HUBER:  # its second derivative jumps where a residual crosses the threshold
            slope = (g_up - g_down) / 2e-6
            assert hessian[:, :, i] == pytest.approx(slope, rel=2e-4, abs=1e-4 * np.abs(hessian).max())


def test_flat_directions_are_named(figure_4_trimmed):
    flat = fit_parametric(figure_4_trimmed, starts=FEW, resampling=None).flat
    assert {pair[:2] for pair in flat} == {("A", "alpha"), ("B", "beta")}
    assert all(correlation > 0.998 for *_, correlation in flat)


class TestAsPublished:
    """Averaging the objective stops the optimiser early: the constants, and the interval, of the paper."""

    def test_the_sum_arrives_from_a_good_start_and_the_mean_does_not(self, figure_4_trimmed):
        start = np.array([[15.0, 0.0, 1.0, 0.0, 0.0]])
        optimum = 1.0182781e-3
        summed = fit_as_published(figure_4_trimmed, average=False, starts=start, resampling=None)
        averaged = fit_as_published(figure_4_trimmed, starts=start, resampling=None)
        assert summed.objective == pytest.approx(optimum, rel=1e-4)
        assert averaged.objective > 10 * optimum and averaged.gradient > 10 * summed.gradient

    def test_averaged_it_stays_near_the_published_exponent_with_an_interval_far_too_narrow(self, figure_4_trimmed):
        published = fit_as_published(figure_4_trimmed, starts=PUBLISHED, resampling=PAPER)
        low, high = interval(published.boot.a, 0.8)
        assert published.surface.a == pytest.approx(0.4565, abs=5e-4)
        assert high - low < 0.003  # Table 2 prints 0.454 to 0.455
        converged = fit_parametric(figure_4_trimmed, starts=FEW, resampling=PAPER)
        low, high = interval(converged.boot.a, 0.8)
        assert (low, high) == pytest.approx((0.502, 0.529), abs=0.005) and high - low > 0.02

    @pytest.mark.long
    def test_the_best_of_all_4500_starts_has_the_exponent_of_the_paper(self, figure_4_trimmed):
        fit = fit_as_published(figure_4_trimmed, resampling=None)
        # Where a stopped descent lies depends on rounding; that it is near 0.45 and 8% above the optimum does not.
        assert fit.surface.a == pytest.approx(0.4497, abs=3e-3)
        assert fit.objective == pytest.approx(1.108e-3, rel=5e-3) and fit.agreement < 0.002


class TestProfileLikelihood:
    def test_agrees_with_the_delta_method_where_the_law_is_nearly_linear(self):
        runs = law_runs(2e-4)
        fit = fit_parametric(runs, misfit=SQUARED_LOG, starts=FEW, resampling=None)
        problem = SurfaceProblem(runs)
        jacobian = problem.jacobian(problem.locate(fit.surface))
        sd = np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian)) * 2 * fit.objective / (len(runs) - 5))
        t = scipy.stats.t.ppf(0.975, len(runs) - 5)
        for name, expected in zip(("ln A", "ln B", "alpha", "beta"), sd[[0, 1, 3, 4]], strict=True):
            profile = profile_likelihood(runs, fit, name, quantities()[name])
            low, high = profile.interval
            assert (profile.best - low, high - profile.best) == pytest.approx((t * expected,) * 2, rel=0.05), name

    def test_a_robust_misfit_pays_for_it_with_width_as_theory_has_it(self):
        # Under normal noise the median's variance is pi / 2 of the mean's (Huber 1964): 1.25 in width.
        ratios = []
        for seed in range(12):
            runs, widths = law_runs(0.004, seed), []
            for misfit in (HUBER, SQUARED_LOG):
                fit = fit_parametric(runs, misfit=misfit, starts=FEW[::5], resampling=None)
                low, high = profile_likelihood(runs, fit, "ln N*", quantities(1e21)["ln N*"]).interval
                widths.append(high - low)
            ratios.append(widths[0] / widths[1])
        assert 1.05 < np.median(ratios) < 1.45, ratios

    def test_passes_through_the_fit_and_rises_away_from_it(self, figure_4_trimmed):
        fit = fit_parametric(figure_4_trimmed, starts=FEW, resampling=None)
        for name, quantity in quantities(5.76e23).items():
            profile = profile_likelihood(figure_4_trimmed, fit, name, quantity)
            low, high = profile.interval
            assert low < profile.best < high, name
            assert profile.drop[profile.values == profile.best] == 0 and profile.drop.min() == 0
            right = profile.drop[profile.values >= profile.best]
            assert (np.diff(right) > -0.05).all() and right[-1] > 8, name

    def test_covers_the_planted_prediction(self):
        covered = 0
        for seed in range(40):
            runs = law_runs(0.004, seed)
            fit = fit_parametric(runs, misfit=SQUARED_LOG, starts=FEW[::5], resampling=None)
            truth = np.log(TRUTH.optimum(1e21)[0])
            low, high = profile_likelihood(runs, fit, "ln N*", quantities(1e21)["ln N*"]).interval
            covered += low <= truth <= high
        assert covered >= 34  # 38 expected; fewer than 34 would happen once in 300

    def test_a_flat_direction_has_an_open_end(self):
        # Four sizes over a factor of 1.3 do not say how loss falls with N.
        grid = [(n, d) for n in np.geomspace(1e8, 1.3e8, 4) for d in np.geomspace(1e8, 1e11, 6)]
        losses = [TRUTH.loss(n, d) * np.exp(0.002 * np.sin(7.0 * i)) for i, (n, d) in enumerate(grid)]
        runs = [Run(str(i), *grid[i], 6 * np.prod(grid[i]), loss) for i, loss in enumerate(losses)]
        fit = fit_parametric(runs, misfit=SQUARED_LOG, starts=FEW, resampling=None)
        low, high = profile_likelihood(runs, fit, "alpha", quantities()["alpha"]).interval
        assert high - low > 0.5 or np.isinf(low) or np.isinf(high)
