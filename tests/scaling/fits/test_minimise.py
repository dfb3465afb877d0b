"""Many small minimisations at once; starts that lead to the lowest are counted, and resampled points fitted from it."""

import numpy as np
import pytest

from chinchilla_jax.scaling.fits.minimise import (
    MISFITS,
    Misfit,
    Problem,
    bootstrap,
    descend,
    minimise,
    minimise_on_grid,
)
from chinchilla_jax.scaling.fits.resample import Resampling


def test_minimise_escapes_a_saddle_and_finishes_each_problem_on_its_own():
    # f = (x^2 - 1)^2 + s y^2: a maximum along x at 0, minima at x = +-1; s differs by problem.
    stiffness = np.array([1.0, 1e4, 1e-2])

    def objective(theta, rows):
        x, y, s = theta[:, 0], theta[:, 1], stiffness[rows]
        gradient = np.stack([4 * x * (x * x - 1), 2 * s * y], 1)
        hessian = np.zeros((len(theta), 2, 2))
        hessian[:, 0, 0], hessian[:, 1, 1] = 12 * x * x - 4, 2 * s
        return (x * x - 1) ** 2 + s * y * y, gradient, hessian

    found = minimise(objective, np.array([[0.01, 3.0], [-0.01, 3.0], [0.3, -2.0]]), tolerance=1e-9)
    assert (found.gradient <= 1e-9).all()
    assert found.theta == pytest.approx(np.array([[1.0, 0], [-1.0, 0], [1.0, 0]]), abs=1e-6)


def test_a_grid_that_narrows_finds_the_lowest_point_of_every_row():
    places = np.array([0.3, -1.7, 2.0])
    grid = np.broadcast_to(np.linspace(-2.0, 2.0, 41), (3, 41))
    found = minimise_on_grid(lambda x: np.abs(x - places[:, None]) ** 1.5, grid, rounds=8, points=11)
    assert found == pytest.approx(places, abs=1e-6)


class Location(Problem):
    """One number for n points: their mean by squares, their median by absolute values."""

    chunk = 16

    def __init__(self, points):
        self.points, self.size = np.asarray(points, float), len(points)

    def objective(self, misfit, weights=None):
        unit = self.unit(misfit)
        width = misfit.delta / unit

        def evaluate(theta, rows):
            w = np.ones((len(theta), self.size)) if weights is None else weights[rows]
            residual = (theta - self.points) / unit
            force = np.clip(residual, -width, width)
            stiff = (w * (np.abs(residual) < width)).sum(1) / unit**2
            value = (w * force * (residual - 0.5 * force)).sum(1)
            return value, (w * force).sum(1)[:, None] / unit, np.maximum(stiff, 1.0)[:, None, None]

        return evaluate


class TwoValleys(Location):
    """Minima near -1, the lower one, and near +1, whatever the points."""

    def objective(self, misfit, weights=None):
        def evaluate(theta, rows):
            x = theta[:, 0]
            value = 100 * ((x * x - 1) ** 2 + 0.2 * x + 1)
            return value, 100 * (4 * x * (x * x - 1) + 0.2)[:, None], 100 * (12 * x * x - 4)[:, None, None]

        return evaluate


POINTS = np.random.default_rng(0).normal(3.0, 0.1, 41)


def test_squares_give_the_mean_and_a_tiny_threshold_the_median():
    starts = np.linspace(0, 6, 30)[:, None]
    for name, expected in (("squared_raw", POINTS.mean()), ("l1", np.median(POINTS))):
        misfit = MISFITS[name]
        minima, agreement = descend(Location(POINTS), starts, [*misfit.narrowing("raw"), misfit])
        assert minima.theta[0, 0] == pytest.approx(expected, abs=2e-5), name
        assert agreement == 1.0 and minima.gradient[0] < 1e-2


def test_the_thresholds_narrow_down_to_the_one_asked_for():
    assert [stage.delta for stage in Misfit("", "log", 1e-3).narrowing("raw")] == [1e-1, 1e-2]
    assert MISFITS["squared_log"].narrowing("log") == []
    assert {stage.above for stage in MISFITS["asymmetric_huber"].narrowing("log")} == {10.0}
    assert all(stage.residual == "raw" for stage in MISFITS["l1"].narrowing("raw"))


@pytest.mark.parametrize("stages", [1, 3])
def test_agreement_is_the_share_of_starts_in_the_lowest_valley(stages):
    starts = np.array([-2.0, -1.5, -0.5, 0.5, 0.9, 1.5, 2.0, 3.0])[:, None]
    minima, agreement = descend(TwoValleys(POINTS), starts, [MISFITS["squared_raw"]] * stages)
    assert minima.theta[0, 0] < -0.9 and agreement == 3 / 8
    assert (np.diff(minima.value) >= 0).all()


def test_replicates_of_a_mean_spread_as_means_do():
    problem, misfit = Location(POINTS), MISFITS["squared_raw"]
    minima, _ = descend(problem, np.array([[0.0], [5.0]]), [misfit])
    theta, kept = bootstrap(problem, misfit, minima, Resampling(2000), np.random.default_rng(1))
    assert theta.shape == (2000, 1) and kept == 1.0
    assert theta.mean() == pytest.approx(POINTS.mean(), abs=1e-3)
    assert theta.std() == pytest.approx(POINTS.std() / np.sqrt(41), rel=0.06)


def test_replicates_without_a_usable_minimum_are_left_out():
    class Picky(Location):
        def usable(self, theta):
            return theta[:, 0] > POINTS.mean()

    problem, misfit = Picky(POINTS), MISFITS["squared_raw"]
    minima, _ = descend(problem, np.array([[0.0]]), [misfit])
    theta, kept = bootstrap(problem, misfit, minima, Resampling(500), np.random.default_rng(1))
    assert 0.4 < kept < 0.6 and len(theta) == round(500 * kept)
