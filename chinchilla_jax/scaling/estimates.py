"""What does one approach answer for a budget, and within what interval?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from chinchilla_jax.scaling.envelope import EnvelopeFit
from chinchilla_jax.scaling.frontier import OffsetLaw, PowerLaw
from chinchilla_jax.scaling.isoflop import IsoflopFit
from chinchilla_jax.scaling.parametric import ParametricFit
from chinchilla_jax.scaling.resample import interval
from chinchilla_jax.scaling.surface import FlopsPerToken

LEVELS = (0.8, 0.95)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One approach's answer: N, D, D/N and the minimum loss (nats per token).

    `intervals[quantity][level]` = (low, high). Those of `loss` are for a single trained run: the bootstrap
    spread of the law plus the scatter of runs about it. `loss_law` names the form extrapolated.
    """

    approach: str
    params: float
    tokens: float
    tokens_per_param: float
    loss: float
    loss_law: str
    intervals: Mapping[str, Mapping[float, tuple[float, float]]]


def intervals_of(**samples: np.ndarray) -> dict[str, dict[float, tuple[float, float]]]:
    """Central percentile intervals of bootstrap samples at every level of `LEVELS`."""
    return {name: {level: interval(values, level) for level in LEVELS} for name, values in samples.items()}


def from_envelope(fit: EnvelopeFit, budget: float, seed: int = 0) -> Estimate:
    """Approach 1's answer; its loss is the smoothed training loss."""
    form = "E + k C^-g, training loss"
    return _from_laws("envelope", fit, budget, fit.loss_offset, fit.boot_loss_offset, form, seed)


def from_isoflop(fit: IsoflopFit, budget: float, loss_law: str, seed: int = 0) -> Estimate:
    """Approach 2's answer; `loss_law` is `power` (k C^-g) or `offset` (E + k C^-g)."""
    if loss_law == "offset":
        return _from_laws("isoflop", fit, budget, fit.loss_offset, fit.boot_loss_offset, "E + k C^-g", seed)
    return _from_laws("isoflop", fit, budget, fit.loss_power, fit.boot_loss_power, "k C^-g", seed)


def _from_laws(
    approach: str,
    fit: EnvelopeFit | IsoflopFit,
    budget: float,
    law: PowerLaw | OffsetLaw,
    boot: PowerLaw | OffsetLaw | None,
    form: str,
    seed: int,
) -> Estimate:
    """The answer of an approach that fits N*(C), D*(C) and the minimum loss apart."""
    params, tokens = float(fit.params_law.at(budget)), float(fit.tokens_law.at(budget))
    intervals = {}
    if boot is not None:
        n, d = fit.boot_params.at(budget), fit.boot_tokens.at(budget)
        noise = 1.0 + fit.scatter * np.random.default_rng(seed).standard_normal(n.shape)
        intervals = intervals_of(params=n, tokens=d, tokens_per_param=d / n, loss=boot.at(budget) * noise)
    return Estimate(approach, params, tokens, tokens / params, float(law.at(budget)), form, intervals)


def from_parametric(fit: ParametricFit, budget: float, c: FlopsPerToken, seed: int = 0) -> Estimate:
    """Approach 3's answer under C = c N D, or c(N) D."""
    params, tokens, loss = (float(v) for v in fit.surface.optimum(budget, c))
    intervals = {}
    if fit.boot is not None:
        n, d, low = fit.boot.optimum(budget, c)
        noise = np.exp(fit.scatter * np.random.default_rng(seed).standard_normal(n.shape))
        intervals = intervals_of(params=n, tokens=d, tokens_per_param=d / n, loss=low * noise)
    return Estimate("parametric", params, tokens, tokens / params, loss, "E + A/N^alpha + B/D^beta", intervals)
