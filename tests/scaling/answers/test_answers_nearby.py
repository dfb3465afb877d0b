"""A run's value by that of others: exact where it can be, wide where it cannot, and not led astray by one of them."""

import numpy as np
import pytest

from chinchilla_jax.scaling.answers.flight.nearby import at_size

RNG = np.random.default_rng(0)
AWAY = RNG.uniform(-1.5, 1.5, (24, 2))
PLANE = -0.2 + 0.02 * AWAY[:, 0] - 0.01 * AWAY[:, 1]
NOISE, SLOPE = 0.004, 0.02


def test_a_plane_is_met_within_its_interval():
    off = []
    for seed in range(40):
        values = PLANE + NOISE * np.random.default_rng(seed).standard_normal(24)
        mean, scale, _ = at_size(AWAY, values, NOISE, SLOPE)
        off.append((mean + 0.2) / scale)
    assert np.std(off) < 0.8 and abs(np.mean(off)) < 0.3  # the scale is that of one run more


def test_distant_runs_say_less():
    near, far = (at_size(AWAY + shift, PLANE, NOISE, SLOPE)[1] for shift in (0.0, 3.0))
    assert far > 2 * near


def test_few_runs_say_less():
    few, many = (at_size(AWAY[:n], PLANE[:n], NOISE, SLOPE) for n in (2, 24))
    assert few[1] > many[1] and few[2] < many[2]


def test_one_run_says_its_own_value():
    mean, scale, freedom = at_size(np.array([[0.5, 0.5]]), np.array([0.3]), NOISE, SLOPE)
    assert mean == pytest.approx(0.3, abs=1e-6) and scale > NOISE and freedom >= 3


def test_a_value_far_off_hardly_counts():
    spoiled = PLANE.copy()
    spoiled[3] += 1.0
    clean, dirty = (at_size(AWAY, values, NOISE, SLOPE) for values in (PLANE, spoiled))
    assert dirty[0] == pytest.approx(clean[0], abs=0.5 * NOISE) and dirty[1] < 2 * clean[1]


def test_more_noise_makes_it_wider():
    quiet, loud = (PLANE + size * np.random.default_rng(1).standard_normal(24) for size in (0.002, 0.02))
    assert at_size(AWAY, loud, NOISE, SLOPE)[1] > 2 * at_size(AWAY, quiet, NOISE, SLOPE)[1]
