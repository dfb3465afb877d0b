"""The search for the lowest loss at a budget, scarce data, and a model that is also served."""

import math

import numpy as np
import pytest

from chinchilla_jax.scaling.laws.optimum import allocate, cheapest_for_loss, unique_data_optimum
from chinchilla_jax.scaling.laws.published import law, surface
from chinchilla_jax.scaling.read.runs import FitRefused

UNROUNDED = surface("hoffmann2022_unrounded")


def test_the_search_finds_the_closed_form_optimum():
    found = allocate(UNROUNDED.loss, 5.76e23)
    params, tokens, loss = UNROUNDED.optimum(5.76e23)
    assert (found.params, found.tokens) == pytest.approx((params, tokens), rel=1e-6)
    assert found.loss == pytest.approx(loss, rel=1e-14)
    with pytest.raises(FitRefused, match="falls to the end"):
        allocate(lambda n, d: 2.0 + n**-0.3, 1e20)


def test_without_inference_the_cheapest_model_is_the_compute_optimal_one():
    params, tokens, loss = UNROUNDED.optimum(5.76e23)
    plan = cheapest_for_loss(UNROUNDED, loss, 0.0)
    assert (plan.params, plan.tokens, plan.total) == pytest.approx((params, tokens, 5.76e23), rel=1e-9)
    assert plan.saving == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["hoffmann2022_unrounded", "besiroglu2024", "sardana2024_all"])
def test_the_first_order_condition_holds_and_the_loss_is_reached(name):
    s = surface(name)
    served = np.array([1e9, 1e11, 1e13, 1e15])
    plan = cheapest_for_loss(s, s.E + 0.4, served)
    ratio = (s.alpha * s.A * plan.params**-s.alpha) / (s.beta * s.B * plan.tokens**-s.beta)
    assert ratio == pytest.approx(1 + served / (3 * plan.tokens), rel=1e-8)
    assert s.loss(plan.params, plan.tokens) == pytest.approx(np.full(4, s.E + 0.4), rel=1e-12)


def test_more_inference_means_smaller_models_longer_training_and_lower_total_cost():
    loss = UNROUNDED.optimum(1e23)[2]
    served = np.geomspace(1e9, 1e15, 25)
    plan = cheapest_for_loss(UNROUNDED, loss, served)
    assert (np.diff(plan.params) < 0).all() and (np.diff(plan.tokens) > 0).all() and (np.diff(plan.saving) > 0).all()
    params, tokens, _ = UNROUNDED.optimum(1e23)
    assert (plan.total < 6 * params * tokens + 2 * params * served).all()
    assert plan.total == pytest.approx(plan.training + plan.inference)


def test_neighbours_on_the_same_loss_cost_more():
    loss, served = 2.1, 1e12
    plan = cheapest_for_loss(UNROUNDED, loss, served)
    for factor in (0.97, 1.03):
        params = plan.params * factor
        tokens = (UNROUNDED.B / (loss - UNROUNDED.E - UNROUNDED.A * params**-UNROUNDED.alpha)) ** (1 / UNROUNDED.beta)
        assert 6 * params * tokens + 2 * params * served > plan.total


def test_a_7b_chinchilla_that_serves_1e11_tokens_becomes_a_6b_model():
    # The example of Sardana et al.: 6B parameters on 1.18 times the data.
    flops = 6 * (7e9 / UNROUNDED.optimum(6.0)[0]) ** (1 / UNROUNDED.a)
    params, tokens, loss = UNROUNDED.optimum(flops)
    assert params == pytest.approx(7e9)
    plan = cheapest_for_loss(UNROUNDED, loss, 1e11)
    assert plan.params == pytest.approx(6e9, rel=0.02)
    assert plan.tokens / tokens == pytest.approx(1.18, abs=0.02)


def test_dearer_inference_counts_as_more_of_it():
    twice, dear = cheapest_for_loss(UNROUNDED, 2.1, 2e12), cheapest_for_loss(UNROUNDED, 2.1, 1e12, price=2.0)
    assert (dear.params, dear.tokens, dear.total) == pytest.approx((twice.params, twice.tokens, twice.total), rel=1e-12)


def test_a_loss_below_the_irreducible_one_is_refused():
    with pytest.raises(FitRefused, match="irreducible"):
        cheapest_for_loss(UNROUNDED, 1.5, 1e12)
    with pytest.raises(FitRefused, match="negative"):
        cheapest_for_loss(UNROUNDED, 2.5, -1.0)


REPEATED = law("muennighoff2023").constants


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
