"""Laws of the minimum loss with an irreducible part; the line of best sizes and its interval.

The loss averaged over E and over the law's own discrepancy: nothing is chosen, and what is not known is said.
"""

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from chinchilla_jax.scaling.fits.frontier import fit_loss_law, fit_offset, fit_optimum


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


BUDGETS = np.geomspace(1.0, 8.0, 4)


def minima(share, budgets=BUDGETS, g=None):
    """E + k C^-g whose irreducible part is `share` of the loss at the largest budget, 2.8 there."""
    g = 0.083 / (1 - share) if g is None else g
    return lambda c: 2.8 * (share + (1 - share) * (np.asarray(c) / budgets[-1]) ** -g)


def law(losses, budgets=BUDGETS, noise=0.002, freedom=12.0):
    return fit_loss_law(budgets, losses, np.eye(len(losses)) * noise**2, 1.5 * noise, freedom)


def test_it_passes_through_its_minima():
    found = law(minima(0.5)(BUDGETS), noise=0.0005)
    assert found.at(BUDGETS) == pytest.approx(minima(0.5)(BUDGETS), rel=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_many_clean_budgets_show_how_much_is_irreducible(share):
    budgets = np.geomspace(1, 1e4, 9)
    truth = minima(share, budgets, g=0.16)
    found = law(truth(budgets), budgets, noise=0.0002)
    assert found.at(1e6) == pytest.approx(truth(1e6), rel=0.02)
    low, high = found.irreducible_interval(0.95)
    # Up to the step of the grid of E.
    assert low - 0.05 * 2.8 * 1.1 <= share * 2.8 <= high + 0.05 * 2.8 * 1.1


def test_a_change_below_the_noise_changes_the_prediction_by_as_little():
    """What chose between two forms made a jump of 1.6% of this."""
    losses = np.array([3.2917, 3.1077, 2.9141, 2.7675])  # a study whose three first minima lie on a power law
    said = [law(losses * np.exp(shift * np.array([1, -1, 1, -1]))).at(32.0) for shift in np.linspace(-1e-3, 1e-3, 21)]
    assert np.abs(np.diff(said)).max() < 2e-3 * said[0]


def test_four_budgets_hardly_show_the_irreducible_loss_and_the_prior_decides_where_it_is():
    low, high = law(minima(0.0)(BUDGETS)).irreducible_interval(0.95)
    assert low < 0.1 * 2.8 and high > 0.5 * 2.8


def test_the_interval_grows_with_distance_and_with_the_noise_of_a_run():
    found = law(minima(0.5)(BUDGETS))
    budgets = 8.0 * np.array([1, 4, 30, 300])
    half = [np.subtract(*found.interval(c, 0.95)[::-1]) / 2 / found.at(c) for c in budgets]
    assert all(a < b for a, b in zip(half, half[1:], strict=False))
    low, high = found.interval(32.0, 0.95)
    lower, higher = found.interval(32.0, 0.95, one_run=False)
    assert low < lower < found.at(32.0) < higher < high
    assert found.interval(32.0, 0.8)[0] > low


def test_small_budgets_that_bend_away_are_forgotten():
    """A kink at the smallest two of eight budgets: the answer follows the others, and the law is said to be off."""
    budgets = np.geomspace(1, 128, 8)
    truth = minima(0.6, budgets, g=0.16)
    bent = truth(budgets) * np.array([1.08, 1.03, 1, 1, 1, 1, 1, 1])
    straight, kinked = law(truth(budgets), budgets, 0.0005), law(bent, budgets, 0.0005)
    assert kinked.at(512.0) == pytest.approx(truth(512.0), rel=0.012)
    assert straight.discrepancy(0.05) < 0.001 < kinked.discrepancy(0.05)
    assert np.subtract(*kinked.interval(512.0, 0.95)) < np.subtract(*straight.interval(512.0, 0.95))  # wider


def test_two_minima_are_enough_for_an_answer_that_says_how_unsure_it_is():
    found = law(minima(0.5)(BUDGETS[:2]), BUDGETS[:2])
    low, high = found.interval(16.0, 0.95)
    assert low < minima(0.5)(16.0) < high and (high - low) / found.at(16.0) > 0.03


def test_slope_is_the_derivative_and_at_takes_arrays():
    found = law(minima(0.5)(BUDGETS))
    both = found.at(np.array([8.0, 8.0 * np.e]))
    assert both.shape == (2,) and both[0] == found.at(8.0)
    difference = (found.at(8.0 / 1.01) - found.at(8.0 * 1.01)) / (2 * np.log(1.01))
    assert found.slope(8.0) == pytest.approx(difference, rel=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.7])
