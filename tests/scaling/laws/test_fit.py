"""The one fitter of all laws: against the dedicated one, on what it says of flat directions, and on what it refuses."""

import csv
import dataclasses
import math
import pathlib

import jax
import numpy as np
import pytest

from chinchilla_jax.scaling.fits.approach3.parametric import fit_parametric, paper_starts
from chinchilla_jax.scaling.fits.minimise import ASYMMETRIC_HUBER, HUBER, SQUARED_LOG, SQUARED_RAW, Misfit
from chinchilla_jax.scaling.fits.resample import Resampling
from chinchilla_jax.scaling.laws.fit import fit_form, fit_widths
from chinchilla_jax.scaling.laws.form import amplitude, form, signed
from chinchilla_jax.scaling.read.runs import FitRefused
from tests.scaling.laws.cases import moving

CHINCHILLA = form("chinchilla")


@pytest.fixture(scope="module")
def points(figure_4_trimmed):
    """The 240 points of Figure 4: inputs and losses."""
    columns = {name: np.array([getattr(run, name) for run in figure_4_trimmed]) for name in ("params", "tokens")}
    return columns, np.array([run.loss for run in figure_4_trimmed])


@pytest.fixture(scope="module")
def refit(points):
    return fit_form(CHINCHILLA, *points, HUBER, resampling=Resampling(200))


def test_it_reaches_the_optimum_of_approach_3_on_figure_4(refit, figure_4_trimmed):
    assert refit.objective == pytest.approx(1.0182781e-3, rel=1e-6), "another optimum than the recomputed one"
    dedicated = fit_parametric(figure_4_trimmed, starts=paper_starts()[::45], resampling=None)
    assert refit.objective == pytest.approx(dedicated.objective, rel=1e-9)
    for name in ("E", "A", "B", "alpha", "beta"):
        assert refit.constants[name] == pytest.approx(float(getattr(dedicated.surface, name)), rel=1e-5), name
    assert refit.converged and refit.gradient < 1e-4


def test_starts_in_the_size_of_the_terms_nearly_all_agree(refit):
    assert refit.n_starts == 64
    assert refit.agreement > 0.9, "of the paper's starts in A and B themselves fewer than half agree"


def test_squared_objectives_on_figure_4(points, figure_4_trimmed):
    dedicated = fit_parametric(figure_4_trimmed, misfit=SQUARED_LOG, starts=paper_starts()[::45], resampling=None)
    assert fit_form(CHINCHILLA, *points, SQUARED_LOG).objective == pytest.approx(dedicated.objective, rel=1e-9)
    raw = fit_form(CHINCHILLA, *points, SQUARED_RAW)
    assert 2 * raw.objective == pytest.approx(0.0832, abs=5e-5), "residual sum of squares of the raw loss"
    assert (raw.constants["E"], raw.constants["alpha"], raw.constants["beta"]) == pytest.approx(
        (1.8828, 0.3576, 0.4276), abs=1e-4
    )


def test_an_asymmetric_penalty_is_that_of_approach_3(points, figure_4_trimmed):
    dedicated = fit_parametric(figure_4_trimmed, misfit=ASYMMETRIC_HUBER, starts=paper_starts()[::45], resampling=None)
    fit = fit_form(CHINCHILLA, *points, ASYMMETRIC_HUBER)
    assert fit.objective == pytest.approx(dedicated.objective, rel=1e-6)
    assert fit.constants["alpha"] == pytest.approx(float(dedicated.surface.alpha), rel=1e-4)


def test_the_objective_is_the_sum_it_says(points):
    inputs, loss = points
    fit = fit_form(CHINCHILLA, inputs, loss, Misfit("wide", "log", 3e-3))
    residual = np.abs(np.log(fit.predictions) - np.log(loss))
    by_hand = np.where(residual < 3e-3, 0.5 * residual**2, 3e-3 * (residual - 1.5e-3)).sum()
    assert fit.objective == pytest.approx(by_hand, rel=1e-12)
    assert fit.predictions == pytest.approx(fit.predict(**inputs), rel=0)


def test_bootstrap_of_figure_4_matches_the_recomputed_spread(refit):
    assert refit.boot_kept == 1.0 and refit.boot["alpha"].shape == (200,)
    # 200 resamples know a standard deviation to 5%; the figures are from 1000 others.
    assert np.std(refit.boot["alpha"]) == pytest.approx(0.0146, rel=0.2)
    assert np.std(refit.boot["beta"]) == pytest.approx(0.0204, rel=0.2)
    low, high = refit.interval(0.95, params=70e9, tokens=1.4e12)
    assert low < refit.predict(params=70e9, tokens=1.4e12) < high
    assert (high - low) / low < 0.04


