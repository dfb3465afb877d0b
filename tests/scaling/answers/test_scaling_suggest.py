"""Next runs: the interval they promise is the one the runs leave, within the purse, and other uses of it leave more."""

import dataclasses
import math

import numpy as np
import pytest

from chinchilla_jax.scaling.answers.suggest.cells import Cell, added
from chinchilla_jax.scaling.answers.suggest.minima_design import MinimaDesign
from chinchilla_jax.scaling.answers.suggest.suggest import QUANTITIES, answer, suggest
from chinchilla_jax.scaling.fits.approach2.isoflop import CORRECTED, fit_isoflop
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.predict.analysis import analyse
from chinchilla_jax.scaling.predict.predict import predict
from chinchilla_jax.scaling.read.runs import FitRefused, Run

LAW = Surface(1.8172, 482.01, 2085.43, 0.3478, 0.3658)  # Besiroglu et al. 2024
BUDGETS, TARGET, NOISE = (1e18, 2e18, 4e18, 8e18), 6.4e19, 0.003


def run(params, budget, rng):
    loss = float(LAW.loss(params, budget / 6 / params)) * math.exp(NOISE * rng.standard_normal())
    return Run(f"{budget:.3g}-{params:.4g}", params, budget / 6 / params, budget, loss, budget)


def study(seed=0, budgets=BUDGETS):
    rng = np.random.default_rng(seed)
    sizes = {budget: float(LAW.optimum(budget)[0]) * 1.6 ** (np.arange(6) - 2.4) for budget in budgets}
    return [run(float(n), budget, rng) for budget, many in sizes.items() for n in many]


@pytest.fixture(scope="module")
def fits():
    return analyse(study(), replicates=0)


def half(runs, quantity):
    """Half of the 95% interval of approach 2, relative, as `predict` reads it."""
    fit = fit_isoflop(runs, preset=CORRECTED, resampling=None)
    law = fit.loss_law if quantity == "loss" else fit.params_law
    low, high = law.interval(TARGET, 0.95)
    return (high - low) / 2 / float(law.at(TARGET))


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_the_promised_interval_is_the_one_that_the_runs_leave(fits, quantity):
    found = suggest(fits, TARGET, 8 * 1.6e19, 8, quantity)
    left = []
    for seed in range(6):
        rng = np.random.default_rng(100 + seed)
        left.append(half([*fits.runs, *(run(cell.params, cell.budget, rng) for cell in found.runs)], quantity))
    assert found.before == pytest.approx(half(fits.runs, quantity), rel=0.03)
    assert found.after == pytest.approx(np.mean(left), rel=0.25)
    assert found.after < 0.9 * found.before


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_the_same_flops_are_worth_less_as_repeats_or_on_an_even_grid(fits, quantity):
    found = suggest(fits, TARGET, 4 * 1.6e19, 8, quantity)
    assert found.after < found.even_grid < found.before
    assert found.after < found.repeated < found.before


def test_runs_stay_within_purse_and_number_and_new_budgets_get_a_profile(fits):
    for purse, count in ((2e18, 3), (4 * 1.6e19, 4), (4e20, 12)):
        found = suggest(fits, TARGET, purse, count)
        assert 1 <= len(found.runs) <= count and found.flops <= purse * (1 + 1e-9)
        by_budget = {}
        for cell in found.runs:
            assert cell.flops == pytest.approx(6 * cell.params * cell.tokens) and cell.budget <= TARGET
            by_budget.setdefault(cell.budget, set()).add(cell.params)
        assert all(len(sizes) >= 4 for budget, sizes in by_budget.items() if budget not in BUDGETS)
        halves = [found.before, *(cell.half_width for cell in found.runs)]
        assert all(later <= earlier * 1.001 for earlier, later in zip(halves, halves[1:], strict=False))
        assert halves[-1] == found.after


def test_a_larger_purse_leaves_no_wider_interval(fits):
    halves = [suggest(fits, TARGET, purse, 8).after for purse in (8e18, 3.2e19, 6.4e19, 1.28e20, 2.56e20)]
    assert all(later <= earlier * 1.02 for earlier, later in zip(halves, halves[1:], strict=False))
    assert halves[-1] < 0.5 * halves[0]


