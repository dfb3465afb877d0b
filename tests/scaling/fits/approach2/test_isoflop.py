"""Approach 2: published data, the closed-form bias of parabolas, refusals."""

import numpy as np
import pytest

from chinchilla_jax.scaling.fits.approach2.isoflop import AKIMA, CORRECTED, PAPER, fit_isoflop
from chinchilla_jax.scaling.fits.resample import MinimaScatter, Resampling, Residuals, interval
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.read.runs import FitRefused, Run
from chinchilla_jax.tools.simulate import plan_isoflop, simulate_isoflop

LAW = Surface(1.69, 406.4, 410.7, 0.34, 0.28)

BUDGETS = np.geomspace(1e18, 2.7e19, 4)


def profile(budget, log_sizes, loss):
    return [Run(f"{budget:g}-{z}", np.exp(z), budget / (6 * np.exp(z)), budget, loss(z), budget) for z in log_sizes]


def test_chinchilla_figure_4(figure_4_trimmed):
    fit = fit_isoflop(figure_4_trimmed, resampling=Resampling(1000))
    assert [len(p.runs) for p in fit.profiles] == [8, 16, 13, 9, 8, 8, 8, 15, 5] and not fit.refusals
    assert fit.params_law.exponent == pytest.approx(0.49919, abs=1e-4)
    assert fit.params_law.coefficient == pytest.approx(0.09101, rel=1e-3)
    assert fit.params_law.at(5.76e23) == pytest.approx(66.1e9, rel=1e-3)
    assert fit.tokens_law.exponent == pytest.approx(0.51314, abs=1e-4)
    assert fit.tokens_law.coefficient == pytest.approx(0.9921, rel=1e-3)
    optima = [155e6, 267e6, 511e6, 823e6, 1145e6, 1687e6, 2204e6, 2857e6, 3484e6]
    assert [p.params.best for p in fit.profiles] == pytest.approx(optima, rel=2e-3)
    low, high = interval(fit.boot_params.exponent, 0.8)
    assert low < 0.49919 < high and 0.01 < high - low < 0.08


# Noise-free error of D* at 1e24 FLOPs, and log10 of the coefficient, for 15 tokens within +-2x, 4x, 8x and 16x of D*.
CLOSED_FORM = {
    (0.34, 0.28): ((-0.0033, -0.556779), (-0.0130, -0.561045), (-0.0290, -0.568151), (-0.0510, -0.578092)),
    (0.465, 0.155): ((-0.0167, None), (-0.0650, None), (-0.1391, None), (-0.2312, None)),
    (0.31, 0.31): ((0.0, None), (0.0, None), (0.0, None), (0.0, None)),
}


@pytest.mark.parametrize(
    ("exponents", "factor", "error", "intercept"),
    [(pair, 2 ** (i + 1), *row) for pair, rows in CLOSED_FORM.items() for i, row in enumerate(rows)],
)
def test_bias_of_a_parabola_without_noise(exponents, factor, error, intercept):
    surface = Surface(1.69, 406.4, 410.7, *exponents)
    runs = around_optimum(surface, factor)
    law = fit_isoflop(runs, preset=PAPER, resampling=None).tokens_law
    message = "the parabola in ln D or the power law through its minima no longer is plain least squares"
    assert law.exponent == pytest.approx(surface.b, abs=1e-6), message
    if intercept is not None:
        assert np.log10(law.coefficient) == pytest.approx(intercept, abs=1e-6), message
    # Published to 4 digits; test_grid_bias compares with the closed form at 1e-6.
    assert law.at(1e24) / surface.optimum(1e24)[1] - 1 == pytest.approx(error, abs=6e-5), message


@pytest.mark.parametrize("factor", [2, 4, 8, 16])
@pytest.mark.parametrize("exponents", list(CLOSED_FORM))
def test_the_laws_own_profile_has_a_fraction_of_that_bias(exponents, factor):
    surface = Surface(1.69, 406.4, 410.7, *exponents)
    law = fit_isoflop(around_optimum(surface, factor), preset=CORRECTED, resampling=None)
    # alpha * beta is taken for 0.1; it is 0.095, 0.072 and 0.096. Worst: 1.2% where a parabola misses 23%.
    assert abs(law.tokens_law.at(1e24) / surface.optimum(1e24)[1] - 1) < 0.06 * abs(CLOSED_FORM[exponents][3][0]) + 1e-4
    assert law.params_law.exponent == pytest.approx(surface.a, abs=2e-4)