def test_95_percent_intervals_hold_trained_runs_at_four_times_the_largest_budget(share):
    rng, held = np.random.default_rng(1), 0
    truth = minima(share)
    for _ in range(100):
        found = law(truth(BUDGETS) * np.exp(0.002 * rng.standard_normal(4)))
        low, high = found.interval(32.0, 0.95)
        held += low <= truth(32.0) * np.exp(0.003 * rng.standard_normal()) <= high
    # Without any irreducible loss the prior errs by 1% towards one.
    assert held >= (92 if share else 80)


def half_width(found, budget, one_run):
    low, high = found.interval(budget, 0.95, one_run)
    return (high - low) / 2 / found.at(budget)


def test_at_the_largest_budget_the_law_is_as_sure_as_its_minima():
    budgets = np.geomspace(1, 8, 12)
    found = fit_loss_law(budgets, minima(0.5, budgets)(budgets), np.eye(12) * 0.002**2, 1e-9, 1e6)
    # A straight line through twelve points knows its end to 2 / sqrt(12) of one of them, and E adds a little.
    assert half_width(found, 8.0, False) == pytest.approx(1.96 * 0.002 * 2 / np.sqrt(12), rel=0.3)


def test_beyond_the_budgets_the_law_itself_may_be_off_however_well_its_constants_are_known():
    budgets = np.geomspace(1, 1e4, 40)
    found = fit_loss_law(budgets, minima(0.5, budgets, g=0.16)(budgets), np.eye(40) * 1e-5**2, 1e-9, 1e6)
    # The smallest discrepancy that is allowed for, 0.03% for every factor e.
    assert half_width(found, 300e4, False) == pytest.approx(1.96 * 0.0003 * np.log(300), rel=0.3)


def test_a_noise_known_from_few_runs_widens_the_interval_as_student_has_it():
    few, many = (fit_loss_law(BUDGETS, minima(0.5)(BUDGETS), np.eye(4) * 1e-4**2, 0.02, f) for f in (3.0, 1e6))
    assert half_width(few, 8.0, True) / half_width(many, 8.0, True) == pytest.approx(3.182 / 1.960, rel=0.03)


@pytest.mark.parametrize("flops", [8.0, 300.0])
@pytest.mark.parametrize("level", [0.5, 0.8, 0.95, 0.999])
@pytest.mark.parametrize("freedom", [3.5, 12.0])
def test_the_ends_of_an_interval_are_the_quantiles_of_the_average(flops, level, freedom):
    found = law(minima(0.5)(BUDGETS), freedom=freedom)
    mean, sd = found._moments(flops, True)

    def excess(log_loss, share):
        return float((found.weight * scipy.stats.t.cdf((log_loss - mean) / sd, freedom)).sum()) - share

    ends = mean.min() - 60.0 * sd.max(), mean.max() + 60.0 * sd.max()
    exact = [scipy.optimize.brentq(excess, *ends, (0.5 + side * level,), xtol=1e-13) for side in (-0.5, 0.5)]
    # What is left out of the average for its small weight is in these.
    np.testing.assert_allclose(np.log(found.interval(flops, level)), exact, rtol=0, atol=2e-3 * np.ptp(exact))


def test_two_minima_say_nothing_of_how_far_the_law_may_be_off():
    """A line goes through any two points: of d there is only the prior, a log-normal one about 0.003 by a factor e."""
    found = law(minima(0.5)(BUDGETS[:2]), BUDGETS[:2])
    grid = np.array([0.0003, 0.0006, 0.0012, 0.0025, 0.005, 0.01])
    prior = np.exp(-0.5 * np.log(grid / 0.003) ** 2)
    assert found.weight.sum(0) == pytest.approx(prior / prior.sum(), rel=0.02)
