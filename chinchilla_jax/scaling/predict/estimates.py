"""What does one approach answer for a budget, and within what interval?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from chinchilla_jax.scaling.fits.approach1.envelope import EnvelopeFit
from chinchilla_jax.scaling.fits.approach2.isoflop import IsoflopFit
from chinchilla_jax.scaling.fits.approach2.optimum_law import OptimumLaw
from chinchilla_jax.scaling.fits.approach3.parametric import ParametricFit
from chinchilla_jax.scaling.fits.resample import interval
from chinchilla_jax.scaling.fits.surface import FlopsPerToken
from chinchilla_jax.scaling.predict.analysis import Analysis

LEVELS = (0.8, 0.95)
LOSS_LAW = "E + k C^-g, averaged over E"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One approach's answer: N, D, D/N and the minimum loss (nats per token).

    `intervals[quantity][level]` = (low, high). Those of `loss` are for a single trained run: what is not known of the
    law and the scatter of runs about it. `loss_law` names the form extrapolated.
    """

    approach: str
    params: float
    tokens: float
    tokens_per_param: float
    loss: float
    loss_law: str
    intervals: Mapping[str, Mapping[float, tuple[float, float]]]


def estimates_of(fits: Analysis, budget: float, c: FlopsPerToken) -> dict[str, Estimate]:
    """By approach that was fitted: its answer for `budget` FLOPs, where C = c N D or c(N) D."""
    estimates = {}
    if fits.envelope:
        estimates["envelope"] = _from_envelope(fits.envelope, budget, fits.seed)
    if fits.isoflop:
        estimates["isoflop"] = _from_isoflop(fits.isoflop, budget, fits.seed)
    if fits.parametric:
        estimates["parametric"] = _from_parametric(fits.parametric, budget, c, fits.seed)
    return estimates


def _spans(params: np.ndarray, tokens: np.ndarray, **more: np.ndarray) -> dict[str, dict[float, tuple[float, float]]]:
    """Central percentile intervals of replicates at every level of `LEVELS`."""
    samples = {"params": params, "tokens": tokens, "tokens_per_param": tokens / params} | more
    return {name: {level: interval(values, level) for level in LEVELS} for name, values in samples.items()}


def _from_envelope(fit: EnvelopeFit, budget: float, seed: int) -> Estimate:
    """Approach 1's answer; its loss is the smoothed training loss."""
    params, tokens = float(fit.params_law.at(budget)), float(fit.tokens_law.at(budget))
    intervals = {}
    if fit.boot_params is not None:
        n, d = fit.boot_params.at(budget), fit.boot_tokens.at(budget)
        noise = 1.0 + fit.scatter * np.random.default_rng(seed).standard_normal(n.shape)
        intervals = _spans(n, d, loss=fit.boot_loss_offset.at(budget) * noise)
    form, loss = "E + k C^-g, training loss", float(fit.loss_offset.at(budget))
    return Estimate("envelope", params, tokens, tokens / params, loss, form, intervals)


def _from_isoflop(fit: IsoflopFit, budget: float, seed: int) -> Estimate:
    """Approach 2's answer. Where the preset knows how minima scatter about their lines, the intervals of N and D are
    those of the best size of this budget, not only of the line."""
    params, tokens = float(fit.params_law.at(budget)), float(fit.tokens_law.at(budget))
    intervals = {}
    if fit.boot_params is not None:
        n, d = fit.boot_params.at(budget), fit.boot_tokens.at(budget)
        if isinstance(fit.params_law, OptimumLaw):
            moved = np.random.default_rng(seed).standard_t(fit.params_law.freedom, n.shape)
            n = n * np.exp(fit.params_law.spread(budget) * moved)
            d = d * np.exp(-fit.tokens_law.spread(budget) * moved)
        intervals = _spans(n, d) | {"loss": {level: fit.loss_law.interval(budget, level) for level in LEVELS}}
    return Estimate("isoflop", params, tokens, tokens / params, fit.loss_law.at(budget), LOSS_LAW, intervals)


def _from_parametric(fit: ParametricFit, budget: float, c: FlopsPerToken, seed: int) -> Estimate:
    params, tokens, loss = (float(v) for v in fit.surface.optimum(budget, c))
    intervals = {}
    if fit.boot is not None:
        n, d, low = fit.boot.optimum(budget, c)
        noise = np.exp(fit.scatter * np.random.default_rng(seed).standard_normal(n.shape))
        intervals = _spans(n, d, loss=low * noise)
    return Estimate("parametric", params, tokens, tokens / params, loss, "E + A/N^alpha + B/D^beta", intervals)
