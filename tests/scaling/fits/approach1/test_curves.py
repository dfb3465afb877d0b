"""Curves smoothed without lag, and the ends of runs."""

import dataclasses

import numpy as np
import pytest

from chinchilla_jax.scaling.fits.approach1.curves import gaussian, local_linear, read_ends, smooth
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.read.runs import Curve, Run
from chinchilla_jax.tools.simulate import plan_horizons, simulate_curves

LAW = Surface(1.69, 406.4, 410.7, 0.34, 0.28)

SIZES = np.geomspace(7e7, 1e10, 16)


def test_coarse_logs_are_not_smoothed_away():
    loss = 3.0 / np.linspace(0.05, 1, 60) ** 0.2
    assert (gaussian(loss) == loss).all()
    dense = np.random.default_rng(0).standard_normal(5000)
    assert np.std(gaussian(dense)) == pytest.approx(0.336, abs=0.02)


@pytest.mark.parametrize("points", [15, 40, 160, 500])
def test_the_end_of_a_falling_curve_is_read_without_bias(points):
    tokens = np.linspace(1 / points, 1, points)
    loss = 2.0 + tokens**-0.3
    assert local_linear(tokens, loss)[-1] == pytest.approx(3.0, rel=5e-4)


def test_a_curve_logged_at_every_step_is_thinned_and_ends_at_its_end():
    steps = np.arange(1, 20001)
    long = Run("long", 1e8, 20000.0, 1.2e13, 3.0, curve=Curve(steps.astype(float), 2.0 + (steps / 20000.0) ** -0.3))
    flops, loss = smooth(long, "smooth")
    assert 400 < len(flops) <= 500
    assert flops[-1] == pytest.approx(np.log(1.2e13), abs=2e-3) and loss[-1] == pytest.approx(3.0, rel=1e-3)


def test_repeats_of_a_run_count_once():
    sizes = SIZES[:3]
    once = simulate_curves(LAW, sizes, plan_horizons(LAW, sizes))
    twice = [dataclasses.replace(r, curve=Curve(r.curve.tokens, r.curve.loss * f)) for r in once for f in (0.99, 1.01)]
    assert read_ends(twice).loss == pytest.approx(read_ends(once).loss, rel=1e-4)