def test_flat_directions_of_the_chinchilla_law_are_a_coefficient_with_its_exponent(refit):
    assert [moving(direction) for direction in refit.flat] == [{"B", "beta"}, {"A", "alpha"}]


def test_moving_along_a_flat_direction_moves_the_predictions_by_a_tenth_of_a_percent(refit, points):
    for direction in refit.flat:
        # The directions are tangents, so a tenth of the way is taken.
        moved = {k: v * math.exp(0.1 * direction[k]) for k, v in refit.constants.items()}
        change = CHINCHILLA.value(moved, **points[0]) / refit.predictions - 1.0
        assert np.sqrt((change**2).mean()) == pytest.approx(1e-4, rel=0.1)


def test_fixed_constants_stay_and_the_others_are_fitted(points):
    fit = fit_form(CHINCHILLA, *points, SQUARED_LOG, fixed={"E": 1.7, "alpha": 0.34})
    assert fit.free == ("A", "B", "beta")
    assert (fit.constants["E"], fit.constants["alpha"]) == (1.7, 0.34)
    assert fit.objective > fit_form(CHINCHILLA, *points, SQUARED_LOG).objective


def test_refusals_name_what_is_wrong(points):
    inputs, loss = points
    bad = [
        ("inputs", {"params": inputs["params"]}, loss, {}),
        ("inputs", {**inputs, "experts": 4.0}, loss, {}),
        ("constants", inputs, loss, {"fixed": {"gamma": 0.3}}),
        ("points", {**inputs, "tokens": inputs["tokens"][:7]}, loss, {}),
        ("points", {**inputs, "tokens": np.where(loss > 3, np.nan, inputs["tokens"])}, loss, {}),
        ("points", inputs, loss - 3.0, {}),
        ("few_points", {k: v[:5] for k, v in inputs.items()}, loss[:5], {}),
        ("no_minimum", {**inputs, "params": -inputs["params"]}, loss, {}),
    ]
    for reason, given, target, more in bad:
        with pytest.raises(FitRefused) as caught:
            fit_form(CHINCHILLA, given, target, **more)
        assert caught.value.reason == reason, str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(FitRefused, match="resampling"):
        fit_form(CHINCHILLA, inputs, loss, SQUARED_LOG).interval(0.9, params=1e9, tokens=1e10)
    with pytest.raises(FitRefused, match="chinchilla"):
        form("hofmann")


def test_the_same_seed_gives_the_same_fit(points):
    one, two = (fit_form(CHINCHILLA, *points, HUBER, seed=3, starts=16, resampling=Resampling(16)) for _ in range(2))
    assert one.constants == two.constants
    assert one.boot["A"].tolist() == two.boot["A"].tolist()


def test_double_precision_is_not_switched_on_for_everyone(refit):
    assert not jax.config.jax_enable_x64
    assert jax.numpy.ones(1).dtype == jax.numpy.float32


def test_a_signed_constant_may_come_out_with_either_sign():
    rising = (amplitude("k", lambda c, x, xp: x.x**c.p), signed("p", 0.1, 1.0))
    law = dataclasses.replace(form("power"), constants=rising)
    x = np.geomspace(1.0, 1e3, 9)
    assert fit_form(law, {"x": x}, 5.0 * x**-0.4, SQUARED_LOG).constants["p"] == pytest.approx(-0.4, rel=1e-9)


def test_seven_narrow_proxies_predict_three_wide_models():
    rows = list(csv.DictReader((pathlib.Path(__file__).parents[1] / "data" / "flm_widths.csv").open()))
    sizes, losses = (np.array([float(row[k]) for row in rows]) for k in ("params_millions", "loss_at_step_20000"))
    fit = fit_widths(sizes[:7], losses[:7])
    assert [fit.constants[k] for k in "abc"] == pytest.approx([2.469, -0.423, 2.923], abs=6e-4)
    predicted = fit.predict(params=sizes[7:])
    assert predicted == pytest.approx([3.189, 3.080, 3.037], abs=6e-4)
    assert 100 * (predicted / losses[7:] - 1) == pytest.approx([0.29, -0.18, -0.19], abs=0.01)
