"""Fitted to the smaller budgets, how well does each approach predict the larger ones?

The one honest test of an extrapolation that needs no further training. A size error is counted by what it costs, since
profiles are flat: by the relative loss that training the predicted size instead of the best gives away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from chinchilla_jax.scaling.fits.approach1 import envelope
from chinchilla_jax.scaling.fits.approach1.envelope import fit_envelope
from chinchilla_jax.scaling.fits.approach2 import isoflop
from chinchilla_jax.scaling.fits.approach2.isoflop import IsoflopFit, Profile, fit_isoflop
from chinchilla_jax.scaling.fits.approach3.as_published import fit_as_published
from chinchilla_jax.scaling.fits.approach3.parametric import few_starts, fit_parametric
from chinchilla_jax.scaling.fits.surface import FlopsPerToken
from chinchilla_jax.scaling.read.runs import FitRefused, Run

_BELOW = 1.5  # a run without a budget counts as below a budget when this many times cheaper
_LEAST = 2  # budgets to fit to


@dataclasses.dataclass(frozen=True)
class Rollout:
    """How a candidate, fitted to the `fitted` budgets below it, predicted `budget`. Errors are relative."""

    candidate: str
    fitted: int
    budget: float
    predicted_params: float
    profile_params: float
    predicted_loss: float
    profile_loss: float
    loss_error: float
    size_cost: float

    @property
    def score(self) -> float:
        """|relative loss error| + relative loss given away by the predicted size."""
        return abs(self.loss_error) + self.size_cost


def rollouts(
    runs: Sequence[Run], full: IsoflopFit, c: FlopsPerToken, preset: str = "corrected"
) -> tuple[Rollout, ...]:
    """Each approach's prediction of every profile that has two or more below it, smallest budget first.

    Candidates: approach 1 (`envelope`), whose loss is the training loss, approach 2 (`isoflop`) and approach 3
    (`parametric`).
    """
    found = []
    for index in range(_LEAST, len(full.profiles)):
        target = full.profiles[index]
        below = [run for run in runs if (run.budget or run.flops * _BELOW) < target.budget]
        found += [_score(name, index, target, *answer) for name, answer in _answers(below, target, c, preset).items()]
    return tuple(found)


def last(found: Sequence[Rollout]) -> tuple[Rollout, ...]:
    """Those for the largest budget."""
    return tuple(r for r in found if r.budget == found[-1].budget)


def attempt(name: str, fit: Callable, refused: dict[str, str]):
    """`fit()`, or None with the reason noted under `name` when it is refused."""
    try:
        return fit()
    except FitRefused as refusal:
        refused[name] = str(refusal)
        return None


def _answers(
    below: Sequence[Run], target: Profile, c: FlopsPerToken, preset: str
) -> Mapping[str, tuple[float, float]]:
    """N and loss at the target by candidate."""
    answers, ignored = {}, {}
    paper = preset == "paper"
    fit_surface = fit_as_published if paper else fit_parametric
    shape = isoflop.PAPER if paper else isoflop.CORRECTED
    reading = envelope.PAPER if paper else envelope.CORRECTED
    profiles = attempt("isoflop", lambda: fit_isoflop(below, preset=shape, resampling=None), ignored)
    if profiles:
        answers["isoflop"] = float(profiles.params_law.at(target.budget)), profiles.loss_law.at(target.budget)
    curves = attempt("envelope", lambda: fit_envelope(below, preset=reading, resampling=None), ignored)
    if curves:
        budget = target.budget
        answers["envelope"] = float(curves.params_law.at(budget)), float(curves.loss_offset.at(budget))
    surface = attempt("parametric", lambda: fit_surface(below, starts=few_starts(), resampling=None), ignored)
    if surface:
        params, _, loss = surface.surface.optimum(target.budget, c)
        answers["parametric"] = float(params), float(loss)
    return answers


def _score(name: str, fitted: int, target: Profile, params: float, loss: float) -> Rollout:
    best = target.params
    return Rollout(
        name,
        fitted,
        target.budget,
        params,
        best.best,
        loss,
        best.lowest,
        loss / best.lowest - 1.0,
        float(best.at(params)) / best.lowest - 1.0,
    )
