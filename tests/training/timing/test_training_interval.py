"""When to save: the intervals of Young and Daly, and the share of time that is left."""

import math
import random

import pytest

from chinchilla_jax.training.timing.interval import daly, gang_life, goodput, young


@pytest.mark.parametrize(("life", "minutes"), [(24 * 60, 117), (6 * 60, 57), (15, 9.1)])
def test_daly_is_read_off_his_figures_3_to_5(life, minutes):
    assert daly(5.0, life) == pytest.approx(minutes, rel=0.007)


@pytest.mark.parametrize(("save", "restart", "life", "interval", "waste"), [
    (3, 300, 3600, 147, 0.12), (3, 900, 3600, 147, 0.29), (3, 300, 27 * 3600, 764, 0.011),
    (60, 300, 4 * 3600, 1315, 0.11), (60, 900, 12 * 3600, 2277, 0.074),
])  # fmt: skip
def test_intervals_and_what_they_cost(save, restart, life, interval, waste):
    assert young(save, life) == pytest.approx(interval, abs=1) or young(save, life) == pytest.approx(interval, rel=0.01)
    assert 1 - goodput(young(save, life), save, life, restart) == pytest.approx(waste, rel=0.06)


def test_youngs_interval_is_the_best_of_the_first_order_and_dalys_near_it():
    save, life = 10.0, 7200.0
    best = max(range(1, 5000), key=lambda interval: goodput(interval, save, life, 0.0))
    assert best == pytest.approx(young(save, life), abs=1.0)
    assert daly(save, life) == pytest.approx(best, rel=0.05)
    assert daly(3 * life, life) == life and daly(save, gang_life(life, 4)) < daly(save, life)


def test_goodput_is_that_of_a_simulated_run():
    draw = random.Random(0)
    save, life, restart = 5.0, 20_000.0, 120.0
    interval = young(save, life)
    now = kept = 0.0
    until = draw.expovariate(1 / life)
    while now < 3e7:
        if now + interval + save <= until:
            now, kept = now + interval + save, kept + interval
        else:
            now = until + restart
            until = now + draw.expovariate(1 / life)
    assert goodput(interval, save, life, restart) == pytest.approx(kept / now, abs=0.003)


def test_times_that_cannot_be_are_refused():
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="positive"):
            daly(1.0, wrong)
    assert goodput(100.0, 1.0, 10.0) == 0.0