def around_optimum(surface, factor):
    runs = []
    for budget in np.geomspace(1e17, 1e21, 5):
        best = surface.optimum(budget)[1]
        for tokens in best * np.geomspace(1 / factor, factor, 15):
            params = budget / (6 * tokens)
            runs.append(Run(f"{budget}{tokens}", params, tokens, budget, surface.loss(params, tokens), budget))
    return runs


def test_resampling_that_a_profile_has_nothing_to_draw_from_is_refused(figure_4_trimmed):
    with pytest.raises(FitRefused, match="not MinimaScatter"):
        fit_isoflop(figure_4_trimmed, preset=PAPER, resampling=MinimaScatter())


def test_80_percent_subsets_of_chinchilla_figure_4(figure_4_trimmed):
    fit = fit_isoflop(figure_4_trimmed, preset=PAPER, resampling=Resampling(1000, 0.8))
    # Independent figures, subsets drawn from all runs at once: a (.492, .549), b (.462, .521). Here 80% of each
    # budget, so a budget never loses more than its share: ends within .006 of them. The paper prints (.462, .534) and
    # (.483, .529) for its own runs, which are not all in the figure.
    assert interval(fit.boot_params.exponent, 0.8) == pytest.approx((0.492, 0.549), abs=0.006)
    assert interval(fit.boot_tokens.exponent, 0.8) == pytest.approx((0.462, 0.521), abs=0.006)


def test_presets_on_chinchilla_figure_4_agree_within_their_intervals(figure_4_trimmed):
    fits = {p.name: fit_isoflop(figure_4_trimmed, preset=p) for p in (PAPER, CORRECTED, AKIMA)}
    for name, fit in fits.items():
        low, high = interval(fit.boot_params.exponent, 0.95)
        assert low < 0.49919 < high, name
    assert fits["corrected"].params_law.exponent == pytest.approx(0.4936, abs=1e-3)
    assert fits["akima"].params_law.exponent == pytest.approx(0.5125, abs=1e-3)
    # The paper's subsets are too alike.
    width = {name: np.subtract(*interval(fit.boot_params.exponent, 0.95)[::-1]) for name, fit in fits.items()}
    assert width["paper"] < min(width["corrected"], width["akima"])


def test_parabola_recovers_planted_values():
    runs = profile(1e12, np.linspace(10, 13, 7), lambda z: 3 + 0.07 * (z - 11.7) ** 2)
    runs += profile(4e12, np.linspace(11, 14, 7), lambda z: 2.8 + 0.07 * (z - 12.4) ** 2)
    fit = fit_isoflop(runs, resampling=Resampling(50))
    first = fit.profiles[0]
    assert np.log(first.params.best) == pytest.approx(11.7, abs=1e-9)
    assert first.params.curvature == pytest.approx(0.07, rel=1e-9)
    assert (first.params.lowest, first.scatter) == pytest.approx((3, 0), abs=1e-9)
    # Exact data leave the bootstrap nothing to vary.
    assert np.ptp(fit.boot_params.exponent) < 1e-7


@pytest.mark.parametrize("preset", [PAPER, CORRECTED, AKIMA], ids=lambda preset: preset.name)
def test_every_profile_can_be_drawn_and_is_lowest_at_its_best(preset):
    runs = simulate_isoflop(LAW, BUDGETS, plan_isoflop(LAW, BUDGETS), noise=0.001)
    for profile in fit_isoflop(runs, preset=preset, resampling=None).profiles:
        for curve in (profile.params, profile.tokens):
            x = np.geomspace(curve.low, curve.high, 500)
            assert curve.at(curve.best) == pytest.approx(curve.lowest)
            assert (curve.at(x) >= curve.lowest - 1e-9).all() and curve.low < curve.best < curve.high
            beside = curve.at(curve.best * np.exp([-1e-4, 1e-4])) - curve.lowest
            assert beside.sum() / 2e-8 == pytest.approx(curve.curvature, rel=0.01)


