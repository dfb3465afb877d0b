"""Laws of dense models, each at a point worked out apart from it."""

import math

import numpy as np
import pytest

from chinchilla_jax.scaling.laws.dense import effective
from chinchilla_jax.scaling.laws.form import form
from chinchilla_jax.scaling.laws.optimum import allocate
from chinchilla_jax.scaling.laws.published import law
from tests.scaling.laws.cases import INTERACTION

BROKEN = {"a": 0.4, "b": 90.0, "c0": 0.2, "c1": 0.3, "d1": 1e8, "f1": 0.4}


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


def test_interaction_law_by_hand():
    c, n, d = INTERACTION, 1e9, 1e11
    exponent = math.exp(-0.1 * n**0.1 - 0.45)
    by_hand = math.exp(12 * n**-0.1 - 1.2) + math.exp(40 * n**-0.1 + 0.4) * d**-exponent
    assert form("interaction").value(c, params=n, tokens=d) == pytest.approx(by_hand, rel=1e-12)


def test_broken_power_law_by_hand_and_its_two_slopes():
    c, value = BROKEN, form("broken_power_1").value
    by_hand = 0.4 + 90 * 1e7**-0.2 * (1 + (1e7 / 1e8) ** 2.5) ** (-0.3 * 0.4)
    assert value(c, x=1e7) == pytest.approx(by_hand, rel=1e-12)
    for x, slope in ((1e2, -0.2), (1e16, -0.5)):
        around = np.log(value(c, x=np.array([x, 2 * x])) - 0.4)
        assert np.diff(around) / math.log(2) == pytest.approx(slope, abs=1e-4)


def test_broken_power_law_survives_a_sharp_break():
    sharp = {**BROKEN, "f1": 1e-3}
    value = form("broken_power_1").value(sharp, x=np.array([1e7, 1e10]))
    assert value == pytest.approx([0.4 + 90 * 1e7**-0.2, 0.4 + 90 * 1e10**-0.2 * 100**-0.3], rel=1e-9)


def test_cerebras_law_by_hand():
    assert law("cerebras2023").value(x=5.984e22) == pytest.approx(1.5066, rel=1e-12)
    assert law("cerebras2023").value(x=2.3e22) == pytest.approx((5.984 / 2.3) ** 0.0737 + 0.5066, rel=1e-12)


def test_under_the_interaction_law_the_best_tokens_per_parameter_rise_with_compute():
    value = form("interaction").value
    ratios = []
    for flops in (1e20, 1e21, 1e22, 1e23):
        best = allocate(lambda n, d: value(INTERACTION, params=n, tokens=d), flops)
        ratios.append(best.tokens / best.params)
    assert (np.diff(ratios) > 0).all()


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
