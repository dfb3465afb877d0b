"""Newer forms of the surface: their limits, what they recover of planted laws, and where they put the optimum."""

import dataclasses
import math

import numpy as np
import pytest

from chinchilla_jax.scaling.fits.minimise import SQUARED_LOG
from chinchilla_jax.scaling.laws.coupled import compare_forms, fit_coupled
from chinchilla_jax.scaling.laws.fit import _FormProblem, fit_form
from chinchilla_jax.scaling.laws.form import form
from chinchilla_jax.scaling.laws.optimum import allocate
from chinchilla_jax.scaling.read.runs import FitRefused, Run
from tests.scaling.laws.cases import OVERFITTING, SATURATING, SKALING

N, D = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 3e9, 6), np.geomspace(2e8, 1e11, 6)))


def runs_of(name, constants, noise=0.0, seed=0):
    losses = form(name).value(constants, params=N, tokens=D)
    losses = losses * np.exp(noise * np.random.default_rng(seed).standard_normal(len(N)))
    return [Run(f"{i}", n, d, 6 * n * d, y) for i, (n, d, y) in enumerate(zip(N, D, losses, strict=True))]


def test_skaling_with_k_1_is_the_plain_law():
    plain = {"E": 1.7, "A": 260.0, "B": 260.0 * 9.0, "alpha": 0.5, "beta": 0.55}
    bent = form("skaling").value(SKALING | {"k": 1.0}, params=N, tokens=D)
    assert bent == pytest.approx(form("chinchilla").value(plain, params=N, tokens=D), rel=1e-14)


def test_skaling_with_one_resource_in_plenty_is_a_power_of_the_other():
    value = form("skaling").value
    assert value(SKALING, params=1e9, tokens=1e40) == pytest.approx(1.7 + 260 * 1e9 ** (-0.5 * 0.6), rel=1e-9)
    assert value(SKALING, params=1e40, tokens=1e10) == pytest.approx(1.7 + 260 * (9 * 1e10**-0.55) ** 0.6, rel=1e-9)


def test_saturating_where_h_is_small_is_the_plain_law():
    plain = {"E": 1.6, "A": 8.8 * 40.0, "B": 8.8 * 230.0, "alpha": 0.36, "beta": 0.4}
    point = {"params": 1e17, "tokens": 1e17}
    h = 40.0 * 1e17**-0.36 + 230.0 * 1e17**-0.4
    gap = form("saturating").value(SATURATING, **point) / form("chinchilla").value(plain, **point) - 1
    assert gap == pytest.approx(-8.8 * h**2 / 1.6, rel=0.01), "it lies lower by the square of h"


def test_saturating_ends_at_the_loss_of_a_guess():
    assert form("saturating").value(SATURATING, params=1e-20, tokens=1e10) == pytest.approx(10.4, rel=1e-6)


def test_overfitting_with_endless_data_is_saturating_and_with_few_tokens_a_larger_model_loses():
    value = form("overfitting").value
    endless = value(OVERFITTING, params=N, tokens=D, unique_tokens=np.inf)
    assert endless == pytest.approx(form("saturating").value(SATURATING, params=N, tokens=D), rel=1e-14)
    sizes = np.geomspace(1e8, 1e11, 7)
    few = value(OVERFITTING, params=sizes, tokens=1e10, unique_tokens=1e8)
    assert (np.diff(few[-4:]) > 0).all() and (
        np.diff(value(OVERFITTING, params=sizes, tokens=1e10, unique_tokens=np.inf)) < 0
    ).all()


@pytest.mark.parametrize(("name", "constants"), [("skaling", SKALING), ("saturating", SATURATING)])
def test_a_planted_law_is_recovered_with_its_optimum(name, constants):
    fit = fit_coupled(runs_of(name, constants), name)
    assert {key: fit.fit.constants[key] for key in constants} == pytest.approx(constants, rel=1e-3)
    assert fit.fit.agreement > 0.5 and fit.fit.converged
    law = form(name)
    best = allocate(lambda n, d: law.value(constants, params=n, tokens=d), 1e22)
    params, tokens, loss = fit.optimum(1e22)
    assert (params, tokens, loss) == pytest.approx((best.params, best.tokens, best.loss), rel=2e-3)
    far = allocate(lambda n, d: law.value(constants, params=n, tokens=d), 1e24).params
    assert fit.a == pytest.approx(math.log(far / best.params) / math.log(100), abs=1e-3)