def test_the_skew_of_the_law_is_found_from_all_budgets_together():
    surface = Surface(1.69, 406.4, 410.7, 0.465, 0.155)
    fit = fit_isoflop(around_optimum(surface, 8), preset=CORRECTED, resampling=None)
    skews = [profile.params.skew for profile in fit.profiles]
    assert len(set(skews)) == 1 and skews[0] == pytest.approx((0.155 - 0.465) / 3, abs=0.01)
    assert fit.profiles[0].tokens.skew == pytest.approx(-skews[0], abs=1e-6)


def test_profiles_of_unequal_length_do_not_disturb_each_other():
    sizes = plan_isoflop(LAW, BUDGETS)
    runs = simulate_isoflop(LAW, BUDGETS, sizes, noise=0.001)
    short = [run for run in runs if run.budget != BUDGETS[1]] + [run for run in runs if run.budget == BUDGETS[1]][1:6]
    for preset in (PAPER, AKIMA):
        whole, less = (fit_isoflop(r, preset=preset, resampling=None) for r in (runs, short))
        for i in (0, 2, 3):
            assert less.profiles[i].params.best == pytest.approx(whole.profiles[i].params.best, rel=1e-9)


def test_presets_say_what_they_do():
    assert PAPER.resampling == Resampling(100, 0.8) and PAPER.curve == "parabola"
    for preset in (PAPER, CORRECTED, AKIMA):
        assert preset.differences and all(line[-1] != "." and "\n" not in line for line in preset.differences)


SCHEMES = [
    (preset, scheme) for preset in (PAPER, AKIMA) for scheme in (Resampling(200), Resampling(100, 0.8), Residuals(200))
] + [(CORRECTED, MinimaScatter(200))]


@pytest.mark.parametrize("preset, scheme", SCHEMES, ids=lambda value: getattr(value, "name", str(value)))
def test_every_scheme_gives_an_interval_about_the_fit(preset, scheme):
    runs = simulate_isoflop(LAW, BUDGETS, plan_isoflop(LAW, BUDGETS), noise=0.001)
    fit = fit_isoflop(runs, preset=preset, resampling=scheme)
    for law, boot in ((fit.params_law, fit.boot_params), (fit.tokens_law, fit.boot_tokens)):
        low, high = interval(boot.exponent, 0.95)
        assert low < law.exponent < high and high - low < 0.5
    lowest = [profile.params.lowest for profile in fit.profiles]
    assert fit.loss_law.at(np.array(BUDGETS)) == pytest.approx(lowest, rel=1.5e-3)
    low, high = fit.loss_law.interval(BUDGETS[-1], 0.95)
    assert low < fit.loss_law.at(BUDGETS[-1]) < high and all(0 < p.kept_draws <= 1 for p in fit.profiles)


def test_residual_intervals_grow_with_the_noise_and_not_with_the_replicates():
    widths = {}
    for noise in (0.0005, 0.001, 0.002):
        runs = simulate_isoflop(LAW, BUDGETS, plan_isoflop(LAW, BUDGETS), noise=noise, seed=2)
        boot = fit_isoflop(runs, preset=PAPER, resampling=Residuals(1000)).boot_params.exponent
        widths[noise] = np.subtract(*interval(boot, 0.95)[::-1])
    assert widths[0.001] / widths[0.0005] == pytest.approx(2, rel=0.15)
    assert widths[0.002] / widths[0.001] == pytest.approx(2, rel=0.15)


def test_replicates_leave_out_the_budgets_they_would_have_refused():
    runs = simulate_isoflop(LAW, BUDGETS, plan_isoflop(LAW, BUDGETS, shift=(1, 1, 1, 3.2)), noise=0.002, seed=1)
    fit = fit_isoflop(runs, preset=PAPER, resampling=Resampling(300))
    assert fit.profiles[3].kept_draws < 1 and np.isfinite(fit.boot_params.exponent).all()
