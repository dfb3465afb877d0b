"""What does each approach answer for a budget, within what interval, and did it predict the larger budgets at hand?

To hide the larger budgets and predict them from the smaller ones is the one honest test of an extrapolation that needs
no further training.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from chinchilla_jax.scaling.fits.approach1.envelope import EnvelopeFit
from chinchilla_jax.scaling.fits.approach2.isoflop import IsoflopFit
from chinchilla_jax.scaling.fits.approach3.parametric import ParametricFit
from chinchilla_jax.scaling.fits.frontier import OptimumLaw
from chinchilla_jax.scaling.fits.resample import interval
from chinchilla_jax.scaling.fits.surface import FlopsPerToken
from chinchilla_jax.scaling.predict.analysis import Analysis, fit_all
from chinchilla_jax.scaling.read.runs import Run

_LEVELS = (0.8, 0.95)
LOSS_LAW = "E + k C^-g, averaged over E"
_BELOW = 1.5  # a run without a budget counts as below a budget if it is this many times cheaper
_LEAST = 2  # budgets to fit to
Intervals = Mapping[float, tuple[float, float]]  # by level


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One approach's answer: N, D, D/N and the minimum loss (nats per token).

    `intervals[quantity][level]` = (low, high). Those of `loss` are for a single trained run: what is not known of the
    law and the scatter of runs about it; those of `mean_loss` for the mean of many such runs. `loss_law` names the form
    extrapolated.
    """

    approach: str
    params: float
    tokens: float
    tokens_per_param: float
    loss: float
    loss_law: str
    intervals: Mapping[str, Intervals]


@dataclasses.dataclass(frozen=True)
class Rollout:
    """How a candidate, fitted to the `fitted` budgets below it, predicted `budget`.

    `loss_error` is relative. `size_cost` is the relative loss that the predicted size gives away against the best:
    profiles are flat, so an error of the size is counted by what it costs.
    """

    candidate: str
    fitted: int
    budget: float
    predicted_params: float
    profile_params: float
    predicted_loss: float
    profile_loss: float
    loss_error: float
    size_cost: float


def estimates_of(fits: Analysis, budget: float, c: FlopsPerToken) -> dict[str, Estimate]:
    """By name, the answer of each approach that was fitted, for `budget` FLOPs, where C = c N D or c(N) D.

    Approach 3 has none beside approach 2 if the runs do not determine it; without approach 2 it says what is known
    then: the loss at the D/N of the runs.
    """
    surface = fits.parametric
    if surface and not surface.known.determined and fits.isoflop:
        surface = None
    estimates = (
        fits.envelope and _from_envelope(fits.envelope, budget, fits.seed),
        fits.isoflop and _from_isoflop(fits.isoflop, budget, fits.seed),
        surface and _from_parametric(surface, budget, c, fits.runs, fits.seed),
    )
    return {estimate.approach: estimate for estimate in estimates if estimate}


def intervals_of(replicates: np.ndarray) -> dict[float, tuple[float, float]]:
    """The central percentile intervals, by level."""
    return {level: interval(replicates, level) for level in _LEVELS}


def _estimate(approach: str, answer: tuple, loss_law: str, replicates: tuple, **intervals: Intervals) -> Estimate:
    """`answer` is N, D and loss; `replicates` are those of the same, or of N and D, or there are none."""
    params, tokens, loss = (float(value) for value in answer)
    if replicates:
        n, d, *losses = replicates
        samples = zip(("params", "tokens", "tokens_per_param", "loss"), (n, d, d / n, *losses), strict=False)
        intervals = {name: intervals_of(values) for name, values in samples} | intervals
    return Estimate(approach, params, tokens, tokens / params, loss, loss_law, intervals)


def _from_envelope(fit: EnvelopeFit, budget: float, seed: int) -> Estimate:
    """Approach 1's answer; its loss is the smoothed training loss."""
    replicates: tuple = ()
    if fit.boot_params and fit.boot_tokens and fit.boot_loss_offset:
        n, d, low = (boot.at(budget) for boot in (fit.boot_params, fit.boot_tokens, fit.boot_loss_offset))
        replicates = n, d, low * (1.0 + fit.scatter * np.random.default_rng(seed).standard_normal(n.shape))
    answer = fit.params_law.at(budget), fit.tokens_law.at(budget), fit.loss_offset.at(budget)
    return _estimate("envelope", answer, "E + k C^-g, training loss", replicates)


