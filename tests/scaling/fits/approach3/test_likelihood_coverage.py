"""From a planted law through plan, simulated losses and fit: how often does the profile likelihood hold the truth?"""

import pytest

from chinchilla_jax.scaling.fits.approach3.likelihood import profile_likelihood, quantities
from chinchilla_jax.scaling.fits.approach3.parametric import fit_parametric
from chinchilla_jax.scaling.fits.minimise import HUBER, SQUARED_LOG
from chinchilla_jax.tools.simulate import simulate_isoflop
from tests.scaling.fits.approach3.cases import BUDGETS, FEW, SIZES, TARGET, TRUTH


@pytest.mark.parametrize(("misfit", "seeds", "least"), [
    pytest.param(HUBER, 50, 45, id="huber"),
    pytest.param(HUBER, 100, 90, id="huber, many", marks=pytest.mark.long),
    pytest.param(SQUARED_LOG, 100, 90, id="squared_log, many", marks=pytest.mark.long),
])  # fmt: skip
@pytest.mark.long
def test_profile_likelihood_holds_the_truth_in_at_least_9_of_10_seeds(misfit, seeds, least):
    wanted = {name: quantities(TARGET)[name] for name in ("ln N*", "loss")}
    held = dict.fromkeys(wanted, 0)
    for seed in range(seeds):
        runs = simulate_isoflop(TRUTH, BUDGETS, SIZES, noise=0.003, seed=seed)
        fit = fit_parametric(runs, misfit=misfit, starts=FEW, resampling=None)
        for name, quantity in wanted.items():
            low, high = profile_likelihood(runs, fit, quantity).interval
            held[name] += low <= float(quantity(TRUTH)) <= high
    assert min(held.values()) >= least, held
