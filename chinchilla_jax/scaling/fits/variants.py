"""How much does the answer depend on how the fit is made? Every variant of approaches 2 and 3 on the same runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from chinchilla_jax.scaling.fits.approach2 import isoflop
from chinchilla_jax.scaling.fits.approach2.isoflop import fit_isoflop
from chinchilla_jax.scaling.fits.approach3.parametric import ParametricFit, few_starts, fit_parametric
from chinchilla_jax.scaling.fits.approach3.varpro import fit_varpro
from chinchilla_jax.scaling.fits.multistart import MISFITS
from chinchilla_jax.scaling.read.runs import FitRefused, Run


def compare_variants(runs: Sequence[Run]) -> tuple[dict[str, Any], ...]:
    """One row for each variant: its exponent a of N* ~ C^a, and for approach 3 its constants; `why` where refused."""
    variants: dict[str, Callable[[], dict[str, Any]]] = {}
    for preset in (isoflop.CORRECTED, isoflop.PAPER, isoflop.AKIMA):
        variants[f"approach 2, {preset.curve}"] = functools.partial(_exponent, runs, preset)
    for name, misfit in MISFITS.items():  # with tied exponents only the starts with alpha = beta count: all are tried
        fit = functools.partial(fit_parametric, runs, misfit=misfit, resampling=None)
        variants[f"approach 3, {name}"] = functools.partial(_constants, fit, starts=few_starts())
        variants[f"approach 3, {name}, alpha = beta"] = functools.partial(_constants, fit, tied=True)
    variants["approach 3, variable projection (squared_raw)"] = functools.partial(_constants, fit_varpro, runs)
    return tuple({"variant": name} | _answer(fit) for name, fit in variants.items())


def _answer(fit: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return fit()
    except FitRefused as refusal:
        return {"why": str(refusal)}


def _exponent(runs: Sequence[Run], preset: isoflop.IsoflopPreset) -> dict[str, float]:
    return {"a": float(fit_isoflop(runs, preset=preset, resampling=None).params_law.exponent)}


def _constants(fit_surface: Callable[..., ParametricFit], *args: Any, **options: Any) -> dict[str, Any]:
    fit = fit_surface(*args, **options)
    constants = {name: float(getattr(fit.surface, name)) for name in ("a", "E", "A", "B", "alpha", "beta")}
    return constants | {"starts there": f"{fit.agreement:.0%}", "scatter": f"{np.round(fit.scatter, 6):.2%}"}
