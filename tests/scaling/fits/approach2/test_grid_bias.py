"""What approach 2 misses on a given grid: closed forms, the split by width and centre, the corrected answer."""

import dataclasses

import numpy as np
import pytest

from chinchilla_jax.scaling.fits.approach2.grid_bias import isoflop_bias
from chinchilla_jax.scaling.fits.approach2.isoflop import AKIMA, CORRECTED, PAPER, fit_isoflop
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.read.runs import FitRefused
from chinchilla_jax.tools.simulate import plan_isoflop, simulate_isoflop

LAW = Surface(1.69, 406.4, 410.7, 0.34, 0.28)

BUDGETS = np.geomspace(1e17, 1e21, 5)


def grid(law, factor, shift=1.0, points=15, **kwargs):
    sizes = plan_isoflop(law, BUDGETS, points, ratio=factor ** (2 / (points - 1)), shift=shift, **kwargs)
    return simulate_isoflop(law, BUDGETS, sizes, **kwargs)


def vertex_shift(law, factor, points=15):
    """ln(vertex / D*) of the least-squares parabola in ln D on a centred grid, written out."""
    w = np.linspace(-np.log(factor), np.log(factor), points)
    profile = np.exp(-law.beta * w) / law.beta + np.exp(law.alpha * w) / law.alpha
    square = w**2 - (w**2).mean()
    return -(w * profile).sum() / (w * w).sum() / (2 * (square * profile).sum() / (square * square).sum())


def corrected(fit, law, flops, **kwargs):
    """N*, D* and minimum loss of `fit` at `flops`, freed of the bias."""
    bias = isoflop_bias(fit.runs, law, flops, preset=fit.preset, **kwargs)
    pairs = (fit.params_law, bias.params), (fit.tokens_law, bias.tokens), (fit.loss_law, bias.loss)
    return [float(law.at(flops)) / (1 + error) for law, error in pairs]


@pytest.mark.parametrize("factor", [2, 4, 8, 16])
@pytest.mark.parametrize("exponents", [(0.34, 0.28), (0.465, 0.155), (0.31, 0.31)])
def test_bias_of_a_centred_grid_is_the_closed_form(exponents, factor):
    law = Surface(1.69, 406.4, 410.7, *exponents)
    bias = isoflop_bias(grid(law, factor), law, 1e24)
    shift = vertex_shift(law, factor)
    assert bias.tokens == pytest.approx(np.expm1(shift), rel=1e-6, abs=1e-9)
    assert bias.params == pytest.approx(np.expm1(-shift), rel=1e-6, abs=1e-9)
    assert bias.params_exponent == pytest.approx(0, abs=1e-8) and bias.tokens_exponent == pytest.approx(0, abs=1e-8)
    assert bias.params_width == pytest.approx(bias.params, abs=1e-8)
    assert bias.params_off_centre == pytest.approx(0, abs=1e-8)
    assert bias.reach == pytest.approx(factor) and bias.centre == pytest.approx(np.ones(5))


def test_an_off_centre_grid_keeps_the_exponents_and_a_drifting_one_does_not():
    off = isoflop_bias(grid(LAW, 4, 2.0), LAW, 1e24)
    assert off.params_exponent == pytest.approx(0, abs=1e-8)
    assert off.params_width == pytest.approx(isoflop_bias(grid(LAW, 4), LAW, 1e24).params, rel=1e-6)
    assert off.params_off_centre == pytest.approx(-0.0080, abs=1e-4) and off.centre == pytest.approx(np.full(5, 2.0))
    drift = isoflop_bias(grid(LAW, 4, np.geomspace(0.5, 2, 5)), LAW, 1e24)
    assert abs(drift.params_exponent) > 1e-3
    assert drift.params_exponent == pytest.approx(-drift.tokens_exponent, abs=1e-8)


@pytest.mark.parametrize("shift", [1.0, 2.0, (0.5, 0.7, 1.0, 1.4, 2.0)])
def test_with_the_true_law_the_corrected_answer_is_exact(shift):
    runs = grid(LAW, 8, shift)
    fit = fit_isoflop(runs, resampling=None)
    assert corrected(fit, LAW, 1e23) == pytest.approx([float(v) for v in LAW.optimum(1e23)], rel=1e-9)


def test_a_nearly_right_law_removes_most_of_the_bias():
    runs = grid(LAW, 16, 1.5)
    fit = fit_isoflop(runs, resampling=None)
    other = Surface(1.75, 482.0, 700.0, 0.35, 0.30)
    freed = corrected(fit, other, 1e23)[0]
    params = float(LAW.optimum(1e23)[0])
    assert abs(freed / params - 1) < 0.5 * abs(float(fit.params_law.at(1e23)) / params - 1)


def test_the_laws_own_profile_and_akima_have_little_bias_where_a_parabola_has_much():
    runs = grid(LAW, 16, np.geomspace(0.7, 1.5, 5))
    sizes = {p.name: abs(isoflop_bias(runs, LAW, 1e24, preset=p).params) for p in (PAPER, CORRECTED, AKIMA)}
    assert sizes["paper"] > 0.03 and sizes["corrected"] < 0.002 and sizes["akima"] < 0.005, sizes


def test_losses_of_the_runs_themselves_do_not_matter():
    runs = grid(LAW, 4)
    noisy = [dataclasses.replace(run, loss=run.loss * (1 + 0.1 * np.sin(i))) for i, run in enumerate(runs)]
    assert isoflop_bias(noisy, LAW, 1e23).params == isoflop_bias(runs, LAW, 1e23).params


def test_a_flop_count_that_is_no_multiple_of_n_is_taken_from_the_runs():
    def per_token(params):
        return 6.0 * params * (1.0 + 0.9 * (params / 1e8) ** -0.35)

    runs = grid(LAW, 4, points=7, flops_per=per_token)
    own, given = isoflop_bias(runs, LAW, 1e21), isoflop_bias(runs, LAW, 1e21, flops_per=per_token)
    assert own.params == pytest.approx(given.params, abs=2e-3)
    fit = fit_isoflop(runs, resampling=None)
    params = float(LAW.optimum(1e21, per_token)[0])
    assert corrected(fit, LAW, 1e21, flops_per=per_token)[0] == pytest.approx(params, rel=1e-6)


def test_a_grid_that_never_shows_the_optimum_is_refused():
    with pytest.raises(FitRefused) as caught:
        isoflop_bias(grid(LAW, 2, 10.0), LAW, 1e23)
    assert caught.value.reason == "few_budgets"
    with pytest.raises(FitRefused) as caught:
        isoflop_bias([dataclasses.replace(run, budget=None) for run in grid(LAW, 2)], LAW, 1e23)
    assert caught.value.reason == "no_budget"


def test_the_sentence_names_width_and_centre():
    text = isoflop_bias(grid(LAW, 4, 2.0), LAW, 1e24).describe()
    assert "4x" in text and "from the width" in text and "off centre" in text and "\n" not in text
