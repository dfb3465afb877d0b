"""What a plan promises: laws made to fit, losses and sizes as wide as the noise lets them be."""

import math

import numpy as np
import pytest

from chinchilla_jax.scaling.fits.approach2.isoflop import fit_isoflop
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.predict import foresight
from chinchilla_jax.scaling.predict.foresight import expected, offset_through, scaled
from chinchilla_jax.scaling.read.runs import FitRefused
from chinchilla_jax.tools.simulate import plan_isoflop, simulate_isoflop

LAW = Surface(1.8, 480.0, 2100.0, 0.35, 0.37)
BUDGETS = [1e17, 3e17, 9e17, 2.7e18]
TARGET = 4 * BUDGETS[-1]


def runs(sizes=7, repeats=1, shift=1.0):
    """A plan's cells."""
    plan = plan_isoflop(LAW, BUDGETS, sizes, ratio=1.5, shift=shift)
    return simulate_isoflop(LAW, BUDGETS, plan) * repeats


@pytest.fixture(scope="module")
def at():
    """The expectation by noise, each once."""
    return {noise: expected(LAW, runs(), TARGET, noise) for noise in (0.0, 0.001, 0.004)}


def test_without_noise_little_is_left_and_more_noise_is_less_sure(at):
    assert at[0.0][0] < 0.002 and at[0.0][1] < 1.05
    for small, large in ((0.0, 0.001), (0.001, 0.004)):
        assert at[small][0] < at[large][0] and at[small][1] < at[large][1]


def test_seeds_make_it_surer_and_the_same_seed_says_the_same(at):
    twice = expected(LAW, runs(repeats=2), TARGET, 0.004)
    assert twice[0] < at[0.004][0] and twice[1] < at[0.004][1]
    assert expected(LAW, runs(), TARGET, 0.001) == at[0.001]


def test_the_half_width_holds_as_often_as_it_says(at):
    half, factor = at[0.004]
    _, _, loss = LAW.optimum(TARGET)
    best, plan = float(LAW.optimum(TARGET)[0]), plan_isoflop(LAW, BUDGETS, 7, ratio=1.5)
    fits = [
        fit_isoflop(simulate_isoflop(LAW, BUDGETS, plan, noise=0.004, seed=s), resampling=None) for s in range(100, 300)
    ]
    errors = np.array([float(fit.loss_law.at(TARGET)) / float(loss) - 1 for fit in fits])
    sizes = np.abs(np.log([float(fit.params_law.at(TARGET)) / best for fit in fits]))
    assert 0.85 < np.mean(np.abs(errors) <= half) <= 1.0
    assert 0.85 < np.mean(sizes <= math.log(factor)) <= 1.0


def test_a_study_that_cannot_be_fitted_is_not_sure_of_anything():
    assert expected(LAW, runs(shift=20.0), TARGET, 0.01) == (math.inf, math.inf)


def test_a_large_study_is_played_through_less_often(monkeypatch):
    done = []

    def slow(*args, **more):
        done.append(True)
        raise FitRefused("few_budgets", "")

    monkeypatch.setattr(foresight, "fit_isoflop", slow)
    for limit, draws in ((0, foresight._FEWEST), (50 * len(runs()), 50), (10**6, foresight.DRAWS)):
        monkeypatch.setattr(foresight, "_RUNS", limit)
        done.clear()
        expected(LAW, runs(), TARGET, 0.01)
        assert len(done) == draws


@pytest.mark.parametrize("exponent", [0.35, 0.5, 0.62])
def test_a_law_is_made_that_is_lowest_where_it_is_expected(exponent):
    law = scaled(runs(), 2e7, exponent, 5e17, loss=3.0, irreducible=1.9, fall=0.12)
    best, _, loss = (float(v) for v in law.optimum(5e17))
    assert best == pytest.approx(2e7, rel=1e-6) and loss == pytest.approx(3.0, rel=1e-9)
    assert float(law.a) == pytest.approx(exponent)
    fall = np.diff(np.log([float(law.optimum(c)[2]) - 1.9 for c in (5e17, 5e18)]))[0] / math.log(10)
    assert fall == pytest.approx(-0.12, rel=1e-6)


def test_an_offset_law_goes_through_three_losses():
    losses = [1.7 + 40.0 * c**-0.1 for c in (1e17, 1e18, 1e19)]
    assert offset_through(losses, 10.0) == (pytest.approx(1.7), pytest.approx(0.1))
    power = [40.0 * c**-0.1 for c in (1e17, 1e18, 1e19)]
    irreducible, fall = offset_through(power, 10.0)
    assert irreducible == pytest.approx(0.0, abs=1e-9) and fall == pytest.approx(0.1)
    assert offset_through([3.0, 2.9, 2.7], 10.0) == (0.0, pytest.approx(math.log(3.0 / 2.7) / math.log(100)))
