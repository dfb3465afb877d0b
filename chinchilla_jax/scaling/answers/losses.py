"""What does each of several losses reach at a target, and which downstream error goes with it?

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
from chinchilla_jax.scaling.fits.minimise import SQUARED_RAW
from chinchilla_jax.scaling.fits.resample import Resampling, interval
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns, flops_of
from chinchilla_jax.scaling.read.table.headers import split_words

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


def downstream(loaded: LoadedRuns, columns: Sequence[str], predicted: LossFit, seed: int = 0) -> Answer:
    """The downstream error that goes with the predicted loss: Err = epsilon - k exp(-gamma L) (Gadre et al. 2024,
    arXiv 2403.08540, eq. 5), fitted for each column of errors, or of accuracies, to all runs that have one.

    Raises FitRefused: `columns` (no such column, or values beyond 0 to 1), or as `fit_form`.
    """
    from chinchilla_jax.scaling.laws.fit import fit_form  # forms are fitted by JAX, which is slow to import
    from chinchilla_jax.scaling.laws.form import form

    rows = []
    for column in columns:
        points = [(run.loss, _share(loaded, run.name, column)) for run in loaded.runs]
        known = [(loss, error) for loss, error in points if error is not None]
        if not known:
            raise FitRefused("columns", f"{loaded.source}: no run has a number in {column}")
        losses, errors = np.array(known).T
        fit = fit_form(form("downstream_error"), {"loss": losses}, errors, SQUARED_RAW, seed=seed)
        scatter = float(np.std(fit.predict(loss=losses) - errors))
        low, high = (float(fit.predict(loss=np.array(end))) for end in predicted.loss_95)
        row = {
            "error": column,
            "runs": str(len(known)),
            "at the target": float(fit.predict(loss=np.array(predicted.loss))),
        }
        rows.append(row | {"95% by the loss": (low, high), "scatter of runs": scatter})
    notes = (
        "Err = epsilon - k exp(-gamma L), Gadre et al. 2024 eq. 5; the interval is that of the loss carried through, "
        "the scatter comes on top. A column named after accuracy is taken as 1 - error",
    )
    return Answer("downstream", f"Downstream error at a loss of {predicted.loss:.4f}", tuple(rows), notes)


def _share(loaded: LoadedRuns, name: str, column: str) -> float | None:
    value = loaded.details.get(name, {}).get(column)
    try:
        number = float(value) if value is not None else np.nan
    except (TypeError, ValueError):
        return None
    if np.isnan(number):
        return None
    if not 0.0 <= number <= 1.0:
        raise FitRefused("columns", f"{loaded.source}: {column} of {name} is {number:g}; an error is a share, 0 to 1")
    return 1.0 - number if {"acc", "accuracy"} & set(split_words(column)) else number
