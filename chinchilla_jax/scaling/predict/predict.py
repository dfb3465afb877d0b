"""Which model should the next budget train, what loss will it reach, and how sure is that?

The approaches answer side by side. Approach 2 is recommended wherever it has three profiles: it needs no form for the
whole of the runs, and on public tables it was six to eight times nearer than approach 3
(`python -m tests.benchmarks.prediction`). Rollouts do not decide this, since they often differ by less than their own
noise; all of them are reported. Approach 3 is the cross-check. Approach 1 is no candidate: the loss of its curves is
the training loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from chinchilla_jax.scaling.fits.surface import FlopsPerToken
from chinchilla_jax.scaling.predict.analysis import Analysis
from chinchilla_jax.scaling.predict.doubts import doubts, doubts_of_prediction
from chinchilla_jax.scaling.predict.estimates import Estimate, Rollout, estimates_of, rollouts
from chinchilla_jax.scaling.read.runs import flops_of

ENOUGH_PROFILES = 3  # profiles from which approach 2 is recommended


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer for `budget` FLOPs, `extrapolation` times the largest budget fitted.

    `estimates` by approach (`envelope`, `isoflop`, `parametric`); `fits` are what they were made from. `recommended` is
    a key of `estimates`, `why` the grounds. `flops_per` is training FLOPs per token, c in C = c N D or a function of N.
    """

    budget: float
    extrapolation: float
    estimates: Mapping[str, Estimate]
    recommended: str
    why: str
    rollouts: tuple[Rollout, ...]
    warnings: tuple[str, ...]
    fits: Analysis
    flops_per: FlopsPerToken

    @property
    def best(self) -> Estimate:
        """The recommended estimate."""
        return self.estimates[self.recommended]

    @property
    def tokens_at_budget(self) -> float:
        """What exactly spends the budget at the recommended N; approach 2's own D may miss it by a little."""
        return self.tokens_at(self.best.params)

    def tokens_at(self, params: float) -> float:
        """The tokens that spend the budget on a model of `params`."""
        c = self.flops_per
        return self.budget / (float(c(np.asarray(params))) if callable(c) else c * params)


def predict(fits: Analysis, budget: float) -> Prediction:
    """Compute-optimal N, D and loss at `budget` FLOPs from the fits; FLOPs per token as the fitted runs count them."""
    # Without the held-out runs: the answer must not change once they are trained.
    c = flops_of(fits.runs)
    estimates, tried = estimates_of(fits, budget, c), rollouts(fits, c)
    extrapolation = budget / max(run.budget or run.flops for run in fits.runs)
    warnings = doubts(fits) + doubts_of_prediction(budget, fits.runs, estimates, tried)
    return Prediction(budget, extrapolation, estimates, *recommend(fits), tried, warnings, fits, c)


def recommend(fits: Analysis) -> tuple[str, str]:
    """(Approach, why): by what could be fitted, not by how well it went."""
    profiles = len(fits.isoflop.profiles) if fits.isoflop else 0
    if not fits.parametric:
        return "isoflop", "isoflop is the only approach with a loss law that could be fitted"
    if profiles and not fits.parametric.known.determined:
        return "isoflop", "isoflop: the runs do not determine the surface of approach 3"
    if not profiles and not fits.parametric.known.determined:
        why = "the loss at the D/N of the runs, and not which D/N is best, which these runs do not say"
        return "parametric", f"parametric is the only approach with a loss law that could be fitted; known is {why}"
    if not profiles:
        return "parametric", "parametric is the only approach with a loss law that could be fitted"
    if profiles < ENOUGH_PROFILES:
        why = f"parametric: {profiles} profiles are too few to see how minima go on, {ENOUGH_PROFILES} are needed"
        return "parametric", why
    return "isoflop", (
        f"isoflop: {profiles} profiles, whose minima need no form for all runs; approach 3 is the cross-check"
    )
