"""Approach 1: the envelope of training curves as in the paper and corrected, its flags and its refusals."""

import dataclasses

import numpy as np
import pytest

from chinchilla_jax.scaling.fits.approach1.curves import smooth
from chinchilla_jax.scaling.fits.approach1.envelope import CORRECTED, PAPER, fit_envelope
from chinchilla_jax.scaling.fits.resample import Resampling, Residuals, interval
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.read.runs import Curve, FitRefused, Run
from chinchilla_jax.tools.simulate import plan_horizons, plan_isoflop, simulate_curves

LAW = Surface(1.69, 406.4, 410.7, 0.34, 0.28)

SIZES = np.geomspace(7e7, 1e10, 16)


@pytest.fixture(scope="module")
def exact():
    """16 sizes x 4 horizons without noise."""
    return simulate_curves(LAW, SIZES, plan_horizons(LAW, SIZES))


@pytest.fixture(scope="module")
def noisy():
    return simulate_curves(LAW, SIZES, plan_horizons(LAW, SIZES), noise=0.002, batch_noise=0.005, seed=1)


def test_corrected_recovers_a_planted_law_without_noise(exact):
    fit = fit_envelope(exact, resampling=None)
    params, tokens, loss = LAW.optimum(1e23)
    assert fit.params_law.exponent == pytest.approx(LAW.a, abs=1e-3)
    assert fit.tokens_law.exponent == pytest.approx(LAW.b, abs=1e-3)
    assert fit.params_law.at(1e23) == pytest.approx(params, rel=5e-3)
    assert fit.tokens_law.at(1e23) == pytest.approx(tokens, rel=5e-3)
    # The curve's end is read within the smoothing's own error, 1e-4.
    assert fit.loss_offset.at(1e23) == pytest.approx(loss, rel=1e-3)
    assert fit.scatter <= 2e-4 and fit.boot_params is None


def test_corrected_does_not_ask_for_shared_budgets():
    rng = np.random.default_rng(0)
    horizons = plan_horizons(LAW, SIZES, 3) * rng.uniform(0.5, 2.0, (16, 3))
    fit = fit_envelope(simulate_curves(LAW, SIZES, horizons), resampling=None)
    assert fit.params_law.exponent == pytest.approx(LAW.a, abs=1e-3)


def test_corrected_reads_isoflop_runs_too():
    budgets = np.geomspace(1e19, 1e21, 4)
    sizes = plan_isoflop(LAW, budgets)
    runs = [
        run
        for budget, row in zip(budgets, sizes, strict=True)
        for run in simulate_curves(LAW, row, (budget / 6 / row)[:, None], seed=int(budget % 97))
    ]
    fit = fit_envelope(runs, resampling=None)
    assert fit.params_law.exponent == pytest.approx(LAW.a, abs=1e-3)
    assert fit.params_law.at(1e22) == pytest.approx(LAW.optimum(1e22)[0], rel=5e-3)


def test_the_papers_staircase_misses_a_law_known_exactly_by_more_than_its_interval(exact):
    fit = fit_envelope(exact, preset=PAPER)
    low, high = interval(fit.boot_params.exponent, 0.95)
    assert high < LAW.a and fit.params_law.exponent < LAW.a - 0.02
    corrected = fit_envelope(exact)
    low, high = interval(corrected.boot_params.exponent, 0.95)
    assert low < LAW.a < high


def test_presets_say_what_they_do(exact):
    paper, corrected = (fit_envelope(exact, preset=p, resampling=None) for p in (PAPER, CORRECTED))
    assert len(paper.points.flops) == len(corrected.points.flops) == 1500
    ratio = np.diff(np.log(paper.points.flops))
    assert ratio == pytest.approx(np.full(1499, ratio[0]))
    assert len(paper.optima) == 1500 and paper.dropped == 0
    assert PAPER.resampling == Resampling(100, 0.8) and CORRECTED.resampling == Residuals(1000)
    for preset in (PAPER, CORRECTED):
        assert preset.differences and all(line[-1] != "." and "\n" not in line for line in preset.differences)


def test_every_envelope_point_is_the_lowest_curve_there(exact):
    points = fit_envelope(exact, preset=PAPER, resampling=None).points
    for i in range(0, 1500, 97):
        losses = {}
        for run in exact:
            flops, loss = smooth(run, "winner")
            if flops[0] <= np.log(points.flops[i]) <= flops[-1]:
                losses[run.name] = np.interp(np.log(points.flops[i]), flops, loss)
        winner = exact[points.run[i]]
        assert min(losses, key=losses.get) == winner.name
        assert points.loss[i] == pytest.approx(losses[winner.name])
        assert 6 * points.params[i] * points.tokens[i] == pytest.approx(points.flops[i])
        assert points.done[i] == pytest.approx(points.tokens[i] / winner.tokens)


def test_points_before_the_last_15_percent_are_counted(exact):
    points = fit_envelope(exact, preset=PAPER, resampling=None).points
    assert points.on_schedule == pytest.approx((points.done >= 0.85).mean())
    # Were curves free of the learning rate's lag, the paper's check would say nothing about them.
    assert 0.3 < points.on_schedule < 0.7
    assert any("last 15%" in line for line in fit_envelope(exact, preset=PAPER, resampling=None).warnings)


