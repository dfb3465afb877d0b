"""Which N does the planner expect to be optimal at a budget C? Sizes are centred on it; nothing else depends on it.

A guess is a text of the config:

    D/N = 20, a = 0.5          N* ~ C^a, and the geometric middle of the budgets trains so many tokens per parameter
    N = 0.0992 C^0.4981        a power law
    hoffmann-1, hoffmann-2     the power laws through the optima of approaches 1 and 2 of Hoffmann et al. 2022
    besiroglu2024, ...         a surface L(N, D) of the table of published laws
    studies/cpu, runs.csv      the runs of a study or a table, fitted now

Surfaces L(N, D) are minimised under the ledger's count of this study's models, so that a law counted otherwise, as
C = 6 N D, still puts the sizes where the study needs them. Power laws of C are taken as they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable

import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.config import ConfigError, RunConfig, did_you_mean
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.laws import published
from chinchilla_jax.study import ladder
from chinchilla_jax.study.recipe import Power, parse

_KEY = "study.guess"
_HOFFMANN = "Hoffmann et al. 2022, arXiv 2203.15556, approach"
# Name: law, source. Tables 3 and A3 print optima and no coefficients: these are least squares of ln N on ln C through
# them, good to 3%.
POWER_LAWS = {
    "hoffmann-1": (Power(0.0992, (("C", 0.4981),)), f"{_HOFFMANN} 1, through Table 3"),
    "hoffmann-2": (Power(0.1449, (("C", 0.4899),)), f"{_HOFFMANN} 2, through Table A3"),
}


@dataclasses.dataclass(frozen=True)
class Guess:
    """`params`: budget in FLOPs -> N* (embeddings included); `provenance` in one line."""

    params: Callable[[float], float]
    provenance: str


def guess(config: RunConfig) -> Guess:
    """The guess `study.guess`. Raises ConfigError if it is none of the forms above, or its runs cannot be fitted."""
    text = config.study_section.guess.strip()
    if "=" in text:
        return _formula(config, text)
    if text in POWER_LAWS:
        law, source = POWER_LAWS[text]
        return _optimum(config, law, f"{text}: {source}")
    surfaces = published_surfaces()
    if text in surfaces:
        return _optimum(config, published.surface(text), f"{text}: {published.law(text).source}")
    if files.exists(text):
        return _fitted(config, text)
    names = [*POWER_LAWS, *surfaces]
    forms = "a formula such as 'D/N = 20, a = 0.5' or 'N = 0.1 C^0.5', or a study's folder or table of runs"
    unknown = f"{text!r} is no published law{did_you_mean(text, names)} and no file"
    raise ConfigError(_KEY, f"{unknown}; one of {', '.join(names)}, {forms}")


def published_surfaces() -> list[str]:
    """The published laws that give the loss per token over N and D, by name."""
    surfaces = {name: law for name, law in published.published().items() if law.form_name == "chinchilla"}
    return [name for name, law in surfaces.items() if law.constants and law.gives.endswith("per token")]


def _optimum(config: RunConfig, law: Power | Surface, provenance: str) -> Guess:
    if isinstance(law, Power):
        return Guess(lambda budget: law.at(C=budget), provenance)
    per_token = _flops_per_token(config)
    return Guess(lambda budget: float(law.optimum(budget, per_token)[0]), provenance)


def _formula(config: RunConfig, text: str) -> Guess:
    laws = parse(_KEY, text, ("D/N", "a", "N"), ("C",))
    if set(laws) == {"N"}:
        return _optimum(config, laws["N"], f"N* = {laws['N']}, as the config says")
    if "D/N" not in laws or "N" in laws or any(law.exponents for law in laws.values()):
        raise ConfigError(_KEY, f"{text!r}: write 'D/N = 20, a = 0.5' with numbers, or 'N = 0.1 C^0.5'")
    ratio, exponent = laws["D/N"].coefficient, laws["a"].coefficient if "a" in laws else 0.5
    budgets = config.study_section.budgets
    middle = math.exp(sum(map(math.log, budgets)) / len(budgets))
    size = _size_at_ratio(config, middle, ratio)
    provenance = f"{ratio:g} tokens per parameter at C = {middle:.3g}, N* ~ C^{exponent:g}, as the config says"
    return Guess(lambda budget: size * (budget / middle) ** exponent, provenance)


def _size_at_ratio(config: RunConfig, budget: float, tokens_per_param: float) -> float:
    """The N at which `budget` buys exactly so many tokens per parameter."""
    low, high = math.log(1e3), math.log(1e13)
    for _ in range(48):
        middle = (low + high) / 2
        params = math.exp(middle)
        # The family is discrete: scale the FLOPs of the nearest shape to the N asked about.
        rung = ladder.nearest(config, params, exact=True)
        rate = ladder.flops_per_token(config, rung.model) / rung.params
        cost = rate * params * params * tokens_per_param
        low, high = (middle, high) if cost < budget else (low, middle)
    return math.exp((low + high) / 2)


def _flops_per_token(config: RunConfig) -> Callable[[np.ndarray], np.ndarray]:
    """c(N) of the study's family under its convention: ln(c / 6N) between shapes, linear in ln N."""
    rungs = [ladder.nearest(config, params, exact=True) for params in np.geomspace(1e3, 1e13, 61)]
    costs = {rung.params: ladder.flops_per_token(config, rung.model) for rung in rungs}
    sizes = np.array(sorted(costs))
    ratios = np.log([costs[n] / (6.0 * n) for n in sizes])
    return lambda params: 6.0 * params * np.exp(np.interp(np.log(params), np.log(sizes), ratios))


def _fitted(config: RunConfig, path: str) -> Guess:
    """Approach 2 of the runs where it can be fitted and counts FLOPs as this study does, else approach 3."""
    from chinchilla_jax.scaling.fits.approach2.isoflop import CORRECTED, fit_isoflop
    from chinchilla_jax.scaling.fits.approach3.parametric import fit_parametric
    from chinchilla_jax.scaling.read.load import load_runs
    from chinchilla_jax.scaling.read.runs import FitRefused

    try:
        loaded = load_runs(path)
        runs = loaded.role("isoflop")
        source = f"of the {len(runs)} runs in {path}"
        if loaded.convention == config.study_section.convention:
            with contextlib.suppress(FitRefused):
                law = fit_isoflop(runs, preset=CORRECTED, resampling=None).params_law
                formula = f"N* = {float(law.coefficient):.4g} C^{float(law.exponent):.4g}"
                return Guess(lambda budget: float(law.at(budget)), f"approach 2 {source}: {formula}")
        fit = fit_parametric(runs, resampling=None)
        if not fit.known.determined:
            raise FitRefused("undetermined", f"the runs in {path} do not say which N is best: {fit.known.why}")
        surface = fit.surface
    except FitRefused as refused:
        raise ConfigError(_KEY, str(refused)) from None
    E, A, B, alpha, beta = (float(getattr(surface, name)) for name in ("E", "A", "B", "alpha", "beta"))
    formula = f"L = {E:.4g} + {A:.4g} / N^{alpha:.4g} + {B:.4g} / D^{beta:.4g}"
    return _optimum(config, surface, f"approach 3 {source}: {formula}")