def _from_isoflop(fit: IsoflopFit, budget: float, seed: int) -> Estimate:
    """Approach 2's answer. If the fit knows how minima scatter about their lines, the intervals of N and D are those of
    the best size at this budget, not only those of the line."""
    answer = fit.params_law.at(budget), fit.tokens_law.at(budget), fit.loss_law.at(budget)
    if not (fit.boot_params and fit.boot_tokens):
        return _estimate("isoflop", answer, LOSS_LAW, ())
    n, d = fit.boot_params.at(budget), fit.boot_tokens.at(budget)
    if isinstance(fit.params_law, OptimumLaw) and isinstance(fit.tokens_law, OptimumLaw):
        moved = np.random.default_rng(seed).standard_t(fit.params_law.freedom, n.shape)
        n = n * np.exp(fit.params_law.spread(budget) * moved)
        d = d * np.exp(-fit.tokens_law.spread(budget) * moved)
    loss, mean = (
        {level: fit.loss_law.interval(budget, level, one_run) for level in _LEVELS} for one_run in (True, False)
    )
    return _estimate("isoflop", answer, LOSS_LAW, (n, d), loss=loss, mean_loss=mean)


def _from_parametric(fit: ParametricFit, budget: float, c: FlopsPerToken, runs: Sequence[Run], seed: int) -> Estimate:
    replicates: tuple = ()
    if not fit.known.determined:
        return _along_ray(fit, budget, c, runs, seed)
    mean = {}
    if fit.boot:
        n, d, low = fit.boot.optimum(budget, c)
        mean = {"mean_loss": intervals_of(low)}
        replicates = n, d, low * np.exp(fit.scatter * np.random.default_rng(seed).standard_normal(n.shape))
    return _estimate("parametric", fit.surface.optimum(budget, c), "E + A/N^alpha + B/D^beta", replicates, **mean)


def _along_ray(fit: ParametricFit, budget: float, c: FlopsPerToken, runs: Sequence[Run], seed: int) -> Estimate:
    """Where the runs' middle D/N meets the budget, and the loss there, which they know without knowing the surface."""
    ratio = float(np.exp(np.median([np.log(run.tokens / run.params) for run in runs])))
    params = math.sqrt(budget / 6.0 / ratio)
    for _ in range(40):  # C = c(N) D with D = ratio N; c is nearly proportional to N
        flops = float(c(np.asarray(params))) if callable(c) else c * params
        params *= math.sqrt(budget / (flops * ratio * params))
    tokens, losses = ratio * params, {}
    if fit.boot:
        noise = np.exp(fit.scatter * np.random.default_rng(seed).standard_normal(len(fit.boot.E)))
        losses["loss"] = intervals_of(fit.boot.loss(params, tokens) * noise)
    answer = params, tokens, fit.surface.loss(params, tokens)
    return _estimate("parametric", answer, f"E + A/N^alpha + B/D^beta at D/N = {ratio:.3g}", (), **losses)


def rollouts(fits: Analysis, c: FlopsPerToken) -> tuple[Rollout, ...]:
    """Each approach's prediction of every profile that has two or more below it, smallest budget first.

    The approaches are fitted as in `fits`, without intervals. The loss of approach 1 is the training loss.
    """
    result = []
    profiles = fits.isoflop.profiles if fits.isoflop else ()
    for index, target in list(enumerate(profiles))[_LEAST:]:
        best = target.params
        below = [run for run in fits.runs if (run.budget or run.flops * _BELOW) < target.budget]
        for name, answer in estimates_of(fit_all(below, fits.preset, quick=True), target.budget, c).items():
            missed, cost = answer.loss / best.lowest - 1.0, float(best.at(answer.params)) / best.lowest - 1.0
            sizes, losses = (answer.params, best.best), (answer.loss, best.lowest)
            result.append(Rollout(name, index, target.budget, *sizes, *losses, missed, cost))
    return tuple(result)