def test_edge_points_are_flagged_by_kind():
    small = simulate_curves(LAW, SIZES[:2], plan_horizons(LAW, SIZES[:2]))
    fit = fit_envelope(small, preset=PAPER, resampling=None)
    # Of two sizes one is always the smallest and the other the largest where both have a curve.
    assert fit.points.edges["smallest"] + fit.points.edges["largest"] == 1500
    assert any("at an edge" in line for line in fit.warnings)


def test_a_size_whose_curves_stop_while_it_wins_is_flagged():
    sizes = np.array([1e8, 3e8, 9e8])
    horizons = plan_horizons(LAW, sizes, 2)
    horizons *= [[8], [0.25], [1]]  # the middle size stops where it is best, the others go on
    runs = simulate_curves(LAW, sizes, horizons, points=400, lift=0.0)
    points = fit_envelope(runs, preset=PAPER, resampling=None).points
    last = max(run.flops for run in runs if run.params == sizes[1])
    where = np.flatnonzero(points.edge == "end")
    assert len(where) == 1 and points.flops[where[0]] == pytest.approx(last, rel=0.02)


def test_corrected_drops_values_whose_optimum_is_beyond_the_sizes(exact):
    fit = fit_envelope(exact, resampling=None)
    sizes = fit.optima[:, 1]
    assert fit.dropped == 1500 - len(sizes) > 0
    assert (sizes > SIZES[0]).all() and (sizes < SIZES[-1]).all()


def test_both_resamplings_of_runs_give_intervals_about_the_fit(noisy):
    for scheme in (Resampling(200), Resampling(100, 0.8), Residuals(200)):
        fit = fit_envelope(noisy, resampling=scheme)
        low, high = interval(fit.boot_params.exponent, 0.95)
        assert low < fit.params_law.exponent < high and 0.005 < high - low < 0.3, scheme
        assert fit.kept_draws == 1.0
        low, high = interval(fit.boot_loss_offset.at(1e22), 0.95)
        assert low < fit.loss_offset.at(1e22) < high < 1.01 * low
    for scheme in (Resampling(200), Resampling(100, 0.8)):
        fit = fit_envelope(noisy, preset=PAPER, resampling=scheme)
        low, high = interval(fit.boot_params.exponent, 0.95)
        assert low < fit.params_law.exponent < high


def test_the_noise_is_estimated(noisy):
    # 0.2% from run to run and 0.5% per logged loss, of which the line at the end leaves about a half.
    assert fit_envelope(noisy, resampling=None).scatter == pytest.approx(0.0034, rel=0.2)


def test_the_same_seed_gives_the_same_interval(noisy):
    fits = [fit_envelope(noisy, resampling=Residuals(20), seed=seed) for seed in (0, 0, 1)]
    first, again, other = (fit.boot_params.exponent for fit in fits)
    assert (first == again).all() and (first != other).any()


def test_one_bad_curve_does_not_move_the_estimate_far_beyond_its_interval(noisy):
    bad = dataclasses.replace(noisy[30], curve=Curve(noisy[30].curve.tokens, noisy[30].curve.loss * 1.05))
    fit = fit_envelope([*noisy[:30], bad, *noisy[31:]])
    low, high = interval(fit.boot_params.exponent, 0.95)
    assert low < LAW.a < high


def test_held_out_runs_do_not_enter(exact):
    held = [dataclasses.replace(run, role="predicted", loss=9.0) for run in exact[:3]]
    fit = fit_envelope([*exact[3:], *held], resampling=None)
    assert len(fit.runs) == len(exact) - 3


def run(params, flops, loss=3.0, curve=True, low=0.02):
    share = np.linspace(low, 1, 50)
    tokens = flops / (6 * params)
    falling = Curve(tokens * share, loss / share**0.05)
    return Run(f"{params:g}-{flops:g}", params, tokens, flops, loss, curve=falling if curve else None)


@pytest.mark.parametrize(
    ("runs", "preset", "reason"),
    [
        ([run(1e8, 1e19, curve=False)], CORRECTED, "no_curves"),
        ([run(1e8, 1e19), run(1e8, 4e19)], CORRECTED, "one_size"),
        ([run(1e8, 1e19), run(4e8, 1e22)], PAPER, "no_overlap"),
        ([run(1e8, 1e19), run(4e8, 1e19), run(8e8, 1e19)], CORRECTED, "few_sizes"),
        ([run(1e8, 1e19, 3.0), run(4e8, 1e19, 4.0)], PAPER, "few_sizes"),
        # The same loss whatever the size.
        ([run(n, c, 1e3 * c**-0.15) for n in SIZES for c in (1e19, 1e20)], CORRECTED, "no_optimum"),
        # Worst in the middle.
        (
            [run(n, c, 1e3 * c**-0.15 * (1 - 0.01 * np.log(n / 8e8) ** 2)) for n in SIZES for c in (1e19, 1e20)],
            CORRECTED,
            "no_optimum",
        ),
        # Ever better towards larger sizes.
        ([run(n, c, 1e3 * c**-0.15 * n**-0.02) for n in SIZES for c in (1e19, 1e20)], CORRECTED, "no_optimum"),
    ],
)
def test_what_cannot_be_fitted_is_refused_with_a_reason(runs, preset, reason):
    with pytest.raises(FitRefused) as caught:
        fit_envelope(runs, preset=preset)
    assert caught.value.reason == reason and "\n" not in str(caught.value)


def test_the_paper_preset_has_no_residuals():
    with pytest.raises(FitRefused) as caught:
        fit_envelope([run(1e8, 1e19)], preset=PAPER, resampling=Residuals())
    assert caught.value.reason == "resampling"
