"""Runs simulated from a planted law."""

import numpy as np
import pytest

from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.tools.simulate import plan_horizons, plan_isoflop, simulate_curves, simulate_isoflop

LAW = Surface(1.69, 406.4, 410.7, 0.34, 0.28)
SIZES = np.geomspace(1e8, 1e10, 5)


def test_without_noise_every_final_loss_is_on_the_law_and_every_budget_is_spent():
    budgets = (1e19, 1e20)
    runs = simulate_isoflop(LAW, budgets, plan_isoflop(LAW, budgets, 5))
    assert [run.budget for run in runs] == [1e19] * 5 + [1e20] * 5 and len({run.name for run in runs}) == 10
    for run in runs:
        assert run.loss == pytest.approx(float(LAW.loss(run.params, run.tokens)), rel=1e-12)
        assert 6 * run.params * run.tokens == pytest.approx(run.budget) == run.flops


def test_the_plan_is_centred_where_it_is_told():
    sizes = plan_isoflop(LAW, (1e19, 1e20), 7, ratio=2.0, shift=(1.0, 3.0))
    best = [float(LAW.optimum(c)[0]) for c in (1e19, 1e20)]
    assert sizes[:, 3] == pytest.approx([best[0], 3 * best[1]])
    assert sizes[:, 1:] / sizes[:, :-1] == pytest.approx(np.full((2, 6), 2.0))


def test_noise_is_relative_and_follows_the_seed():
    budgets = np.geomspace(1e18, 1e21, 40)
    sizes = plan_isoflop(LAW, budgets, 25)
    first, again, other = (simulate_isoflop(LAW, budgets, sizes, noise=0.01, seed=s) for s in (0, 0, 1))
    assert first == again and first != other
    error = [run.loss / float(LAW.loss(run.params, run.tokens)) - 1 for run in first]
    assert np.std(error) == pytest.approx(0.01, rel=0.1) and abs(np.mean(error)) < 1e-3


def test_a_flop_count_that_is_no_multiple_of_n_is_spent_exactly():
    def per_token(params):
        return 6.0 * params + 1e8

    sizes = plan_isoflop(LAW, (1e19,), 3, flops_per=per_token)
    for run in simulate_isoflop(LAW, (1e19,), sizes, flops_per=per_token):
        assert (6 * run.params + 1e8) * run.tokens == pytest.approx(1e19)
    (run, *_) = simulate_curves(LAW, SIZES, plan_horizons(LAW, SIZES), flops_per=per_token)
    assert (6 * run.params + 1e8) * run.tokens == pytest.approx(run.flops)


def test_horizons_cover_a_factor_16_around_the_optimum():
    horizons = plan_horizons(LAW, SIZES)
    assert horizons.shape == (5, 4) and horizons[:, -1] / horizons[:, 0] == pytest.approx(np.full(5, 16.0))
    middle = np.sqrt(horizons[:, 0] * horizons[:, -1])
    for params, tokens in zip(SIZES, middle, strict=True):
        assert float(LAW.optimum(6 * params * tokens)[0]) == pytest.approx(params, rel=1e-6)


def test_a_curve_ends_on_the_law_and_lies_above_it_before():
    for run in simulate_curves(LAW, SIZES, plan_horizons(LAW, SIZES), lift=0.03):
        law = LAW.loss(run.params, run.curve.tokens)
        above = run.curve.loss / law - 1
        assert run.curve.tokens[-1] == run.tokens and above[-1] == pytest.approx(0, abs=1e-12)
        assert (np.diff(above) < 0).all() and above[0] == pytest.approx(0.03, rel=1e-3)
        assert run.loss == pytest.approx(law[-1]) and run.budget is None


def test_run_noise_shifts_a_whole_curve_and_batch_noise_each_point():
    horizons = plan_horizons(LAW, SIZES)
    plain = simulate_curves(LAW, SIZES, horizons)
    shifted = simulate_curves(LAW, SIZES, horizons, noise=0.01, seed=3)
    rough = simulate_curves(LAW, SIZES, horizons, batch_noise=0.01, seed=3)
    for a, b, c in zip(plain, shifted, rough, strict=True):
        ratio = b.curve.loss / a.curve.loss
        assert np.ptp(ratio) < 1e-12 and ratio[0] == pytest.approx(b.loss / a.loss) and ratio[0] != 1
        assert c.loss == a.loss and np.std(c.curve.loss / a.curve.loss) == pytest.approx(0.01, rel=0.3)
