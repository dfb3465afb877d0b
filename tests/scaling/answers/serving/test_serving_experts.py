"""The two searches against all sizes tried one by one; where they meet; and what one expert is."""

import functools

import numpy as np
import pytest

from chinchilla_jax.scaling.answers.serving.cost import Traffic, server_of
from chinchilla_jax.scaling.answers.serving.experts import (
    Mixture,
    Setting,
    bounded_cost,
    bounded_loss,
    loss_optimal,
    optimal_for_cost,
    optimal_for_loss,
)
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.laws.form import form
from chinchilla_jax.scaling.read.runs import FitRefused

FLOPS = 6e21
STRONG = {"A": 120.0, "B": 0.3, "C": 250.0, "F": 1.3, "alpha": 0.28, "beta": 0.6, "gamma": 0.27, "d": -0.001}
STRONG |= {"E_start": 1.8, "E_max": 300.0}
WEAK = STRONG | {"B": 0.05, "d": 0.0}  # experts are worth little, so that few and many are each best somewhere
LAWS = {"strong": STRONG, "weak": WEAK}


def setting(constants, chip="v5e", **mixture):
    law = functools.partial(form("routed_served").value, constants)
    loss = lambda params, tokens, experts: law(params=params, tokens=tokens, experts=experts)  # noqa: E731
    return Setting(loss, Mixture(**mixture), Traffic(161.0, 338.0), server_of(chip))


def test_one_expert_is_the_dense_model():
    for mixture in (Mixture(), Mixture(top_k=4), Mixture(expert_size=0.25), Mixture(routed_share=0.9)):
        assert mixture.total(7e9, 1) == mixture.active(7e9, 1) == 7e9
        served = mixture.served(7e9, 1)
        assert served.weights == served.touched(np.array(1.0)) == pytest.approx(14e9)
    # Without an interaction its law is E + A / N^alpha + B / D^beta, whose optimum has a closed form.
    best = loss_optimal(setting(WEAK), 1, FLOPS)
    dense = Surface(1.3 + 0.05 / 1.8**0.6, 120.0, 250.0, 0.28, 0.27)
    params, tokens, loss = dense.optimum(FLOPS)
    assert (best.params, best.tokens) == pytest.approx((float(params), float(tokens)), rel=1e-5)
    assert best.loss == pytest.approx(float(loss), rel=1e-12)


def test_counts_of_a_mixture():
    paper = Mixture()  # half of the layers routed, two thirds of a layer feed-forward: N (1 + (E - 1) / 3)
    assert paper.total(3e9, 16) == pytest.approx(3e9 * (1 + 15 / 3)) and paper.active(3e9, 16) == pytest.approx(4e9)
    thin = Mixture(top_k=2, expert_size=0.5, routed_share=0.6)
    assert thin.active(1e9, 8) == pytest.approx(1e9), "two halves have the products of the whole"
    assert thin.total(1e9, 8) == pytest.approx(1e9 * (0.4 + 0.6 * 4))
    served = thin.served(1e9, 8)
    assert served.touched(np.array(1.0)) == pytest.approx(2e9) and served.used == pytest.approx(0.25)
    best = loss_optimal(setting(STRONG), 8, FLOPS)
    assert 6 * best.active * best.tokens == pytest.approx(FLOPS) and best.active == pytest.approx(best.params * 4 / 3)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("experts", [1, 4, 8, 32])
def test_both_searches_equal_all_sizes_tried_one_by_one(law, experts):
    ask = setting(LAWS[law])
    best = loss_optimal(ask, experts, FLOPS)
    sizes = np.exp(np.linspace(np.log(best.params * 1e-4), np.log(best.params), 20_001))
    loss, cost = ask.loss(sizes, experts, FLOPS), ask.serving(sizes, experts).cost
    step = sizes[1] / sizes[0]

    bound = 1.03 * best.loss
    found = bounded_loss(ask, experts, FLOPS, bound)
    first = np.where(loss <= bound, cost, np.inf).argmin()
    assert sizes[first] / step <= found.params <= sizes[first] * (1 + 1e-9)
    assert found.loss <= bound and found.cost <= cost[first] * (1 + 1e-9)

    bound = 0.6 * best.cost
    found = bounded_cost(ask, experts, FLOPS, bound)
    last = np.where(cost <= bound, loss, np.inf).argmin()
    assert sizes[last] * (1 - 1e-9) <= found.params <= sizes[last] * step
    assert found.cost <= bound and found.loss <= loss[last] * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_a_mixture_needs_less_than_its_optimal_size_for_the_loss_of_fewer_experts(seed):
    rng = np.random.default_rng(seed)
    constants = STRONG | {"B": rng.uniform(0.05, 1), "beta": rng.uniform(0.3, 1), "d": rng.uniform(-0.003, 0)}
    ask = setting(constants | {"alpha": rng.uniform(0.2, 0.4), "gamma": rng.uniform(0.2, 0.4)})
    dense, before = loss_optimal(ask, 1, FLOPS), 1.0
    for experts in (4, 8, 16, 32):
        best, found = loss_optimal(ask, experts, FLOPS), bounded_loss(ask, experts, FLOPS, dense.loss)
        assert best.loss < dense.loss and found.params < best.params
        assert found.loss == pytest.approx(dense.loss, rel=1e-9) and found.cost < best.cost
        # The lower the bound, the larger, dearer and less over-trained.
        bounds = np.linspace(best.loss, dense.loss, 6)
        chosen = [bounded_loss(ask, experts, FLOPS, bound) for bound in bounds]
        assert all(a.params >= b.params and a.cost >= b.cost for a, b in zip(chosen, chosen[1:], strict=False))
        # More experts need a smaller share of the optimal size.
        assert found.params / best.params < before
        before = found.params / best.params


