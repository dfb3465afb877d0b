"""Fitted to the smaller budgets, how well does each approach predict the larger ones?

The one honest test of an extrapolation that needs no further training. A size error is counted by what it costs, since
profiles are flat: by the relative loss that training the predicted size instead of the best gives away.
"""

from __future__ import annotations

import dataclasses

from chinchilla_jax.scaling.fits.surface import FlopsPerToken
from chinchilla_jax.scaling.predict.analysis import Analysis, fit_all
from chinchilla_jax.scaling.predict.estimates import estimates_of

_BELOW = 1.5  # a run without a budget counts as below a budget when this many times cheaper
_LEAST = 2  # budgets to fit to


@dataclasses.dataclass(frozen=True)
class Rollout:
    """How a candidate, fitted to the `fitted` budgets below it, predicted `budget`.

    `loss_error` is relative; `size_cost` is the relative loss that the predicted size gives away.
    """

    candidate: str
    fitted: int
    budget: float
    predicted_params: float
    profile_params: float
    predicted_loss: float
    profile_loss: float
    loss_error: float
    size_cost: float


def rollouts(fits: Analysis, c: FlopsPerToken) -> tuple[Rollout, ...]:
    """Each approach's prediction of every profile that has two or more below it, smallest budget first.

    The approaches are fitted as in `fits`, without intervals. The loss of approach 1 is the training loss.
    """
    result = []
    profiles = fits.isoflop.profiles if fits.isoflop else ()
    for index, target in list(enumerate(profiles))[_LEAST:]:
        best = target.params
        below = [run for run in fits.runs if (run.budget or run.flops * _BELOW) < target.budget]
        for name, answer in estimates_of(fit_all(below, fits.preset, quick=True), target.budget, c).items():
            missed, cost = answer.loss / best.lowest - 1.0, float(best.at(answer.params)) / best.lowest - 1.0
            sizes, losses = (answer.params, best.best), (answer.loss, best.lowest)
            result.append(Rollout(name, index, target.budget, *sizes, *losses, missed, cost))
    return tuple(result)


def last(all_rollouts: tuple[Rollout, ...]) -> tuple[Rollout, ...]:
    """Those for the largest budget."""
    return tuple(r for r in all_rollouts if r.budget == all_rollouts[-1].budget)
