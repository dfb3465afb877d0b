"""What repeated data are worth."""

import math

import numpy as np
import pytest

from chinchilla_jax.scaling.laws.data_constrained import effective, unique_data_optimum
from chinchilla_jax.scaling.laws.published import law, surface


def test_data_constrained_at_the_two_models_its_authors_compare():
    # Printed by the authors' repository for figure 1 (right): fewer parameters and more epochs win.
    value = law("muennighoff2023").value
    assert value(params=6.34e9, tokens=242e9, unique_tokens=25e9) == pytest.approx(2.2256440889984477, rel=1e-12)
    assert value(params=8.67e9, tokens=178e9, unique_tokens=25e9) == pytest.approx(2.2269634075087867, rel=1e-12)


def test_data_constrained_with_fresh_tokens_and_few_parameters_is_its_base_law():
    point = {"params": 1e8, "tokens": 2e10}
    fresh = law("muennighoff2023").value(**point, unique_tokens=1e30)
    assert fresh == pytest.approx(law("muennighoff2023_base").value(**point), rel=1e-12)


REPEATED = law("muennighoff2023").constants


def test_four_epochs_are_nearly_as_good_as_fresh_data():
    worth = effective(4.0, 1.0, REPEATED["R_D"])
    assert worth == pytest.approx(1 + 15.387756 * (1 - math.exp(-3 / 15.387756)), rel=1e-12)
    assert worth / 4 == pytest.approx(0.931, abs=5e-4), "a token of four epochs is worth 93% of a fresh one"
    # In loss: 2.8B parameters on 55B tokens, fresh or 4 times 13.75B.
    value = law("muennighoff2023").value
    fresh, four, forty = (float(value(params=2.8e9, tokens=55e9, unique_tokens=55e9 / k)) for k in (1, 4, 40))
    assert 0 < four / fresh - 1 < 0.01
    assert forty / fresh - 1 > 5 * (four / fresh - 1)


def test_repeated_tokens_lose_their_value():
    assert effective(1.0, 1.0, 15.4) == 1.0
    worth = effective(np.array([1.0, 2, 4, 16, 64, 1e9]), 1.0, 15.387756)
    assert (np.diff(worth) > 0).all() and worth[-1] == pytest.approx(16.387756)
    # Few repetitions count in full.
    assert effective(1.001, 1.0, 15.387756) == pytest.approx(1.001, rel=1e-6)


def test_the_best_use_of_25_billion_unique_tokens_is_that_of_the_authors():
    best = unique_data_optimum(REPEATED, 25e9, 6 * 8.67e9 * 178e9)
    assert best.tokens == pytest.approx(227e9, abs=1e9) and best.epochs == pytest.approx(9.1, abs=0.05)
    assert best.params == pytest.approx(6.8e9, abs=0.05e9), "the grid search of the authors' repository"
    assert best.next_value == pytest.approx(math.exp(-(best.epochs - 1) / 15.387756), rel=1e-9)
    assert best.unlimited < best.loss
    assert best.next_value < best.mean_value < 1


def test_with_more_compute_the_same_data_is_repeated_more():
    plans = [unique_data_optimum(REPEATED, 1e9, flops) for flops in (1e19, 1e20, 1e21)]
    assert plans[0].epochs < plans[1].epochs < plans[2].epochs
    assert plans[0].next_value > plans[1].next_value > plans[2].next_value


def test_with_data_to_spare_nothing_is_repeated():
    plan = unique_data_optimum(REPEATED, 1e15, 1e21)
    assert (plan.epochs, plan.next_value) == (1.0, 1.0) and plan.loss == pytest.approx(plan.unlimited, rel=1e-12)
    base = surface("muennighoff2023_base").optimum(1e21)
    assert (plan.params, plan.tokens, plan.loss) == pytest.approx(base, rel=1e-6)
