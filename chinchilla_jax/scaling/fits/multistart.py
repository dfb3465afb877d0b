"""Which constants of a law lie closest to n points, how many starts lead there, and what do resampled points say?

One fitter for every law. A `Problem` brings value, gradient and Hessian in coordinates of its own choice: approach 3 by
hand (`approach3.parametric`), which a few thousand starts need, any other form by JAX (`laws.fit`).

The starts first descend a wider Huber loss, where almost every residual counts as squared; the best distinct minima go
on through narrower ones to the misfit asked for. A start far from the data sees only absolute values at the narrow one,
whose curvature says nothing, and crawls. The minimum reached is that of the final objective.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from chinchilla_jax.scaling.fits.minimise import Minima, Objective, minimise
from chinchilla_jax.scaling.fits.resample import Resampling

AGREEMENT = 1e-3  # a start agrees when its objective is within this relative distance of the best
CONVERGED = 1e-2  # largest component of the gradient
_CARRIED = 512  # distinct minima that go on to the next stage
_EXACT = 1e-6  # relative residuals below this are a perfect fit; the rest is rounding
_SEEDS = 2  # distinct minima from which each resample is refitted
_DIGITS = 4  # minima equal to so many decimals are the same


@dataclasses.dataclass(frozen=True)
class Misfit:
    """The sum over runs of Huber_delta(residual), half the square within `delta` and linear beyond. `residual` is
    `log`, ln(predicted) - ln(measured), or `raw`, predicted - measured in the unit of the target."""

    name: str
    residual: str
    delta: float

    def narrowing(self, residual: str) -> list[Misfit]:
        """The same with wider thresholds on residuals of this kind, widest first."""
        return [Misfit("", residual, d) for d in (1e-1, 1e-2, 1e-3, 1e-4) if d > self.delta * 1.001]


HUBER = Misfit("huber", "log", 1e-3)  # the paper's
# Residuals below 1e-5 are below anything measured, so this is the sum of absolute values.
L1 = Misfit("l1", "log", 1e-5)
SQUARED_LOG = Misfit("squared_log", "log", np.inf)
SQUARED_RAW = Misfit("squared_raw", "raw", np.inf)
MISFITS = {misfit.name: misfit for misfit in (HUBER, L1, SQUARED_LOG, SQUARED_RAW)}


class Problem:
    """A law of P unknowns and the `size` points it is fitted to."""

    size: int
    chunk = 128  # problems per batch of `minimise`, so that its working arrays stay in the processor's cache
    typical = 1.0  # size of the target, in which raw residuals are measured

    def unit(self, misfit: Misfit) -> float:
        """What residuals are measured in, which brings the objective near the number of points."""
        return min(misfit.delta, 1e-2 * (1.0 if misfit.residual == "log" else self.typical))

    def usable(self, theta: np.ndarray) -> np.ndarray:
        """[B]: whether theta [B, P] is a law at all."""
        return np.isfinite(theta).all(1)

    def objective(self, misfit: Misfit, weights: np.ndarray | None = None) -> Objective:
        """The misfit in units of `unit` squared, for `minimise`; `weights` [B, size] are multiplicities of points."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """What the fits of all laws say of their minimum: `objective` is the plain sum of the misfit; `gradient` its
    largest component in the searched coordinates, in units of `Problem.unit` squared; `agreement` the share of the
    `n_starts` starts that reached this minimum; `scatter` the root mean square of the residuals, corrected for the
    unknowns; `boot_kept` the share of resamples that had a usable minimum."""

    misfit: Misfit
    objective: float
    gradient: float
    agreement: float
    n_starts: int
    scatter: float
    boot_kept: float = 1.0

    @property
    def converged(self) -> bool:
        """Whether the gradient vanishes."""
        return self.gradient < CONVERGED


def descend(problem: Problem, theta: np.ndarray, stages: Sequence[Misfit]) -> tuple[Minima, float]:
    """The minima of the last of `stages`, best first (`value` infinite where there is none), reached from theta [S, P]
    through those before it; and the agreement: the share of the starts that lead to the best."""
    row_of_start = np.arange(len(theta))
    for index, stage in enumerate(stages):
        last = index == len(stages) - 1
        # A start that has not arrived after 100 steps goes on in the next stage.
        minima = minimise(problem.objective(stage), theta, max_steps=300 if index or last else 100, chunk=problem.chunk)
        value = np.where(np.isfinite(minima.value), minima.value, np.inf)
        if not last:
            _, first, group = np.unique(np.round(minima.theta, _DIGITS), axis=0, return_index=True, return_inverse=True)
            kept = np.argsort(value[first], kind="stable")[:_CARRIED]
            row_of_group = np.full(len(first) + 1, -1)
            row_of_group[kept] = np.arange(len(kept))
            theta, row_of_start = minima.theta[first[kept]], row_of_group[np.append(group.ravel(), -1)[row_of_start]]
    order = np.argsort(value, kind="stable")
    allowed = value[order[0]] * (1.0 + AGREEMENT) + 0.5 * problem.size * (_EXACT / problem.unit(stages[-1])) ** 2
    reached = (row_of_start >= 0) & (value[row_of_start] <= allowed)
    return Minima(minima.theta[order], value[order], minima.gradient[order]), float(reached.mean())


def bootstrap(
    problem: Problem, misfit: Misfit, minima: Minima, resampling: Resampling, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """[B, P] usable minima of resampled problems, each from the best distinct `minima`; and their share."""
    finite = minima.theta[np.isfinite(minima.value)]
    seeds = finite[np.sort(np.unique(np.round(finite, _DIGITS), axis=0, return_index=True)[1])[:_SEEDS]]
    weights = resampling.weights(problem.size, rng)
    count = len(weights)
    objective = problem.objective(misfit, np.repeat(weights, len(seeds), 0))
    starts = np.tile(seeds, (count, 1))
    refits = minimise(objective, starts, tolerance=1e-4, max_steps=60, chunk=problem.chunk)
    value = np.where(np.isfinite(refits.value), refits.value, np.inf).reshape(count, -1)
    theta = refits.theta.reshape(count, len(seeds), -1)[np.arange(count), value.argmin(1)]
    good = np.isfinite(value.min(1)) & problem.usable(theta)
    return theta[good], float(good.mean())
