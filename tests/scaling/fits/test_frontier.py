"""Laws of the minimum loss with an irreducible part; the line of best sizes and its interval."""

import numpy as np
import pytest

from chinchilla_jax.scaling.fits.frontier import fit_offset, fit_optimum


def test_offset_law_recovers_its_constants_in_every_replicate():
    flops = np.geomspace(1e11, 2.7e12, 4)
    truth = np.array([[1.7, 900.0, 0.22], [0.0, 50.0, 0.09]])
    losses = truth[:, :1] + truth[:, 1:2] * flops ** -truth[:, 2:]
    law = fit_offset(flops, losses)
    assert law.irreducible == pytest.approx(truth[:, 0], abs=2e-3)
    assert law.exponent == pytest.approx(truth[:, 2], rel=2e-3)
    assert law.at(1e13) == pytest.approx(truth[:, 0] + truth[:, 1] * 1e13 ** -truth[:, 2], rel=1e-5)


def test_offset_law_never_goes_below_zero_loss():
    flops = np.geomspace(1e11, 2.7e12, 4)
    # Steepening in log-log: an unbounded fit would ask for E < 0.
    law = fit_offset(flops, 6.0 - 0.9 * np.log10(flops / 1e11))
    assert law.irreducible == 0.0


FLOPS = np.geomspace(1e18, 64e18, 7)


def optima(scatter=0.0, seed=0, flops=FLOPS):
    best = np.log(1e8) + 0.5 * np.log(flops / flops[0])
    return best + scatter * np.random.default_rng(seed).standard_normal(len(flops))


def test_a_planted_line_is_found():
    law = fit_optimum(FLOPS, optima(), np.full(7, 0.01))
    assert law.exponent == pytest.approx(0.5, abs=1e-9)
    assert law.at(256e18) == pytest.approx(1.6e9, rel=1e-9)


def test_an_optimum_that_is_badly_known_counts_for_little():
    best = optima()
    best[0] += 1.0
    sd = np.full(7, 0.02)
    moved = fit_optimum(FLOPS, best, sd).exponent
    sd[0] = 1.0
    assert abs(fit_optimum(FLOPS, best, sd).exponent - 0.5) < 0.1 * abs(moved - 0.5)


@pytest.mark.parametrize("count", [3, 4, 7])
def test_95_percent_intervals_hold_the_best_size_of_the_next_budget(count):
    held = 0
    for seed in range(200):
        flops = np.append(FLOPS[:count], 4 * FLOPS[count - 1])
        best = optima(0.1, seed, flops)
        low, high = fit_optimum(flops[:-1], best[:-1], np.full(count, 0.02)).interval(flops[-1], 0.95)
        held += low <= np.exp(best[-1]) <= high
    assert held >= 184


def test_scatter_about_the_line_widens_the_interval():
    widths = []
    for scatter in (0.0, 0.3):
        low, high = fit_optimum(FLOPS, optima(scatter, 1), np.full(7, 0.02)).interval(256e18, 0.95)
        widths.append(np.log(high / low))
    assert widths[1] > 2 * widths[0]


def test_draws_spread_as_the_covariance_says():
    law = fit_optimum(FLOPS, optima(0.05), np.full(7, 0.02))
    normal = np.random.default_rng(0).standard_normal((4000, 2))
    drawn = law.draws(normal, np.ones(4000))
    assert np.std(drawn.exponent) == pytest.approx(np.sqrt(law.covariance[1, 1]), rel=0.05)
    assert np.mean(drawn.exponent) == pytest.approx(float(law.exponent), abs=0.005)
