"""Each law by itself: its value at a point worked out apart from it, and planted constants found again."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from chinchilla_jax.scaling.fits.multistart import SQUARED_LOG
from chinchilla_jax.scaling.laws.fit import fit_form
from chinchilla_jax.scaling.laws.form import form, forms
from chinchilla_jax.scaling.laws.published import law


def grid(**axes):
    """All combinations of the axes, flat."""
    mesh = np.meshgrid(*axes.values(), indexing="ij")
    return {name: values.ravel() for name, values in zip(axes, mesh, strict=True)}


N, D = np.geomspace(2e7, 3e9, 5), np.geomspace(1e9, 1e11, 5)
N_D = grid(params=N, tokens=D)
N_3, D_3 = np.geomspace(2e7, 3e9, 3), np.geomspace(1e9, 1e11, 3)

# Form -> constants (the published ones where there are any) and the runs they are planted in.
PLANTED = {
    "chinchilla": ("hoffmann2022_unrounded", N_D),
    "kaplan": ("kaplan2020", N_D),
    "kaplan_steps": ("kaplan2020_steps", grid(params=N, steps=np.geomspace(1e3, 1e5, 5))),
    "critical_batch": ("kaplan2020_critical_batch", {"loss": np.linspace(2.0, 6.0, 6)}),
    "embedding_count": ("pearce2024", {"params": N}),
    "power": ("deepseek2024_learning_rate", {"x": np.geomspace(1e17, 1e20, 6)}),
    "power_of_params_and_tokens": ("steplaw2025_learning_rate", N_D),
    "offset_power": ("cerebras2023", {"x": np.geomspace(1e18, 1e23, 9)}),
    "overtraining": (
        {"E": 1.5, "a": 140.0, "b": 190.0, "eta": 0.12},
        grid(flops=np.geomspace(1e17, 1e21, 5), multiplier=np.array([5.0, 20.0, 80.0, 320.0])),
    ),
    "downstream_error": ({"epsilon": 0.85, "k": 2.0, "gamma": 0.75}, {"loss": np.linspace(2.2, 5.0, 8)}),
    "data_constrained": (
        "muennighoff2023",
        grid(params=np.geomspace(1e7, 8e9, 4), tokens=D_3, unique_tokens=np.array([1e8, 4e8, 1.5e9])),
    ),
    "routed": ("clark2022_s_base", grid(params=N, experts=np.array([1.0, 2, 4, 8, 32, 128, 512]))),
    "routed_served": (
        {"A": 120.0, "B": 0.9, "C": 250.0, "F": 1.3, "d": -0.001, "alpha": 0.28, "beta": 0.6, "gamma": 0.27,
         "E_start": 1.8, "E_max": 300.0},
        grid(params=N_3, experts=np.array([1.0, 4, 16, 256]), tokens=D_3),
    ),
    "granularity": ("krajewski2024", grid(params=N_3, tokens=D_3, granularity=np.array([1.0, 2, 4, 16]))),
    "sparsity": ("abnar2025", grid(params=N_3, tokens=D_3, sparsity=np.array([0.0, 0.5, 0.8, 0.95]))),
    "interaction": (
        {"alpha": 0.1, "a1": -0.1, "b1": -0.45, "beta": -0.1, "a2": 40.0, "b2": 0.4, "gamma": -0.1, "a3": 12.0,
         "b3": -1.2},
        N_D,
    ),
    "broken_power_1": (
        {"a": 0.4, "b": 90.0, "c0": 0.2, "c1": 0.3, "d1": 1e8, "f1": 0.4}, {"x": np.geomspace(1e5, 1e11, 30)}
    ),
    "broken_power_2": (
        {"a": 0.4, "b": 20.0, "c0": 0.05, "c1": 0.3, "d1": 1e7, "f1": 0.4, "c2": -0.2, "d2": 1e10, "f2": 0.3},
        {"x": np.geomspace(1e5, 1e13, 45)},
    ),
    "width": ({"a": 2.469, "b": -0.423, "c": 2.923}, {"params": np.geomspace(5.0, 1500.0, 7)}),
}  # fmt: skip


def elsewhere(inputs):
    """Inputs three times as large, where an input can be; the test of a fit is what it says there."""
    return {k: v if k in ("sparsity", "loss") else 3.0 * v for k, v in inputs.items()}


def test_every_form_is_planted_and_recovered():
    assert set(PLANTED) == set(forms())


@pytest.mark.parametrize("name", PLANTED)
def test_planted_constants_are_recovered(name):
    planted, inputs = PLANTED[name]
    constants = law(planted).constants if isinstance(planted, str) else planted
    truth = form(name)
    # Of the ten constants' forms few starts arrive, of the others most.
    starts = 64 if name in ("sparsity", "interaction") else 16
    fit = fit_form(truth, inputs, truth.value(constants, **inputs), SQUARED_LOG, starts=starts)
    assert fit.converged
    assert fit.predictions == pytest.approx(truth.value(constants, **inputs), rel=1e-6)
    assert fit.predict(**elsewhere(inputs)) == pytest.approx(truth.value(constants, **elsewhere(inputs)), rel=1e-4)
    if name != "broken_power_2":  # the two breaks may come out in either order
        open_names = {constant for direction in fit.flat for constant in direction.names}
        for constant in set(constants) - open_names:
            assert fit.constants[constant] == pytest.approx(constants[constant], rel=1e-4), constant


@pytest.mark.parametrize("name", PLANTED)
def test_searched_quantities_and_constants_are_inverse_to_each_other(name):
    planted, inputs = PLANTED[name]
    c = SimpleNamespace(**(law(planted).constants if isinstance(planted, str) else planted))
    x, typical = SimpleNamespace(**inputs), 2.7
    for constant in form(name).constants:
        u = constant.encode(getattr(c, constant.name), c, x, typical)
        assert constant.decode(u, c, x, typical, np) == pytest.approx(getattr(c, constant.name), rel=1e-9)


def test_chinchilla_at_the_compute_of_gopher():
    loss = law("hoffmann2022_unrounded").value(params=4.0361e10, tokens=2.3785e12)
    assert loss == pytest.approx(1.918412, abs=1e-6), "the recomputed loss at the optimum for 5.76e23 FLOPs"
    assert law("besiroglu2024").value(params=7.2249e10, tokens=1.32874e12) == pytest.approx(1.974441, abs=1e-6)


def test_kaplan_is_its_own_limits():
    c, joint = law("kaplan2020").constants, law("kaplan2020")
    by_hand = ((6.4e13 / 1e9) ** (0.076 / 0.103) + 1.8e13 / 1e10) ** 0.103
    assert joint.value(params=1e9, tokens=1e10) == pytest.approx(by_hand, rel=1e-12)
    assert joint.value(params=1e9, tokens=1e30) == pytest.approx((c["Nc"] / 1e9) ** c["aN"], rel=1e-6)
    assert joint.value(params=1e30, tokens=1e10) == pytest.approx((c["Dc"] / 1e10) ** c["aD"], rel=1e-6)
    # eq. 1.1 with the constants of the one-dimensional fit: GPT-2 size.
    by_hand = math.exp(0.076 * math.log(8.8e13 / 1.5e9))
    assert law("kaplan2020_params").value(x=1.5e9) == pytest.approx(by_hand, rel=1e-12)
    assert law("kaplan2020_tokens").value(x=2.3e10) == pytest.approx((5.4e13 / 2.3e10) ** 0.095, rel=1e-12)
    assert law("kaplan2020_compute").value(x=1e4) == pytest.approx(10 ** (0.05 * (math.log10(3.1) + 4)), rel=1e-12)
    by_hand = 10 ** (0.077 * math.log10(6.5e13 / 1e8)) + 10 ** (0.76 * math.log10(2100 / 5e4))
    assert law("kaplan2020_steps").value(params=1e8, steps=5e4) == pytest.approx(by_hand, rel=1e-12)


def test_data_constrained_at_the_two_models_its_authors_compare():
    # Printed by the authors' repository for figure 1 (right): fewer parameters and more epochs win.
    value = law("muennighoff2023").value
    assert value(params=6.34e9, tokens=242e9, unique_tokens=25e9) == pytest.approx(2.2256440889984477, rel=1e-12)
    assert value(params=8.67e9, tokens=178e9, unique_tokens=25e9) == pytest.approx(2.2269634075087867, rel=1e-12)


def test_data_constrained_with_fresh_tokens_and_few_parameters_is_its_base_law():
    point = {"params": 1e8, "tokens": 2e10}
    fresh = law("muennighoff2023").value(**point, unique_tokens=1e30)
    assert fresh == pytest.approx(law("muennighoff2023_base").value(**point), rel=1e-12)


def test_overtraining_is_the_chinchilla_law_with_tied_exponents():
    base = law("muennighoff2023_base").constants
    eta = base["alpha"] / 2
    tied = {"E": base["E"], "a": base["A"] * 6**eta, "b": base["B"] * 6**eta, "eta": eta}
    n, d = 3e9, 7e10
    by_hand = 1.8691 + math.exp(6.255414 - 0.3526596 * math.log(n)) + math.exp(7.3049974 - 0.3526596 * math.log(d))
    assert form("overtraining").value(tied, flops=6 * n * d, multiplier=d / n) == pytest.approx(by_hand, abs=1e-4)
    # Muennighoff et al. print U_N = 0.051 U_D for the optimum of the same base law.
    assert (tied["a"] / tied["b"]) ** (0.5 / eta) == pytest.approx(0.051, abs=5e-4)


def test_downstream_error_falls_from_chance_towards_its_limit():
    value = form("downstream_error").value({"epsilon": 0.85, "k": 2.0, "gamma": 0.75}, loss=np.array([2.0, 100.0]))
    assert value == pytest.approx([0.85 - 2.0 * math.exp(-1.5), 0.85], rel=1e-12)


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
    constants = PLANTED["routed_served"][0]
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
    assert np.diff(value(params=1e12, tokens=1e13, sparsity=sparse)) < 0 < np.diff(
        value(params=1e8, tokens=1e13, sparsity=sparse)
    )


def test_interaction_law_by_hand():
    c, n, d = PLANTED["interaction"][0], 1e9, 1e11
    exponent = math.exp(-0.1 * n**0.1 - 0.45)
    by_hand = math.exp(12 * n**-0.1 - 1.2) + math.exp(40 * n**-0.1 + 0.4) * d**-exponent
    assert form("interaction").value(c, params=n, tokens=d) == pytest.approx(by_hand, rel=1e-12)


def test_broken_power_law_by_hand_and_its_two_slopes():
    c, value = PLANTED["broken_power_1"][0], form("broken_power_1").value
    by_hand = 0.4 + 90 * 1e7**-0.2 * (1 + (1e7 / 1e8) ** 2.5) ** (-0.3 * 0.4)
    assert value(c, x=1e7) == pytest.approx(by_hand, rel=1e-12)
    for x, slope in ((1e2, -0.2), (1e16, -0.5)):
        around = np.log(value(c, x=np.array([x, 2 * x])) - 0.4)
        assert np.diff(around) / math.log(2) == pytest.approx(slope, abs=1e-4)


def test_broken_power_law_survives_a_sharp_break():
    sharp = {**PLANTED["broken_power_1"][0], "f1": 1e-3}
    value = form("broken_power_1").value(sharp, x=np.array([1e7, 1e10]))
    assert value == pytest.approx([0.4 + 90 * 1e7**-0.2, 0.4 + 90 * 1e10**-0.2 * 100**-0.3], rel=1e-9)


def test_cerebras_law_by_hand():
    assert law("cerebras2023").value(x=5.984e22) == pytest.approx(1.5066, rel=1e-12)
    assert law("cerebras2023").value(x=2.3e22) == pytest.approx((5.984 / 2.3) ** 0.0737 + 0.5066, rel=1e-12)
