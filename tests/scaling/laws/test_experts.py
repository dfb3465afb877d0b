"""Laws of experts, each at a point worked out apart from it, and what their papers conclude."""

import math

import numpy as np
import pytest

from chinchilla_jax.scaling.laws.form import form
from chinchilla_jax.scaling.laws.published import law


def test_routed_law_in_base_ten():
    # S-BASE, N = 1e9, E = 64, step by step.
    hat = 1 / (1 / (63 + 1 / (1 / 1.847 - 1 / 314.478)) + 1 / 314.478)
    assert hat == pytest.approx(53.77, abs=0.005)
    log_loss = -0.082 * 9 - 0.108 * math.log10(hat) + 0.009 * 9 * math.log10(hat) + 1.104
    assert law("clark2022_s_base").value(params=1e9, experts=64) == pytest.approx(10**log_loss, rel=1e-12)
    dense = law("clark2022_dense").value(x=1e9)
    for name in ("s_base", "rl_r", "hash"):
        one = law(f"clark2022_{name}").value(params=1e9, experts=1)
        assert one == pytest.approx(dense, rel=0.02), "at one expert the routed law is the dense one, up to rounding"


def test_routed_served_law_by_hand():
    constants = {"A": 120.0, "B": 0.9, "C": 250.0, "F": 1.3, "alpha": 0.28, "beta": 0.6, "gamma": 0.27}
    constants |= {"d": -0.001, "E_start": 1.8, "E_max": 300.0}
    hat = 1 / (1 / (15 + 1 / (1 / 1.8 - 1 / 300)) + 1 / 300)
    total = 120 / 1e9**0.28 + 0.9 / hat**0.6 + 250 / 2e10**0.27 + 1.3
    log_loss = math.log(total) - 0.001 * math.log(1e9) * math.log(hat)
    value = form("routed_served").value(constants, params=1e9, experts=16, tokens=2e10)
    assert value == pytest.approx(math.exp(log_loss), rel=1e-12)


def test_granularity_law_by_hand():
    by_hand = 0.47 + (2.1 / 8**0.58 + 18.1) / 1e10**0.115 + 30.8 / 1e11**0.147
    assert law("krajewski2024").value(params=1e10, tokens=1e11, granularity=8) == pytest.approx(by_hand, rel=1e-12)
    assert law("krajewski2024_dense").value(params=1e9, tokens=1e11) == pytest.approx(
        0.47 + 16.3 / 10 ** (9 * 0.126) + 26.7 / 10 ** (11 * 0.127), rel=1e-12
    )


def test_sparsity_law_by_hand_and_its_signs():
    value = law("abnar2025").value
    by_hand = 16612.5 / 1e9**0.5962 + 5455.67 / 2e10**0.3954 + 0.4598 * 0.1**0.1666
    by_hand += 17.26 / (0.1**0.1603 * 1e9**0.1595) + 0.94
    assert value(params=1e9, tokens=2e10, sparsity=0.9) == pytest.approx(by_hand, rel=1e-12)
    # lam is negative: the third term falls with sparsity, and large models gain from it where small ones lose.
    sparse = np.array([0.0, 0.9])
    assert (
        np.diff(value(params=1e12, tokens=1e13, sparsity=sparse))
        < 0
        < np.diff(value(params=1e8, tokens=1e13, sparsity=sparse))
    )


def dense_equivalent(c, params, experts):
    """Effective parameter count (eq. 11 of Clark et al.): the dense N of the same loss."""
    hat = 1 / (1 / (experts - 1 + 1 / (1 / c["E_start"] - 1 / c["E_max"])) + 1 / c["E_max"])
    e, start, n = np.log10(hat), np.log10(c["E_start"]), np.log10(params)
    return 10 ** (((c["a"] + c["c"] * e) * n + c["b"] * (e - start)) / (c["a"] + c["c"] * start))


def cutoff_params(c):
    """The dense N above which more experts no longer help."""
    return 10 ** (-c["b"] / c["c"])


@pytest.mark.parametrize("name", ["s_base", "rl_r", "hash"])
def test_the_dense_equivalent_has_the_same_loss(name):
    entry = law(f"clark2022_{name}")
    sizes, experts = np.array([5e6, 1e8, 1.3e9]), np.array([128.0, 8.0, 512.0])
    equal = dense_equivalent(entry.constants, sizes, experts)
    assert (equal > sizes).all()
    assert entry.value(params=equal, experts=1) == pytest.approx(entry.value(params=sizes, experts=experts), rel=1e-12)
    assert dense_equivalent(entry.constants, sizes, 1.0) == pytest.approx(sizes, rel=1e-9)


def test_5m_parameters_with_128_experts_are_worth_about_55m():
    worth = dense_equivalent(law("clark2022_s_base").constants, 5e6, 128)
    assert worth == pytest.approx(55e6, rel=0.1), "the paper's example; the rounded constants give 52M"


@pytest.mark.parametrize(("name", "printed"), [("s_base", 937e9), ("rl_r", 85e9), ("hash", 83e9)])
def test_rounded_constants_do_not_give_the_printed_cutoff_but_allow_it(name, printed):
    c = law(f"clark2022_{name}").constants
    assert cutoff_params(c) != pytest.approx(printed, rel=0.05)
    corners = [cutoff_params({"b": c["b"] + i, "c": c["c"] + j}) for i in (-5e-4, 5e-4) for j in (-5e-4, 5e-4)]
    assert min(corners) < printed < max(corners)


def test_at_the_cutoff_more_experts_change_nothing():
    entry = law("clark2022_rl_r")
    losses = entry.value(params=cutoff_params(entry.constants), experts=np.array([1.0, 8.0, 512.0]))
    assert losses == pytest.approx(np.full(3, losses[0]), rel=1e-12)
