"""What does each of several losses reach at a target?

Every loss is fitted by itself, by approach 2 where its runs have three profiles and else by approach 3. Their noise is
shared, since it is the same runs: the interval of the macro average is that of a fit to the averages of each run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chinchilla_jax.scaling.answers.answers import Answer
from chinchilla_jax.scaling.fits.approach2.isoflop import CORRECTED, IsoflopFit, fit_isoflop
from chinchilla_jax.scaling.fits.approach3.parametric import few_starts, fit_parametric
from chinchilla_jax.scaling.fits.resample import Resampling, interval
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns, flops_of

_ENOUGH = 3  # profiles
_REPLICATES = 200


@dataclasses.dataclass(frozen=True)
class LossFit:
    """One loss: its lowest value at the target, with the 95% interval of one run, N* there, the exponents a of N* and
    of the loss at the largest budget, E, and the relative noise of a run; the fit of approach 2 where that was made, or
    why there is none."""

    name: str
    unit: str
    runs: int
    loss: float = np.nan
    loss_95: tuple[float, float] = (np.nan, np.nan)
    params: float = np.nan
    a: float = np.nan
    exponent: float = np.nan
    irreducible: float = np.nan
    noise: float = np.nan
    fit: IsoflopFit | None = dataclasses.field(default=None, compare=False, repr=False)
    refused: str = ""


def fit_losses(losses: Mapping[str, LoadedRuns], budget: float, seed: int = 0) -> tuple[LossFit, ...]:
    """Each loss at `budget` FLOPs; a loss that carries no fit says why."""
    return tuple(_fit(name, loaded, budget, seed) for name, loaded in losses.items())


def _fit(name: str, loaded: LoadedRuns, budget: float, seed: int) -> LossFit:
    runs = loaded.role("isoflop")
    row = LossFit(name, loaded.loss_unit.split(":")[0].split(",")[0], len(runs))
    try:
        profiles = fit_isoflop(runs, preset=CORRECTED, resampling=None)
        if len(profiles.profiles) >= _ENOUGH:
            return _by_profiles(row, profiles, budget)
    except FitRefused:
        pass
    try:
        fit = fit_parametric(runs, starts=few_starts(), resampling=Resampling(_REPLICATES), seed=seed)
    except FitRefused as refused:
        return dataclasses.replace(row, refused=str(refused))
    c = flops_of(runs)
    params, _, loss = (float(value) for value in fit.surface.optimum(budget, c))
    ends = (np.nan, np.nan)
    if fit.boot is not None:
        low = fit.boot.optimum(budget, c)[2]
        ends = interval(low * np.exp(fit.scatter * np.random.default_rng(seed).standard_normal(low.shape)), 0.95)
    e, a = float(fit.surface.E), float(fit.surface.a)
    return dataclasses.replace(row, loss=loss, loss_95=ends, params=params, irreducible=e, a=a, noise=fit.scatter)


def _by_profiles(row: LossFit, fit: IsoflopFit, budget: float) -> LossFit:
    law, largest = fit.loss_law, fit.profiles[-1].budget
    return dataclasses.replace(
        row,
        loss=float(law.at(budget)),
        loss_95=law.interval(budget, 0.95),
        params=float(fit.params_law.at(budget)),
        a=float(fit.params_law.exponent),
        exponent=law.slope(largest) / float(law.at(largest)),
        irreducible=law.irreducible_mean,
        noise=fit.noise,
        fit=fit,
    )


def answer(fits: Sequence[LossFit], budget: float) -> Answer:
    """A row for each loss."""
    rows = []
    for fit in fits:
        row: dict[str, Any] = {"loss of": fit.name, "unit": fit.unit, "runs": str(fit.runs)}
        if fit.refused:
            rows.append(row | {"loss": "refused"})
            continue
        row |= {"loss": fit.loss, "loss, 95%": fit.loss_95, "N*": fit.params, "a": fit.a}
        row |= {"E": fit.irreducible, "scatter": fit.noise}
        rows.append(row | {"alpha of L*": None if np.isnan(fit.exponent) else fit.exponent})
    notes = [
        "Each loss is fitted by itself; intervals are of one trained run. alpha of L*: -d ln L* / d ln C at the "
        "largest budget",
        *(f"{fit.name}: {fit.refused}" for fit in fits if fit.refused),
    ]
    return Answer("losses", f"Each loss at C = {budget:.4g} FLOPs", tuple(rows), tuple(notes))
