"""How much does the answer depend on how the fit is made? Every variant of approaches 2 and 3 on the same runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from chinchilla_jax.scaling.fits.approach2 import isoflop
from chinchilla_jax.scaling.fits.approach2.isoflop import fit_isoflop
from chinchilla_jax.scaling.fits.approach3.parametric import ParametricFit, fit_parametric, paper_starts
from chinchilla_jax.scaling.fits.approach3.varpro import fit_varpro
from chinchilla_jax.scaling.fits.multistart import MISFITS
from chinchilla_jax.scaling.read.runs import FitRefused, Run

# A ninth of the starts; with tied exponents, where only those with alpha = beta count, all of them.
_FEWER_STARTS = paper_starts()[::9]


def compare_variants(runs: Sequence[Run]) -> tuple[dict[str, Any], ...]:
    """One row for each variant: its exponent a of N* ~ C^a, and for approach 3 its constants; `why` where refused."""
    rows = []
    for preset in (isoflop.CORRECTED, isoflop.PAPER, isoflop.AKIMA):
        rows.append(_row(f"approach 2, {preset.curve}", lambda preset=preset: {
            "a": float(fit_isoflop(runs, preset=preset, resampling=None).params_law.exponent)}))  # fmt: skip
    for name, misfit in MISFITS.items():
        rows.append(_row(f"approach 3, {name}", lambda misfit=misfit: _constants(
            fit_parametric(runs, misfit=misfit, starts=_FEWER_STARTS, resampling=None))))  # fmt: skip
        rows.append(_row(f"approach 3, {name}, alpha = beta", lambda misfit=misfit: _constants(
            fit_parametric(runs, misfit=misfit, tied=True, resampling=None))))  # fmt: skip
    rows.append(_row("approach 3, variable projection (squared_raw)", lambda: _constants(fit_varpro(runs))))
    return tuple(rows)


def _row(name: str, fit: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return {"variant": name} | fit()
    except FitRefused as refusal:
        return {"variant": name, "why": str(refusal)}


def _constants(fit: ParametricFit) -> dict[str, float]:
    constants = {name: float(getattr(fit.surface, name)) for name in ("a", "E", "A", "B", "alpha", "beta")}
    return constants | {"starts there": f"{fit.agreement:.0%}", "scatter": f"{np.round(fit.scatter, 6):.2%}"}
