"""Approach 3 beyond its default: other misfits, tied exponents, what the runs leave open; its derivatives."""

import dataclasses

import numpy as np
import pytest

from chinchilla_jax.scaling.fits.approach3.parametric import SurfaceProblem, fit_parametric, paper_starts
from chinchilla_jax.scaling.fits.minimise import ASYMMETRIC_HUBER, HUBER, L1, MISFITS, SQUARED_RAW, Misfit
from chinchilla_jax.scaling.fits.resample import Resampling
from chinchilla_jax.scaling.fits.surface import Surface

FEW = paper_starts()[::45]


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


@pytest.mark.parametrize("misfit", MISFITS.values(), ids=MISFITS)
def test_tied_exponents_are_equal_and_fit_no_better(misfit, law_runs):
    runs = law_runs(0.004)
    tied = fit_parametric(runs, misfit=misfit, tied=True, starts=paper_starts()[::3], resampling=Resampling(20))
    free = fit_parametric(runs, misfit=misfit, starts=FEW, resampling=None)
    assert tied.surface.alpha == pytest.approx(tied.surface.beta, rel=1e-12) and tied.surface.a == pytest.approx(0.5)
    assert tied.objective >= free.objective * (1 - 1e-9)
    assert tied.boot.alpha == pytest.approx(tied.boot.beta) and np.ptp(tied.boot.alpha) > 0


def test_an_asymmetric_penalty_counts_what_is_predicted_too_high_ten_times(figure_4_trimmed):
    fit = fit_parametric(figure_4_trimmed, misfit=ASYMMETRIC_HUBER, starts=FEW, resampling=None)
    params, tokens, loss = (np.array([getattr(r, f) for r in figure_4_trimmed]) for f in ("params", "tokens", "loss"))
    residual = np.log(fit.surface.loss(params, tokens) / loss)
    size = np.abs(residual)
    huber = np.where(size < 1e-3, 0.5 * size**2, 1e-3 * (size - 5e-4))
    assert fit.objective == pytest.approx((np.where(residual > 0, 10.0, 1.0) * huber).sum(), rel=1e-9)
    assert fit.converged
    # One in eleven; the runs within the threshold of the law are on both sides.
    assert np.mean(residual > 1e-3) < 1 / 11 < np.mean(residual > -1e-3)


def test_an_asymmetric_penalty_sees_through_runs_that_are_badly_tuned(law_runs):
    runs, rng = law_runs(0.0005), np.random.default_rng(2)
    spoilt = [dataclasses.replace(r, loss=r.loss * (1 + 0.05 * rng.random() * (rng.random() < 0.7))) for r in runs]
    truth = fit_parametric(runs, starts=FEW, resampling=None).surface.optimum(1e21)[2]
    above = {
        misfit.name: fit_parametric(spoilt, misfit=misfit, starts=FEW, resampling=None).surface.optimum(1e21)[2] / truth
        - 1
        for misfit in (HUBER, ASYMMETRIC_HUBER)
    }
    assert above["huber"] > 0.01 and abs(above["asymmetric_huber"]) < 0.4 * above["huber"]


def test_tied_exponents_recover_a_law_that_is_tied(law_runs):
    truth = Surface(1.9, 500.0, 1500.0, 0.353, 0.353)
    s = fit_parametric(law_runs(surface=truth), tied=True, starts=paper_starts()[::3], resampling=None).surface
    assert (s.E, s.A, s.B, s.alpha) == pytest.approx((1.9, 500, 1500, 0.353), rel=1e-5)


def test_flat_directions_are_named(figure_4_trimmed):
    flat = fit_parametric(figure_4_trimmed, starts=FEW, resampling=None).flat
    assert {pair[:2] for pair in flat} == {("A", "alpha"), ("B", "beta")}
    assert all(correlation > 0.998 for *_, correlation in flat)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "misfit",
    [HUBER, SQUARED_RAW, Misfit("wide", "raw", 0.05), Misfit("leaning", "raw", 0.05, above=10.0)],
    ids=lambda m: m.name,
)
def test_derivatives_are_those_of_the_value(misfit, tied, law_runs):
    problem = SurfaceProblem(law_runs(0.01), tied)
    value = problem.objective(misfit, np.random.default_rng(0).integers(0, 3, (4, 32)).astype(float))
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
