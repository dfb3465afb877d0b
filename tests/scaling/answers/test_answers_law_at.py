"""The law as a second opinion: near the truth inside the runs, less sure beyond them, and none where there is none."""

import math

import numpy as np
import pytest

from chinchilla_jax.scaling.answers.flight.law_at import law_at
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.read.runs import Run

TRUE = Surface(1.8, 480.0, 2000.0, 0.34, 0.36)
BUDGETS = (1e18, 3e18, 9e18, 2.7e19)


def runs(budgets=BUDGETS, named=True, scatter=0.002):
    """Seven sizes a budget about the best one."""
    rng, made = np.random.default_rng(0), []
    for budget in budgets:
        for size in range(-3, 4):
            params = float(TRUE.optimum(budget)[0]) * 1.5**size
            tokens = budget / 6 / params
            loss = float(TRUE.loss(params, tokens)) * math.exp(scatter * rng.standard_normal())
            made.append(Run(f"{budget}{size}", params, tokens, budget, loss, budget if named else None))
    return made


@pytest.mark.parametrize(("named", "words"), [(True, "approach 2 (4 profiles)"), (False, "approach 3 (28 runs)")])
def test_the_law_is_near_the_truth_and_less_sure_further_out(named, words):
    law = law_at(runs(named=named))
    assert law.words == words
    deviations = []
    for budget in (9e18, 1e20, 1e21):
        params = 1.3 * float(TRUE.optimum(budget)[0])
        mean, deviation = law.log_loss(params, budget)
        assert abs(mean - math.log(float(TRUE.loss(params, budget / 6 / params)))) < 2.5 * deviation
        deviations.append(deviation)
    assert deviations[0] < deviations[1] < deviations[2]


def test_runs_that_scatter_more_make_it_less_sure():
    assert law_at(runs(scatter=0.01)).scatter > 2 * law_at(runs(scatter=0.002)).scatter


def test_two_runs_have_no_law():
    assert law_at(runs()[:2]) is None and law_at([]) is None


def test_a_surface_that_its_runs_leave_open_answers_near_their_tokens_per_parameter_only():
    rng, made = np.random.default_rng(0), []
    for params in np.geomspace(1e7, 1e9, 24):
        tokens = 20 * params * math.exp(0.06 * rng.standard_normal())
        loss = float(TRUE.loss(params, tokens)) * math.exp(0.003 * rng.standard_normal())
        made.append(Run(f"{params}", params, tokens, 6 * params * tokens, loss))
    law = law_at(made)
    assert law.log_loss(1e8, 6e8 * 2e9)[0] == pytest.approx(math.log(float(TRUE.loss(1e8, 2e9))), abs=0.01)
    assert law.log_loss(1e8, 6e8 * 2e10) is None
