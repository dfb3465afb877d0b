"""Whether runs determine the constants of approach 3, by the deviations that their information implies."""

import dataclasses

import numpy as np
import pytest

from chinchilla_jax.scaling.fits.approach3.known import known, on_a_ray
from chinchilla_jax.scaling.fits.approach3.parametric import few_starts, fit_parametric
from chinchilla_jax.scaling.fits.minimise import SQUARED_LOG
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.read.runs import FitRefused, Run

SIZES = np.geomspace(5e7, 5e9, 24)


def middle(alpha, beta, irreducible=0.6):
    """A law whose two terms are 0.2 each in the middle of SIZES at 20 tokens per parameter."""
    n = np.exp(np.log(SIZES).mean())
    return Surface(irreducible, 0.2 * n**alpha, 0.2 * (20 * n) ** beta, alpha, beta)


def tokens(width, sizes=SIZES):
    """20 tokens per parameter, times or over up to `width`."""
    return 20 * sizes * width ** np.tile([-1.0, 0.5, 1.0, -0.5, 0.0, 0.8], len(sizes) // 6 + 1)[: len(sizes)]


@pytest.mark.parametrize("gap", [0.02, 0.01, 0.005])
def test_on_a_ray_the_condition_number_is_the_closed_form(gap):
    law = middle(0.35 + gap / 2, 0.35 - gap / 2)
    pair = law.slopes(SIZES, 20 * SIZES)[:, :2]
    alone = np.linalg.cond(pair / np.linalg.norm(pair, axis=0)) ** 2
    assert on_a_ray(law, SIZES, 20.0) == pytest.approx(alone, rel=0.01)
    wider = on_a_ray(middle(0.36, 0.34), SIZES, 20.0)
    assert on_a_ray(law, SIZES, 20.0) * gap**2 == pytest.approx(wider * 0.02**2, rel=0.01)
    assert on_a_ray(middle(0.35, 0.35), SIZES, 20.0) == np.inf


def test_the_implied_deviations_are_those_of_replicated_fits():
    law, params, data = middle(0.35, 0.37), SIZES, tokens(4.0)
    rng, found, start = np.random.default_rng(0), [], few_starts()[::20]
    for _ in range(60):
        losses = law.loss(params, data) * np.exp(0.003 * rng.standard_normal(24))
        rows = zip(params.tolist(), data.tolist(), losses.tolist(), strict=True)
        runs = [Run(str(i), n, d, 6 * n * d, y) for i, (n, d, y) in enumerate(rows)]
        fit = fit_parametric(runs, misfit=SQUARED_LOG, starts=start, resampling=None)
        found.append((float(fit.surface.alpha), float(fit.surface.beta)))
    implied = known(law, params, data, 0.003).deviations
    # 60 replicates know a standard deviation to 9%.
    np.testing.assert_allclose(np.std(found, axis=0), [implied["alpha"], implied["beta"]], rtol=0.3)


def test_a_narrow_range_of_tokens_per_parameter_leaves_the_constants_open():
    law = middle(0.35, 0.37)
    widths = (1.03, 1.08, 1.5, 3.0, 10.0)
    all_known = [known(law, SIZES, tokens(width), 0.005) for width in widths]
    assert [one.determined for one in all_known] == [False, False, True, True, True]
    assert "train some sizes on other token counts" in all_known[0].why
    assert np.all(np.diff([one.condition for one in all_known]) < 0)


def test_a_narrow_range_of_budgets_does_so_too():
    sizes = np.geomspace(4e8, 5e8, 24)
    one = known(middle(0.35, 0.37), sizes, 20 * sizes, 0.005)
    assert not one.determined
    wide = 1e9 * 30.0 ** np.tile([-0.5, 0.5, 0.1, -0.2], 6)
    at_one_budget = known(middle(0.35, 0.37), np.sqrt(wide), 1e19 / 6 / np.sqrt(wide), 0.02)
    assert not at_one_budget.determined and "train at further budgets" in at_one_budget.why


def test_noise_and_the_number_of_runs_count_and_the_condition_number_alone_does_not():
    law = middle(0.35, 0.37)
    many = np.geomspace(5e7, 5e9, 2400)
    few, enough = known(law, SIZES, tokens(1.1), 0.005), known(law, many, tokens(1.1, many), 0.005)
    assert not few.determined and enough.determined
    assert enough.condition == pytest.approx(few.condition, rel=0.2)
    assert known(law, SIZES, tokens(1.1), 0.0005).determined
    # A small exponent makes for a large condition number, and is known well enough all the same.
    assert known(middle(0.08, 0.47), many, tokens(10.0, many), 0.003).determined


@pytest.mark.parametrize("law", [middle(0.35, 0.37, irreducible=0.0), middle(0.35, 0.35)])
@pytest.mark.parametrize("tied", [False, True])
def test_degenerate_laws_and_designs_are_judged_and_do_not_fail(law, tied):
    assert known(law, SIZES, tokens(4.0), 0.001, tied).determined
    one_size = known(law, np.full(24, 1e9), tokens(4.0), 0.001, tied)
    same = known(law, np.full(24, 1e9), np.full(24, 2e10), 0.001, tied)
    assert not same.determined and one_size.determined == (tied and law.E == 0.0)


def test_units_of_n_and_d_do_not_matter():
    law, data = middle(0.35, 0.37), tokens(1.5)
    in_millions = dataclasses.replace(law, A=law.A * 1e6**-law.alpha, B=law.B * 1e6**-law.beta)
    first, second = known(law, SIZES, data, 0.005), known(in_millions, SIZES / 1e6, data / 1e6, 0.005)
    assert second.deviations == pytest.approx(first.deviations)
    assert second.condition == pytest.approx(first.condition)


@pytest.mark.parametrize("count", [6, 8, 10])
def test_few_runs_that_an_absolute_misfit_meets_are_not_taken_for_free_of_noise(count):
    law, misled = middle(0.35, 0.37), 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        params = np.geomspace(5e7, 5e9, count)
        data = params * np.where(np.arange(count) % 2, 10.0, 40.0)
        losses = law.loss(params, data) * np.exp(0.01 * rng.standard_normal(count))
        runs = [Run(f"{i}", n, d, 6 * n * d, y) for i, (n, d, y) in enumerate(zip(params, data, losses, strict=True))]
        try:
            fit = fit_parametric(runs, starts=few_starts(), resampling=None)
        except FitRefused:
            continue
        off = abs(float(fit.surface.alpha) - 0.35) / fit.known.deviations["alpha"]
        misled += fit.known.determined and off > 3.0
    assert misled <= 2
