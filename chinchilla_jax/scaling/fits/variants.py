"""How much does the answer depend on how the fit is made? Every variant of approaches 2 and 3 on the same runs.

Among them approach 3 by variable projection: the same least squares, searched in two dimensions instead of five.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.optimize

from chinchilla_jax.scaling.fits.approach2 import isoflop
from chinchilla_jax.scaling.fits.approach2.isoflop import fit_isoflop
from chinchilla_jax.scaling.fits.approach3.parametric import (
    ParametricFit,
    SurfaceProblem,
    describe_fit,
    few_starts,
    fit_parametric,
)
from chinchilla_jax.scaling.fits.minimise import MISFITS, SQUARED_RAW
from chinchilla_jax.scaling.read.runs import FitRefused, Run

_EXPONENTS = np.linspace(0.05, 1.5, 30)


def compare_variants(runs: Sequence[Run]) -> tuple[dict[str, Any], ...]:
    """One row for each variant: its exponent a of N* ~ C^a, and for approach 3 its constants; `why` where refused."""
    rows = []

    def add(name: str, fit: Callable[..., dict[str, Any]], *args: Any, **options: Any) -> None:
        try:
            rows.append({"variant": name} | fit(runs, *args, **options))
        except FitRefused as refusal:
            rows.append({"variant": name, "why": str(refusal)})

    for preset in (isoflop.CORRECTED, isoflop.PAPER, isoflop.AKIMA):
        add(f"approach 2, {preset.curve}", _exponent, preset)
    why = _undetermined(runs)
    for name, misfit in MISFITS.items():  # with tied exponents only the starts with alpha = beta count: all are tried
        if why:
            rows.append({"variant": f"approach 3, {name}", "why": why})
            continue
        common = {"misfit": misfit, "resampling": None}
        add(f"approach 3, {name}", _constants, fit_parametric, starts=few_starts(), **common)
        add(f"approach 3, {name}, alpha = beta", _constants, fit_parametric, tied=True, **common)
    if not why:
        add("approach 3, variable projection (squared_raw)", _constants, fit_varpro)
    return tuple(rows)


def _undetermined(runs: Sequence[Run]) -> str:
    """Why the runs do not determine the constants of approach 3, whatever the misfit; "" if they do or have none."""
    try:
        why = fit_parametric(runs, starts=few_starts(), resampling=None).known.why
    except FitRefused:
        return ""
    return why and f"approach 3: the runs do not determine its constants: {why}"


def _exponent(runs: Sequence[Run], preset: isoflop.Preset) -> dict[str, float]:
    return {"a": float(fit_isoflop(runs, preset=preset, resampling=None).params_law.exponent)}


def _constants(runs: Sequence[Run], fit_surface: Callable[..., ParametricFit], **options: Any) -> dict[str, Any]:
    fit = fit_surface(runs, **options)
    if why := fit.known.why:
        raise FitRefused("undetermined", f"approach 3: the runs do not determine its constants: {why}")
    constants = {name: float(getattr(fit.surface, name)) for name in ("a", "E", "A", "B", "alpha", "beta")}
    return constants | {"starts there": f"{fit.agreement:.0%}", "scatter": f"{np.round(fit.scatter, 6):.2%}"}


def fit_varpro(runs: Sequence[Run]) -> ParametricFit:
    """Least squares of the raw loss, as `fit_parametric` with `SQUARED_RAW`; refused also where E, A or B is best at
    zero.

    For given alpha and beta the law is linear in E, A and B, so their best values are a non-negative least squares
    problem and only (alpha, beta) has to be searched (Golub and Pereyra 1973). That has no flat valley and needs one
    grid instead of thousands of starts: an independent check that the descent found the minimum.
    """
    problem = SurfaceProblem(runs)
    # Terms relative to the centre of the data are of order one whatever the exponents.
    x, y = np.log(problem.params) - problem.centre[0], np.log(problem.tokens) - problem.centre[1]

    def linear(exponents: np.ndarray) -> tuple[np.ndarray, float]:
        design = np.column_stack([np.ones_like(x), np.exp(-exponents[0] * x), np.exp(-exponents[1] * y)])
        return scipy.optimize.nnls(design, problem.loss)

    grid = np.stack(np.meshgrid(_EXPONENTS, _EXPONENTS, indexing="ij"), -1).reshape(-1, 2)
    start = grid[np.argmin([linear(pair)[1] for pair in grid])]
    best = scipy.optimize.minimize(
        lambda pair: linear(pair)[1] ** 2, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-16}
    )
    (e, a, b), _ = linear(best.x)
    if not (min(e, a, b) > 0 and min(best.x) > 0):
        raise FitRefused(
            "no_optimum",
            f"approach 3 by variable projection: E, A, B = {e:.3g}, {a:.3g}, {b:.3g} at the centre of the data and "
            f"alpha, beta = {best.x[0]:.3g}, {best.x[1]:.3g}; loss must fall with both N and D and have a floor",
        )
    theta = np.array([*np.log([a, b, e]), best.x[0] * problem.spread[0], best.x[1] * problem.spread[1]])
    return describe_fit(problem, theta, SQUARED_RAW, agreement=1.0, n_starts=1)
