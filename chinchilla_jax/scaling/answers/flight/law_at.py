"""What loss does the law of the finished runs give a model of any N and D, and how sure is it of that?

The law is the recommended one: approach 2 where it has three profiles, else approach 3. Its standard deviation has two
parts: how far runs lie from it, and how far the law itself may be off at that budget.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from chinchilla_jax.scaling.answers.answers import Law, SizeLaw
from chinchilla_jax.scaling.answers.recommended import ProfileLaw
from chinchilla_jax.scaling.fits.approach2 import isoflop
from chinchilla_jax.scaling.fits.approach2.isoflop import fit_isoflop
from chinchilla_jax.scaling.fits.approach3.parametric import few_starts, fit_parametric
from chinchilla_jax.scaling.predict.predict import ENOUGH_PROFILES
from chinchilla_jax.scaling.read.runs import FitRefused, Run, flops_of

_CONSTANTS = 5  # of approach 3
_OF_PROFILE, _OF_ALL = 2, 2  # constants of approach 2: place and loss of each minimum, and one bend and skew for all
_DRIFT = 0.02  # of approach 3's ln loss, for each factor e of FLOPs beyond the runs
_BESIDE = 1.1  # times the range of D/N
_TWO_SIGMA = 2.0 * 1.96  # standard deviations in a 95% interval


@dataclasses.dataclass(frozen=True)
class LawAt:
    """A law with its uncertainty. `words` name it; `scatter` is how far a further run lies from it, in ln loss,
    known from `freedom` degrees of freedom; `spread` gives the standard deviation of the law itself at a budget.
    `within` is the range of D/N beyond which it says nothing, of a surface that its runs leave open."""

    law: SizeLaw
    words: str
    scatter: float
    freedom: float
    spread: Callable[[float], float]
    within: tuple[float, float] | None = None

    def log_loss(self, params: float, flops: float) -> tuple[float, float] | None:
        """(ln loss, its standard deviation for one run) of a model of N on which C is spent; None beyond the law."""
        ratio = float(self.law.tokens(params, flops)) / params
        if self.within and not self.within[0] / _BESIDE <= ratio <= self.within[1] * _BESIDE:
            return None
        loss = float(self.law.loss(params, flops))
        if not (math.isfinite(loss) and loss > 0 and math.isfinite(self.scatter)):
            return None
        return math.log(loss), math.hypot(self.scatter, self.spread(flops))


def law_at(runs: Sequence[Run]) -> LawAt | None:
    """The law of the finished runs of role `isoflop`, None where neither approach can be fitted."""
    fitted = [run for run in runs if run.role == "isoflop"]
    if not fitted:
        return None
    try:
        profiles = fit_isoflop(fitted, preset=isoflop.CORRECTED, resampling=None)
        if len(profiles.profiles) >= ENOUGH_PROFILES:
            shapes = ProfileLaw(profiles, flops_of(fitted))

            def spread(flops: float) -> float:
                low, high = profiles.loss_law.interval(flops, 0.95, one_run=False)
                return math.log(high / low) / _TWO_SIGMA

            number = len(profiles.profiles)
            scatter = _scatter(shapes, fitted, _OF_PROFILE * number + _OF_ALL)
            return LawAt(shapes, f"approach 2 ({number} profiles)", *scatter, spread)
    except FitRefused:
        pass
    try:
        surface = fit_parametric(fitted, starts=few_starts(), resampling=None)
    except FitRefused:
        return None
    law = Law("approach 3", surface.surface, flops_per=flops_of(fitted))
    largest, words = max(run.flops for run in fitted), f"approach 3 ({len(fitted)} runs)"
    scatter = _scatter(law, fitted, _CONSTANTS)
    ratios = [run.tokens / run.params for run in fitted]
    within = None if surface.known.determined else (min(ratios), max(ratios))
    return LawAt(law, words, *scatter, lambda flops: _DRIFT * max(0.0, math.log(flops / largest)), within)


def _scatter(law: SizeLaw, runs: Sequence[Run], constants: int) -> tuple[float, float]:
    """(standard deviation of the ln loss of a further run about the law, degrees of freedom): the constants are taken
    from the residuals of the fitted runs, and are as uncertain as so many means."""
    expected = np.array([float(law.loss(run.params, run.flops)) for run in runs])
    known = np.isfinite(expected) & (expected > 0)
    left = np.log(np.array([run.loss for run in runs])[known] / expected[known])
    freedom = float(max(len(left) - constants, 1))
    more = 1.0 + constants / max(len(left), 1)
    return (math.sqrt(more * float(left @ left) / freedom) if len(left) else math.inf), freedom
