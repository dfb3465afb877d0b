"""Laws of dense models, each at a point worked out apart from it."""

import math

import numpy as np
import pytest

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
