"""Many small minimisations at once."""

import numpy as np
import pytest

from chinchilla_jax.scaling.fits.minimise import minimise, minimise_on_grid


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
