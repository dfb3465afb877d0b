"""Which model should the next budget train, what loss will it reach, and how sure is that?

The approaches answer side by side. Approach 2 is recommended wherever it has three profiles: it needs no form for the
whole of the runs, and on public tables it was six to eight times nearer than approach 3
(`python -m tests.benchmarks.prediction`). No figure of the data at hand decides this: rehearsals (`rollout`) differ by
less than their own noise too often. They are reported as a measure of skill, all of them. Approach 3 is the
cross-check. Approach 1 is no candidate: the loss of its curves is the training loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from chinchilla_jax.scaling.fits.approach1.envelope import EnvelopeFit
from chinchilla_jax.scaling.fits.approach2.isoflop import IsoflopFit
from chinchilla_jax.scaling.fits.approach3.parametric import ParametricFit
from chinchilla_jax.scaling.fits.surface import FlopsPerToken
from chinchilla_jax.scaling.predict.analysis import Analysis, analyse
from chinchilla_jax.scaling.predict.doubts import doubts, doubts_of_prediction
from chinchilla_jax.scaling.predict.estimates import Estimate, from_envelope, from_isoflop, from_parametric
from chinchilla_jax.scaling.predict.rollout import Rollout, rollouts
from chinchilla_jax.scaling.read.flops import flops_of
from chinchilla_jax.scaling.read.runs import Run

_ENOUGH = 3  # profiles from which approach 2 is recommended


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer for `budget` FLOPs.

    `estimates` by approach (`envelope`, `isoflop`, `parametric`); `analysis` holds the fits behind them. `recommended`
    is a key of `estimates`, `why` the grounds. `tokens_at_budget` is what exactly spends the budget at the recommended
    N (approach 2 fits N and D apart, so its own D may miss the budget by a little). `flops_per` is training FLOPs per
    token, c in C = c N D or a function of N.
    """

    budget: float
    extrapolation: float
    estimates: Mapping[str, Estimate]
    recommended: str
    why: str
    tokens_at_budget: float
    rollouts: tuple[Rollout, ...]
    warnings: tuple[str, ...]
    analysis: Analysis
    flops_per: FlopsPerToken

    @property
    def best(self) -> Estimate:
        """The recommended estimate."""
        return self.estimates[self.recommended]

    @property
    def envelope(self) -> EnvelopeFit | None:
        """Approach 1, None where refused."""
        return self.analysis.envelope

    @property
    def isoflop(self) -> IsoflopFit | None:
        """Approach 2, None where refused."""
        return self.analysis.isoflop

    @property
    def parametric(self) -> ParametricFit | None:
        """Approach 3, None where refused."""
        return self.analysis.parametric

    @property
    def refused(self) -> Mapping[str, str]:
        """Why an estimate is missing, by approach."""
        return self.analysis.refused


def predict(
    runs: Sequence[Run],
    budget: float,
    *,
    preset: str = "corrected",
    replicates: int = 1000,
    seed: int = 0,
    flops_per: FlopsPerToken | None = None,
) -> Prediction:
    """Compute-optimal N, D and loss at `budget` FLOPs from the runs with role `isoflop`.

    Args:
      preset: of the fits and rollouts, see `analyse`.
      replicates: of the bootstrap, 0 for no intervals.
      flops_per: training FLOPs per token as a function of N (or c of c N D); unless given, from
        the fitted runs' N, D and C.

    Raises:
      FitRefused: `no_fit`, when neither approach 2 nor 3 can be fitted; the message has the reasons.
    """
    fits = analyse(runs, preset, replicates=replicates, seed=seed)
    fitted = [run for run in runs if run.role == "isoflop"]
    # Held-out runs stay out of this as well: the answer must not change once they are trained.
    c = flops_per if flops_per is not None else flops_of(fitted)
    tried = rollouts(fitted, fits.isoflop, c, preset) if fits.isoflop else ()
    estimates = {}
    if fits.envelope:
        estimates["envelope"] = from_envelope(fits.envelope, budget, seed)
    if fits.isoflop:
        estimates["isoflop"] = from_isoflop(fits.isoflop, budget, seed)
    if fits.parametric:
        estimates["parametric"] = from_parametric(fits.parametric, budget, c, seed)
    recommended, why = recommend(fits)
    params = estimates[recommended].params
    per_token = float(c(params)) if callable(c) else c * params
    extrapolation = budget / max(run.budget or run.flops for run in fitted)
    warnings = doubts(fits, fitted) + doubts_of_prediction(budget, fitted, estimates, tried)
    return Prediction(
        budget, extrapolation, estimates, recommended, why, budget / per_token, tried, warnings, fits, c
    )


def recommend(fits: Analysis) -> tuple[str, str]:
    """(Approach, why): by what could be fitted, not by how well it went."""
    profiles = len(fits.isoflop.profiles) if fits.isoflop else 0
    if not fits.parametric:
        return "isoflop", "isoflop is the only approach with a loss law that could be fitted"
    if not profiles:
        return "parametric", "parametric is the only approach with a loss law that could be fitted"
    if profiles < _ENOUGH:
        why = f"parametric: {profiles} profiles are too few to see how minima go on, {_ENOUGH} are needed"
        return "parametric", why
    return "isoflop", (
        f"isoflop: {profiles} profiles, whose minima need no form for all runs; approach 3 is the cross-check"
    )