def test_the_coupling_shows_through_noise_that_the_plain_law_leaves_in_its_residuals():
    runs = runs_of("skaling", SKALING | {"k": 0.5, "A": 60.0}, noise=0.002)
    fit = fit_coupled(runs, "skaling").fit
    assert fit.constants["k"] == pytest.approx(0.5, abs=0.1)
    inputs = {"params": N, "tokens": D}
    plain = fit_form(form("chinchilla"), inputs, np.array([run.loss for run in runs]))
    assert fit.scatter < 0.5 * plain.scatter


def test_overfitting_is_recovered_from_repeated_data_with_the_loss_of_a_guess_fixed():
    unique = np.minimum(D, np.tile([3e8, 3e9, 1e10], len(D) // 3))
    inputs = {"params": N, "tokens": D, "unique_tokens": unique}
    target = form("overfitting").value(OVERFITTING, **inputs)
    fit = fit_form(form("overfitting"), inputs, target, SQUARED_LOG, fixed={"L0": 10.4}, starts=64)
    assert fit.constants["delta"] == pytest.approx(0.6, rel=1e-3)
    assert fit.predictions == pytest.approx(target, rel=1e-6)


@pytest.mark.parametrize("name", ["skaling", "saturating", "overfitting"])
def test_gradients_are_those_of_the_objective(name):
    constants = {"skaling": SKALING, "saturating": SATURATING, "overfitting": OVERFITTING}[name]
    inputs = {"params": N, "tokens": D} | ({"unique_tokens": D / 3} if name == "overfitting" else {})
    target = form(name).value(constants, **inputs) * np.exp(0.02 * np.sin(np.arange(len(N))))
    problem = _FormProblem(form(name), inputs, target, SQUARED_LOG, {})
    problem.chunk = 64  # as the fits of these tests, so that it is compiled once
    theta, objective = problem.starts(2, seed=1), problem.objective(SQUARED_LOG)
    _, gradient, hessian = objective(theta, np.arange(2))
    for i in range(theta.shape[1]):
        step = 1e-5 * np.eye(theta.shape[1])[i]
        up, down = objective(theta + step, np.arange(2)), objective(theta - step, np.arange(2))
        assert gradient[:, i] == pytest.approx((up[0] - down[0]) / 2e-5, rel=1e-5, abs=1e-4)
        assert hessian[:, i] == pytest.approx((up[1] - down[1]) / 2e-5, rel=1e-4, abs=1e-2)


def test_rows_of_the_forms_hold_an_exponent_or_the_size_at_a_target():
    runs = runs_of("skaling", SKALING, noise=0.001)
    rows = compare_forms(runs)
    assert [row["variant"] for row in rows] == ["skaling, huber", "saturating, huber"]
    assert rows[0]["a"] == pytest.approx(0.55 / 1.05, abs=0.02)
    unique = np.tile([3e8, 3e9, 1e10], len(D) // 3)
    losses = form("overfitting").value(OVERFITTING, params=N, tokens=D, unique_tokens=np.minimum(D, unique))
    repeated = [
        dataclasses.replace(run, loss=float(y), unique_tokens=u if u < run.tokens else None)
        for run, y, u in zip(runs, losses, unique, strict=True)
    ]
    last = compare_forms(repeated)[-1]
    target = 4 * max(run.flops for run in runs)
    best = allocate(
        lambda n, d: form("overfitting").value(OVERFITTING, params=n, tokens=d, unique_tokens=np.minimum(1e10, d)),
        target,
    )
    assert last["variant"] == "overfitting, huber" and "a" not in last
    assert last[f"N* at {target:.3g} FLOPs"] == pytest.approx(best.params, rel=0.02)


@pytest.mark.parametrize("name", ["skaling", "saturating"])
def test_a_law_in_which_only_tokens_matter_has_no_optimum(name):
    runs = [dataclasses.replace(run, loss=2.0 + 500.0 * run.tokens**-0.35) for run in runs_of("skaling", SKALING)]
    with pytest.raises(FitRefused, match=f"{name}: over the range of N .* widen the range of params") as caught:
        fit_coupled(runs, name, starts=8)
    assert caught.value.reason == "no_optimum"


def test_runs_that_no_surface_can_be_fitted_to_are_refused_by_row_and_by_name():
    runs = runs_of("skaling", SKALING)
    assert all("needs 6 runs, got 3" in row["why"] for row in compare_forms(runs[:3]))
    with pytest.raises(FitRefused, match="no coupled form 'kaplan'") as caught:
        fit_coupled(runs, "kaplan")
    assert caught.value.reason == "form"
    with pytest.raises(FitRefused, match="6 free constants") as caught:
        fit_coupled([runs[i] for i in (0, 8, 15, 22, 29, 31)], "skaling")
    assert caught.value.reason == "few_points"
