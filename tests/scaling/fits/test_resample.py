"""What a bootstrap replicate holds."""

import numpy as np
import pytest

from chinchilla_jax.scaling.fits.resample import Resampling, Residuals, interval


def test_replicates_hold_as_many_runs_as_there_are_or_a_share_of_them_once_each():
    full = Resampling(200).weights(30, np.random.default_rng(0))
    assert full.shape == (200, 30) and (full.sum(1) == 30).all() and full.max() > 1
    part = Resampling(200, 0.8).weights(30, np.random.default_rng(0))
    assert (part.sum(1) == 24).all() and set(np.unique(part)) == {0.0, 1.0}


def test_redrawn_residuals_are_wider_the_fewer_degrees_of_freedom_there_are():
    residuals = np.array([-1.0, 1.0])
    spread = [Residuals(4000).draw(residuals, f, (2, 3), np.random.default_rng(0)).std() for f in (5.0, 1e6)]
    # Variance of Student's t: f / (f - 2).
    assert spread[1] == pytest.approx(1.0, rel=0.01) and spread[0] == pytest.approx(np.sqrt(5 / 3), rel=0.1)
    assert Residuals(7).draw(np.array([]), 1.0, (3,), np.random.default_rng(0)).tolist() == np.zeros((7, 3)).tolist()


def test_an_interval_is_central():
    assert interval(np.arange(101.0), 0.8) == pytest.approx((10.0, 90.0))
