"""Minima from the runs near them: what far runs may not do, what budgets share, how large the noise is said to be."""

import numpy as np
import pytest

from chinchilla_jax.scaling.fits.approach2 import near_minimum, profile_shape
from chinchilla_jax.scaling.fits.approach2.isoflop import CORRECTED, PAPER, fit_isoflop
from chinchilla_jax.scaling.fits.approach2.near_minimum import fit_near, near_runs
from chinchilla_jax.scaling.read.runs import Run

FLOPS = np.array([1e18, 2e18, 4e18, 8e18])

BEST = np.log([1e8, 1.5e8, 2.2e8, 3.3e8])

LOWEST = np.array([3.2, 3.0, 2.85, 2.7])

CURVATURE = 0.05


def profiles(steps, noise=0.0, seed=0, beyond=0.0):
    """x and losses [4, n] of sizes `steps` around the minima; `beyond` lifts runs more than 1.2 from them."""
    steps = np.asarray(steps, float)
    x = BEST[:, None] + steps
    loss = LOWEST[:, None] * (1 + CURVATURE * profile_shape.shape(np.broadcast_to(steps, x.shape), 0.02))
    loss = loss * np.where(np.abs(steps) > 1.2, 1 + beyond, 1.0)
    return x, loss * np.exp(noise * np.random.default_rng(seed).standard_normal(x.shape))


def fit(x, loss):
    return fit_near(x, loss, np.ones(x.shape, bool), np.log(FLOPS))


def test_planted_minima_are_found():
    found = fit(*profiles(np.linspace(-1.1, 0.9, 6)))
    # The skew is drawn towards 0, where published laws lie about.
    assert found.log_best[0] == pytest.approx(BEST, abs=5e-3)
    assert found.lowest[0] == pytest.approx(LOWEST, rel=1e-4)
    assert found.curvature[0] / found.lowest[0] == pytest.approx(CURVATURE, rel=0.05)


def test_runs_far_above_the_minimum_move_it_hardly_and_a_parabola_through_all_of_them_much():
    steps = np.linspace(-2.4, 2.1, 10)
    lift = np.where(steps > 1.2, 0.08, 0.0)  # too large a model for its few tokens does worse than any such profile
    x, loss = profiles(steps)
    loss = loss * (1 + lift)
    near = fit(x, loss)
    assert np.abs(near.log_best[0] - BEST).max() < 0.05
    runs = [
        Run("r", np.exp(n), c / (6 * np.exp(n)), c, y, c)
        for c, row, ys in zip(FLOPS, x, loss, strict=True)
        for n, y in zip(row, ys, strict=True)
    ]
    plain, corrected = (fit_isoflop(runs, preset=p, resampling=None) for p in (PAPER, CORRECTED))
    missed = {
        name: max(abs(np.log(p.params.best) - b) for p, b in zip(f.profiles, BEST, strict=True))
        for name, f in (("plain", plain), ("corrected", corrected))
    }
    assert missed["corrected"] < 0.05 < 0.15 < missed["plain"]
    assert all(len(p.near) < len(p.runs) for p in corrected.profiles)


def test_near_are_the_runs_within_a_tenth_and_two_sizes_on_either_side():
    loss = np.array([5.0, 4.0, 3.2, 3.0, 3.05, 4.2, 6.0])
    assert near_runs(np.arange(7.0), loss).tolist() == [False, True, True, True, True, True, False]
    steep = np.array([5.0, 4.0, 3.2, 3.0, 3.05, 3.1, 4.5, 6.0])  # four within a tenth, and one more neighbour
    assert near_runs(np.arange(8.0), steep).tolist() == [False, True, True, True, True, True, False, False]
    flat = np.array([3.2, 3.1, 3.05, 3.0, 3.05, 3.1, 3.2])
    assert near_runs(np.arange(7.0), flat).all()


def test_a_minimum_at_an_edge_has_four_sizes_all_the_same():
    assert near_runs(np.arange(6.0), np.array([3.0, 4.0, 5.0, 6.0, 7.0, 8.0])).sum() == 4


def test_repeats_of_a_size_count_by_their_mean_when_the_lowest_is_looked_for():
    x = np.array([0, 1, 2, 3, 4, 5, 5, 6, 7.0])
    loss = np.array([4.0, 4.0, 3.0, 3.05, 3.5, 2.9, 3.9, 4.0, 5.0])  # one lucky run of a bad size
    assert near_runs(x, loss).tolist() == [True] * 5 + [False] * 4


@pytest.mark.parametrize("noise", [0.002, 0.01])
def test_the_noise_of_a_run_is_estimated_and_its_minima_are_as_uncertain_as_they_are_wrong(noise):
    errors, said, sizes = [], [], []
    for seed in range(40):
        found = fit(*profiles(np.linspace(-1.1, 0.9, 8), noise, seed))
        errors.append(np.log(found.lowest[0]) - np.log(LOWEST))
        said.append(found.noise)
        sizes.append(np.sqrt(np.diag(found.covariance)))
    assert np.mean(said) == pytest.approx(noise, rel=0.25)
    assert np.std(errors) == pytest.approx(np.mean(sizes), rel=0.25)


def test_curvatures_are_shared_so_that_a_poor_profile_borrows_from_the_others(monkeypatch):
    """Four runs about a minimum, with noise: its place is found better when the curvature is known from elsewhere."""
    error = {}
    for spread in (near_minimum.CURVATURE_SPREAD, 30.0):
        monkeypatch.setattr(near_minimum, "CURVATURE_SPREAD", spread)
        missed = []
        for seed in range(40):
            x, loss = profiles(np.linspace(-1.1, 0.9, 8), noise=0.004, seed=seed)
            held = np.ones(x.shape, bool)
            held[1, [0, 1, 6, 7]] = False
            missed.append(fit_near(x, loss, held, np.log(FLOPS)).log_best[0, 1] - BEST[1])
        error[spread] = np.sqrt(np.mean(np.square(missed)))
    assert error[0.3] < 0.8 * error[30.0]


def test_a_run_counts_the_less_the_higher_it_lies_even_among_the_near(monkeypatch):
    def moved():
        """How far the outermost run of each profile, one per cent higher, moves the minimum."""
        x, loss = profiles(np.linspace(-1.3, 1.2, 9), noise=0.002)
        lifted = loss.copy()
        lifted[:, 0] *= 1.01
        return np.abs(fit(x, lifted).log_best - fit(x, loss).log_best).max()

    weighted = moved()
    monkeypatch.setattr(near_minimum, "MISFIT", 0.0)
    assert weighted < 0.5 * moved()
