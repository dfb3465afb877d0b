"""Trends: planted ones are found, lines are those of an independent fit, and noise is one as rarely as said."""

import numpy as np
import pytest
from scipy import stats

from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.evaluation.trajectories.classify import (
    CLASSES,
    across,
    after,
    classify,
    double_descent,
    shares,
    trend,
)
from chinchilla_jax.evaluation.trajectories.series import Series, Trajectories


def run_of(nats, name="run", params=1000):
    """A run whose checkpoints are equally far apart in the logarithm, from a hundredth of its tokens on."""
    tokens = np.geomspace(1e4, 1e6, len(nats)).astype(np.int64)
    loss = nats.mean(1, dtype=np.float64)
    return Series(name, params, tokens // 100, tokens, 6.0 * params * tokens, loss, nats.astype(np.float32))


def noise(checkpoints, tokens, size, seed=0):
    return size * np.random.default_rng(seed).standard_normal((checkpoints, tokens))


def test_lines_are_those_of_scipy():
    nats = 3.0 + noise(9, 50, 0.4) - np.linspace(0, 1, 9)[:, None] * np.arange(50) / 50
    found = trend(nats)
    for token in range(50):
        ratio = np.exp(nats[:, token]) / np.exp(nats[0, token])
        line = stats.linregress(np.arange(9), ratio)
        assert found.slope[token] == pytest.approx(line.slope, rel=1e-10, abs=1e-14)
        assert found.p_value[token] == pytest.approx(line.pvalue, rel=1e-10)


ALTERNATING = np.array([1, -1, 1, -1, 1, -1, 1, -1, 1])
PLANTED = {
    "upward": [1.0 + 0.1 * np.arange(9), 2.0 + 0.002 * np.arange(9), 0.5 + 0.05 * np.arange(9) + 0.05 * ALTERNATING],
    "downward": [3.0 - 0.1 * np.arange(9), 4.0 - 0.002 * np.arange(9), 2.0 - 0.05 * np.arange(9) + 0.05 * ALTERNATING],
    "stagnated": [np.full(9, 0.7), 1.0 + 0.03 * ALTERNATING, 1.0 + 1.5 * np.array([0, 1, 0, -1, 0, -1, 0, 1, 0])],
    "other": [1.0 + 0.5 * ALTERNATING, 1.0 + 0.06 * ALTERNATING],
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_planted_way_is_found(name):
    assert [CLASSES[found] for found in classify(np.stack(PLANTED[name], axis=1))] == [name] * len(PLANTED[name])


def test_of_noise_a_fortieth_is_upward_and_a_fortieth_downward():
    parts = np.bincount(classify(noise(12, 40_000, 0.02)), minlength=4) / 40_000
    assert parts[:2] == pytest.approx(0.025, abs=0.004)


def test_double_descent_is_a_rise_and_then_a_fall():
    at = np.linspace(-2, 0, 24)  # log10 of the share of the training
    up_and_down = np.where(at < np.log10(0.4), 2 * (at + 2), 2 * (np.log10(0.4) + 2) - 3 * (at - np.log10(0.4)))
    ways = np.stack([up_and_down, 4 - up_and_down, 1 + at, 1 - at], axis=1)
    assert list(double_descent(run_of(ways))) == [True, False, False, False]
    assert double_descent(run_of(noise(24, 40_000, 0.02))).mean() == pytest.approx(0.025**2, abs=0.0006)


def test_a_share_of_the_training_is_one_of_its_tokens():
    run = run_of(noise(21, 3, 1.0))  # ten checkpoints to a factor of ten
    assert list(after(run, 0.1)) == list(range(10, 21)) and len(after(run, 0.0)) == 21
    assert list(after(run, 0.1, 0.4)) == list(range(10, 17))
    with pytest.raises(UsageError, match=r"run has 2 checkpoints after 70% .* larger train.keep_checkpoints"):
        after(run, 0.7)


def test_tables_leave_out_what_cannot_be_said_and_compare_neighbours():
    flat, wavy = np.zeros((21, 100)), 0.5 * np.resize([1, -1], (21, 1)) * np.ones(100)
    falling = -0.1 * np.arange(21)[:, None] * np.ones(100)
    small = run_of(np.concatenate([flat, wavy], axis=1), "small")
    large = run_of(np.concatenate([flat[:, :50], falling, flat[:, :50]], axis=1), "large", 2000)
    trajectories = Trajectories(np.zeros(200, np.int32), np.full(200, 1 / 200), (small, large))
    rows = shares(trajectories)
    assert [(row["run"], row["after"]) for row in rows] == [(n, s) for n in ("small", "large") for s in (0.1, 0.4)]
    assert rows[0]["stagnated"] == rows[0]["other"] == 0.5 and rows[2]["downward"] == 0.5
    (row,) = across(trajectories)
    assert row["stagnated too"] == row["stagnated before"] == 0.5 and row["double descent"] is None
    with pytest.raises(UsageError, match="after 90%"):
        shares(trajectories, [0.9])