def test_only_the_cells_that_are_offered_are_chosen(fits):
    size = float(LAW.optimum(1.6e19)[0])
    cells = [Cell(size * f, 1.6e19 / 6 / size / f, 1.6e19, 1.6e19) for f in (0.3, 0.55, 0.8, 1.3, 2.2, 3.1)]
    found = suggest(fits, TARGET, 1e21, 20, cells=cells)
    assert {cell.params for cell in found.runs} <= {cell.params for cell in cells} and len(found.runs) >= 4
    few = suggest(fits, TARGET, 1e21, 20, cells=[*cells[:3], Cell(1e9, 8e18 / 6e9, 8e18, 8e18)])
    assert [cell.budget for cell in few.runs] == [8e18]  # three sizes make no profile


def test_a_budget_without_a_minimum_does_not_count_until_it_gets_the_sizes_it_lacks(fits):
    size = float(LAW.optimum(1.6e19)[0])
    rng = np.random.default_rng(5)
    small = [run(size * f, 1.6e19, rng) for f in (0.15, 0.2, 0.27, 0.36, 0.48)]  # all of them too small
    more = analyse([*fits.runs, *small], replicates=0)
    assert len(more.isoflop.refusals) == 1
    found = suggest(more, TARGET, 6.4e19, 8)
    assert found.before == pytest.approx(half(more.runs, "loss"), rel=0.03)
    there = [cell.params for cell in found.runs if cell.budget == 1.6e19]
    assert not there or max(there) > 1.2 * size


def test_a_run_changes_the_covariance_by_its_rank_one_update(fits):
    design = MinimaDesign(fits.isoflop, fits.runs, TARGET, "loss", 6.0, 8e18)
    before = design.state([])
    for i in (0, len(design.cells) // 2):
        if design.profiles[np.searchsorted(design.budgets, design.cells[i].budget)]:
            after = design.state([i])
            row = design._further[i][before.columns]
            np.testing.assert_allclose(after.covariance, added(before.covariance, row), rtol=1e-5, atol=1e-12)


def test_without_profiles_the_surface_chooses(fits):
    runs = [dataclasses.replace(run, budget=None) for run in study()]
    found = suggest(analyse(runs, replicates=0), TARGET, 3.2e19, 4)
    assert found.approach == "parametric" and found.after < found.before
    assert "approach 3" in answer(found).title


def test_an_answer_has_a_row_for_each_run_and_what_else_could_be_done(fits):
    found = suggest(fits, TARGET, 6.4e19, 8)
    shown = answer(found)
    assert len(shown.rows) == len(found.runs) and len(shown.notes) == 4
    assert f"{found.value:.5g} +-{found.before:.2%} now" in shown.title
    assert f"+-{found.after:.2%}, {1 - found.after / found.before:.0%} narrower" in shown.notes[0]
    value = predict(fits, TARGET).estimates["isoflop"].loss
    assert found.value == pytest.approx(value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"quantity": "los"}, "quantity"),
        ({"count": 0}, "count"),
        ({"purse": 1e17}, "purse"),
        ({"purse": -1.0}, "purse"),
        ({"purse": math.inf}, "purse"),
        ({"target": math.nan}, "target"),
    ],
)
def test_what_cannot_be_answered_is_refused(fits, change, reason):
    asked = {"target": TARGET, "purse": 6.4e19, "count": 4} | change
    with pytest.raises(FitRefused) as refused:
        suggest(fits, **asked)
    assert refused.value.reason == reason and "\n" not in str(refused.value)


def test_runs_that_do_not_determine_the_surface_choose_nothing():
    rng = np.random.default_rng(0)
    sizes = np.geomspace(5e7, 5e8, 24)
    tokens = 20 * sizes * np.tile([0.9, 1.0, 1.1], 8)
    losses = LAW.loss(sizes, tokens) * np.exp(0.006 * rng.standard_normal(24))
    rows = zip(sizes.tolist(), tokens.tolist(), losses.tolist(), strict=True)
    runs = [Run(str(i), n, d, 6 * n * d, y) for i, (n, d, y) in enumerate(rows)]
    fits = analyse(runs, replicates=0)
    with pytest.raises(FitRefused, match="D/N|further budgets") as refused:
        suggest(fits, 1e21, 1e21, 4)
    assert refused.value.reason == "undetermined"


def test_a_budget_that_lacks_sizes_may_be_completed_and_no_run_is_dearer_than_allowed():
    rng = np.random.default_rng(0)
    best = float(LAW.optimum(1.6e19)[0])
    runs = study() + [run(best * factor, 1.6e19, rng) for factor in (0.7, 1.1, 1.7)]
    fits = analyse(runs, replicates=0)
    assert any(chosen.budget == 1.6e19 for chosen in suggest(fits, TARGET, 3e19, 8).runs)
    assert max(chosen.flops for chosen in suggest(fits, TARGET, 1e20, 8, most=8e18).runs) <= 8e18
