"""Arms of one budget are compared there, pair by pair, and the gain is read off the reference's ladder."""

import dataclasses

import numpy as np
import pytest

from chinchilla_jax.scaling.answers.compare.cells import common_budget, draw_cells
from chinchilla_jax.scaling.answers.compare.compare import compare
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns, Run

C, SEEDS, SIZES = 1e12, 4, (1e5, 2e5)


def loss(flops, size):
    return 1.5 + 2.0 * (flops / 1e12) ** -0.15 + 0.05 * np.log(size / 1e5)


def world(rng, gains, noise=0.002, shared=0.8):
    """Runs of the reference at C / 2, C and 2 C, and of one arm for each gain at C; seeds are lucky together."""
    luck = {(size, s): rng.standard_normal() for size in SIZES for s in range(SEEDS)}

    def run(name, flops, size, seed, gain=1.0):
        alone, together = rng.standard_normal(), luck[size, seed] if flops == C else rng.standard_normal()
        error = noise * (np.sqrt(shared) * together + np.sqrt(1 - shared) * alone)
        value = loss(flops * gain, size) * (1 + error)
        return Run(f"{name}{flops}{size}{seed}", size, flops / 6 / size, flops, value, budget=flops, seed=str(seed))

    grid = [(size, seed) for size in SIZES for seed in range(SEEDS)]
    arms = [[run("p", flops, *cell) for flops in (C / 2, C, 2 * C) for cell in grid]]
    return arms + [[run("a", C, *cell, gain) for cell in grid] for gain in gains]


def factors(arms, **options):
    drawn = draw_cells(arms, C, 1000, 0, **options)
    return [drawn.flops(0, drawn.loss(k, C)) / C for k in range(len(arms))]


def test_without_noise_the_gain_comes_back_up_to_the_bend_of_the_ladder():
    one, better, worse = map(np.median, factors(world(np.random.default_rng(0), (1.3, 0.7), noise=1e-9)))
    assert one == pytest.approx(1.0, abs=1e-3)
    assert (better, worse) == pytest.approx((1.3, 0.7), rel=0.02)


@pytest.mark.parametrize("gain", [0.7, 1.0, 1.4])
def test_intervals_hold(gain):
    held = []
    for number in range(150):
        drawn = factors(world(np.random.default_rng(number), (gain, 1.1)))[1]
        low, high = np.quantile(drawn, [0.025, 0.975])
        held.append(low <= gain <= high)
    assert 0.88 <= np.mean(held) <= 0.99


def test_intervals_hold_for_an_arm_that_is_noisier_than_the_others():
    held = []
    for number in range(150):
        arms = world(np.random.default_rng(number), (1.0, 1.0), noise=0.001)
        luck = np.random.default_rng(1000 + number)
        arms[2] = [dataclasses.replace(run, loss=run.loss * (1 + 0.01 * luck.standard_normal())) for run in arms[2]]
        low, high = np.quantile(factors(arms)[2], [0.025, 0.975])
        held.append(low <= 1.0 <= high)
    assert 0.88 <= np.mean(held) <= 0.99


def test_a_ladder_that_noise_hides_is_refused_and_one_that_bends_is_read_as_a_line():
    arms = world(np.random.default_rng(5), (1.0,), noise=0.2)
    with pytest.raises(FitRefused, match="gains no more from its smallest to its largest budget than luck"):
        draw_cells(arms, C, 100, 0)
    clear = world(np.random.default_rng(6), (1.0,))
    bent = [dataclasses.replace(run, loss=run.loss * (1.12 if run.budget == C else 1.0)) for run in clear[0]]
    drawn = factors([bent, clear[1]])
    assert all(np.isfinite(part).all() and (part > 0).all() for part in drawn)
    budgets = np.array([C / 2, C, 2 * C])
    means = [np.mean([np.log(run.loss) for run in bent if run.budget == budget]) for budget in budgets]
    slope = np.polyfit(np.log(budgets), means, 1)[0]
    assert np.log(np.median(drawn[1])) == pytest.approx(-np.log(1.12) / slope, rel=0.1)


def test_sizes_are_paired_by_the_model_that_is_trained_plainly():
    """Experts have more parameters than the model in whose place they are trained."""
    arms = world(np.random.default_rng(7), (1.2,))
    sparse = [dataclasses.replace(run, params=2.5 * run.params) for run in arms[1]]
    with pytest.raises(FitRefused, match="other sizes than the reference"):
        draw_cells([arms[0], sparse], C, 100, 0)
    plain = {run.name: run.params for run in arms[1]}
    drawn = draw_cells([arms[0], sparse], C, 100, 0, plain=plain)
    same = draw_cells(arms, C, 100, 0)
    np.testing.assert_array_equal(drawn.difference, same.difference)
    assert drawn.sizes[1] == pytest.approx(2.5 * same.sizes[1])


def test_what_pairs_share_makes_the_interval_narrower():
    arms = world(np.random.default_rng(1), (1.0, 1.0), shared=0.9)
    paired, alone = (np.log(factors(arms, paired=paired)[1]).std() for paired in (True, False))
    assert paired < 0.6 * alone
    drawn = draw_cells(arms, C, 100, 0)
    assert drawn.correlation[0, 1] > 0.5 and drawn.shared[0, 1] == SEEDS * len(SIZES)


def test_compare_takes_the_one_budget_that_arms_have():
    arms = world(np.random.default_rng(2), (1.5, 0.6))
    loaded = {name: LoadedRuns(name, tuple(runs), (), {"loss": "loss"}, "executed")
              for name, runs in zip(("plain", "good", "bad"), arms, strict=True)}  # fmt: skip
    compared = compare(loaded, draws=200)
    plain, good, bad = compared.arms
    assert compared.budget == C and plain.target.factor == 1.0
    assert good.target.factor_95[0] > 1.0 > bad.target.factor_95[1] and good.best == 1.0
    assert "runs of the same size and seed are compared there" in " ".join(compared.notes)
    assert not compared.warnings


def test_what_cannot_be_compared_is_refused():
    arms = world(np.random.default_rng(3), (1.0,))
    assert common_budget(arms) == C and common_budget([arms[0], arms[0]]) is None
    wide = [run for run in arms[0] if run.budget >= C]
    assert common_budget([*arms, wide]) is None, "an arm with several budgets has a frontier"
    at_c = [run for run in arms[0] if run.budget == C]
    for runs, told in (
        ([at_c, arms[1]], "needs runs at 1e.12 FLOPs and at another budget"),
        ([arms[0], [run for run in arms[1] if run.params == SIZES[0]]], "an arm has other sizes than the reference"),
        ([[run for run in arm if run.seed == "0"] for arm in arms], "no size was trained with two seeds"),
    ):
        with pytest.raises(FitRefused, match=told):
            draw_cells(runs, C, 100, 0)
