"""Interpolants and their minima."""

import numpy as np
import pytest
from scipy.interpolate import Akima1DInterpolator

from chinchilla_jax.scaling.fits.approach2.curve import akima, lowest_point


def test_lowest_point_of_an_interpolant_is_the_lowest_of_a_fine_grid():
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, 10, 9))
    curve = Akima1DInterpolator(x, rng.standard_normal((9, 50)))
    best, value, bend = lowest_point(curve)
    grid = curve(np.linspace(x[0], x[-1], 20001))
    assert (value <= grid.min(0) + 1e-12).all() and value == pytest.approx(grid.min(0), abs=1e-5)
    assert np.diag(curve(best)) == pytest.approx(value, abs=1e-12)
    inner = bend > 0
    assert inner.any() and np.diag(curve(best, 1))[inner] == pytest.approx(np.zeros(inner.sum()), abs=1e-7)
    assert np.isin(best[~inner], (x[0], x[-1])).all()


def test_akima_averages_repeats_of_a_size():
    x = np.array([[1.0, 2.0, 3.0, 3.0, 4.0, 5.0]])
    loss = np.array([[[4.0, 1.5, 0.9, 1.1, 2.0, 4.5]]])
    mean = np.array([[[4.0, 1.5, 1.0, 2.0, 4.5]]])
    once = akima(x[:, [0, 1, 2, 4, 5]], mean, np.ones((1, 1, 5)), np.ones((1, 5), bool))
    twice = akima(x, loss, np.ones((1, 1, 6)), np.ones((1, 6), bool))
    assert twice.log_best == pytest.approx(once.log_best) and twice.lowest == pytest.approx(once.lowest)