@pytest.mark.parametrize("law", LAWS)
def test_each_search_undoes_the_other(law):
    ask = setting(LAWS[law])
    for experts in (1, 4, 16):
        best = loss_optimal(ask, experts, FLOPS)
        for factor in (1.005, 1.02, 1.1):
            one = bounded_loss(ask, experts, FLOPS, factor * best.loss)
            other = bounded_cost(ask, experts, FLOPS, one.cost)
            assert other.params == pytest.approx(one.params, rel=1e-9)
            assert other.loss == pytest.approx(factor * best.loss, rel=1e-9)


def test_both_searches_agree_where_few_and_many_experts_cross():
    ask = setting(WEAK)

    def gap(loss):
        return bounded_loss(ask, 16, FLOPS, loss).cost - bounded_loss(ask, 4, FLOPS, loss).cost

    low, high = 1.8194, 1.893
    assert gap(low) < 0 < gap(high), "many experts are cheaper for a low loss, few for a high one"
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if gap(middle) < 0 else (low, middle)
    few, many = (bounded_loss(ask, experts, FLOPS, low) for experts in (4, 16))
    assert few.cost == pytest.approx(many.cost, rel=1e-9)
    by_cost = [bounded_cost(ask, experts, FLOPS, few.cost) for experts in (4, 16)]
    assert by_cost[0].loss == pytest.approx(by_cost[1].loss, rel=1e-9) and by_cost[0].loss == pytest.approx(low)
    # On either side of it the two searches prefer the same number of experts.
    for loss, better in ((1.8194, 16), (1.893, 4)):
        cost = bounded_loss(ask, better, FLOPS, loss).cost
        losses = {experts: bounded_cost(ask, experts, FLOPS, cost).loss for experts in (4, 16)}
        assert min(losses, key=losses.get) == better


def test_what_a_budget_cannot_reach_is_none_and_what_is_cheap_anyway_is_optimal():
    ask = setting(STRONG)
    best = loss_optimal(ask, 8, FLOPS)
    assert bounded_loss(ask, 8, FLOPS, 0.999 * best.loss) is None
    assert bounded_cost(ask, 8, FLOPS, 1e-12) is None
    assert bounded_cost(ask, 8, FLOPS, 2 * best.cost) == best
    assert optimal_for_loss(ask, 8, 1.0, FLOPS) is None, "below the irreducible loss"
    assert optimal_for_cost(ask, 8, 1e-12, FLOPS) is None


def test_budgets_for_a_loss_and_for_a_cost():
    ask = setting(STRONG)
    for experts in (1, 16):
        best = loss_optimal(ask, experts, FLOPS)
        for found in (
            optimal_for_loss(ask, experts, best.loss, 30 * FLOPS),
            optimal_for_cost(ask, experts, best.cost, FLOPS / 7),
        ):
            assert found.flops == pytest.approx(FLOPS, rel=1e-3) and found.loss == pytest.approx(best.loss, rel=1e-5)


def test_budgets_of_a_laptop_are_asked_as_those_of_a_pod():
    """Some of the budgets that are tried are then too small to have an optimum."""
    ask = setting(STRONG, expert_size=0.5)
    small = loss_optimal(ask, 1, 1e12)
    found = optimal_for_cost(ask, 4, small.cost, 1e12)
    assert found.cost == pytest.approx(small.cost, rel=1e-6) and found.loss < small.loss
    found = optimal_for_loss(ask, 4, small.loss, 1e12)
    assert found.loss == pytest.approx(small.loss, rel=1e-6) and found.flops < small.flops
    assert bounded_loss(ask, 4, 1e12, small.loss).cost < small.cost


@pytest.mark.parametrize(
    "ask",
    [
        lambda: Mixture(top_k=0),
        lambda: Mixture(top_k=1.5),
        lambda: Mixture(routed_share=1.2),
        lambda: Mixture(weight_bytes=np.inf),
        lambda: Mixture(top_k=4).check(2),
        lambda: Mixture().check(2.5),
        lambda: Mixture().check(0),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(ask):
    with pytest.raises(FitRefused) as refused:
        ask()
    assert refused.value.reason == "question"
