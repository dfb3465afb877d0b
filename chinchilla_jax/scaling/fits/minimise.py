"""How are thousands of small non-linear fits brought to their minimum together, and how many starts lead there?

A scaling-law fit is small, but is wanted from thousands of starting points and for thousands of bootstrap resamples.
So they advance in step: one vectorised evaluation, one batched eigen-decomposition, and the finished ones leave.

The method is a damped Newton step with the absolute values of the Hessian's eigenvalues (Levenberg 1944, Marquardt
1963 for the damping; the absolute value makes saddle points repel). Second derivatives are exact, so that near the
minimum the number of correct digits doubles per step and no stopping tolerance has to be guessed: Besiroglu et al.
(arXiv 2404.10102) trace the published approach-3 constants of Hoffmann et al. to an optimiser that stopped early.

One fitter for every law. A `Problem` brings value, gradient and Hessian in coordinates of its own choice: approach 3 by
hand (`approach3.parametric`), which a few thousand starts need, any other form by JAX (`laws.fit`).

The starts first descend a wider Huber loss, where almost every residual counts as squared; the best distinct minima go
on through narrower ones to the misfit asked for. A start far from the data sees only absolute values at the narrow one,
whose curvature says nothing, and crawls. The minimum reached is that of the final objective.
"""

from __future__ import annotations

import abc
import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from chinchilla_jax.scaling.fits.resample import Resampling

# value_[B], gradient_[BxP] and Hessian_[BxPxP] at theta_[BxP]; the second argument tells which problem each row is.
Objective = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]

_DAMPING_START, _DAMPING_MIN, _DAMPING_MAX = 1e-2, 1e-12, 1e14
_STALL_WINDOW, _STALL_DECREASE = 15, 1e-9
AGREEMENT = 1e-3  # a start agrees when its objective is within this relative distance of the best
CONVERGED = 1e-2  # largest component of the gradient
_CARRIED = 512  # distinct minima that go on to the next stage
_EXACT = 1e-6  # relative residuals below this are a perfect fit; the rest is rounding
_SEEDS = 2  # distinct minima from which each resample is refitted
_DIGITS = 4  # minima equal to so many decimals are the same


class Minima(NamedTuple):
    """Where each of B problems ended: `theta` [B, P]; `value` [B]; `gradient` [B], the largest absolute component."""

    theta: np.ndarray
    value: np.ndarray
    gradient: np.ndarray


def minimise(
    objective: Objective, starts: np.ndarray, *, tolerance: float = 1e-6, max_steps: int = 300, chunk: int = 128
) -> Minima:
    """Minimise B independent problems of P unknowns each, until no component of the gradient is above `tolerance`.

    Args:
      objective: vectorised; must be thread-safe. Scale it so that values of interest are well above 1.
      starts: [B, P], in coordinates where a unit step matters about equally in each direction.
      chunk: problems per batch; small enough that the working arrays stay in the processor's cache.
    """
    starts = np.asarray(starts, np.float64)
    blocks = [np.arange(i, min(i + chunk, len(starts))) for i in range(0, len(starts), chunk)]

    with ThreadPoolExecutor(max(1, min(len(blocks), os.cpu_count() or 1))) as pool:
        parts = pool.map(lambda rows: _descend(objective, starts[rows], rows, tolerance, max_steps), blocks)
        return Minima(*map(np.concatenate, zip(*parts, strict=True)))


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def _descend(objective: Objective, theta: np.ndarray, rows: np.ndarray, tolerance: float, max_steps: int) -> Minima:
    value, grad, hess = objective(theta, rows)
    damping = np.full(len(theta), _DAMPING_START)
    reference = value.copy()
    alive = np.isfinite(value) & (np.abs(grad).max(1) > tolerance)
    for step in range(1, max_steps + 1):
        live = np.flatnonzero(alive)
        if not len(live):
            break
        roots, axes = np.linalg.eigh(hess[live])
        # Damping is relative to the largest curvature, so that rescaling the objective changes nothing.
        damp = damping[live] * np.maximum(np.abs(roots).max(1), 1e-300)
        along = np.einsum("bji,bj->bi", axes, grad[live]) / (np.abs(roots) + damp[:, None])
        trial = theta[live] - np.einsum("bij,bj->bi", axes, along)
        new_value, new_grad, new_hess = objective(trial, rows[live])
        better = np.isfinite(new_value) & np.isfinite(new_hess).all((1, 2)) & (new_value <= value[live])
        won = live[better]
        theta[won], value[won] = trial[better], new_value[better]
        grad[won], hess[won] = new_grad[better], new_hess[better]
        damping[live] = np.clip(damping[live] * np.where(better, 0.1, 10.0), _DAMPING_MIN, None)
        alive[live] = (np.abs(grad[live]).max(1) > tolerance) & (damping[live] < _DAMPING_MAX)
        if step % _STALL_WINDOW == 0:
            # A start that slides down an endless slope (E -> 0, say) would otherwise use every step there is.
            alive &= value < reference - _STALL_DECREASE * np.abs(reference)
            reference = value.copy()
    return Minima(theta, value, np.abs(grad).max(1))


def minimise_on_grid(
    function: Callable[[np.ndarray], np.ndarray], grid: np.ndarray, *, rounds: int, points: int
) -> np.ndarray:
    """The lowest point [...] of a function of one unknown, whose values at a grid [..., G] may be infinite.

    By `rounds` grids: the first, and ever finer ones of `points` between the neighbours of the best. It cannot fail to
    converge, nor land in a local minimum that the first grid tells from the lowest one.
    """
    share = np.linspace(0.0, 1.0, points)
    for _ in range(rounds):
        best = function(grid).argmin(-1)[..., None]
        low = np.take_along_axis(grid, np.maximum(best - 1, 0), -1)
        high = np.take_along_axis(grid, np.minimum(best + 1, grid.shape[-1] - 1), -1)
        lowest = np.take_along_axis(grid, best, -1)[..., 0]
        grid = low + (high - low) * share
    return lowest


@dataclasses.dataclass(frozen=True)
class Misfit:
    """The sum over runs of Huber_delta(residual), half the square within `delta` and linear beyond. `residual` is
    `log`, ln(predicted) - ln(measured), or `raw`, predicted - measured in the unit of the target.

    A run whose loss is predicted too high counts `above` times as much as one predicted too low by the same. Above 1
    the law lies near the lowest runs: it stands for the best loss that can be reached, and a badly tuned run is above
    it. Where most residuals are beyond `delta`, the share of the runs below the law is about 1 / (1 + `above`)."""

    name: str
    residual: str
    delta: float
    above: float = 1.0

    def narrowing(self, residual: str) -> list[Misfit]:
        """The same with wider thresholds on residuals of this kind, widest first."""
        return [Misfit("", residual, d, self.above) for d in (1e-1, 1e-2, 1e-3, 1e-4) if d > self.delta * 1.001]

    def noise(self, scatter: float) -> float:
        """Standard deviation of a log residual as it counts: the scatter, times what a robust misfit pays for that.

        Huber's estimator with threshold k scatters has variance E[psi^2] / E[psi']^2 under normal errors: 1 for large
        k, pi / 2 for small (Huber 1964). The paper's threshold of 1e-3 is small for most studies.
        """
        scatter = max(scatter, 1e-9)
        k = self.delta / scatter if self.residual == "log" else math.inf
        if not math.isfinite(k) or k > 6.0:
            return scatter
        inside, density = math.erf(k / math.sqrt(2.0)), math.exp(-0.5 * k * k) / math.sqrt(2.0 * math.pi)
        return scatter * math.sqrt(inside - 2.0 * k * density + k * k * (1.0 - inside)) / inside


HUBER = Misfit("huber", "log", 1e-3)  # the paper's
# Residuals below 1e-5 are below anything measured, so this is the sum of absolute values.
L1 = Misfit("l1", "log", 1e-5)
SQUARED_LOG = Misfit("squared_log", "log", np.inf)
SQUARED_RAW = Misfit("squared_raw", "raw", np.inf)
# OLMo-core, pull request 554 (2026): ten times, against rungs of a ladder that are not tuned to the end.
ASYMMETRIC_HUBER = Misfit("asymmetric_huber", "log", 1e-3, above=10.0)
MISFITS = {misfit.name: misfit for misfit in (HUBER, L1, SQUARED_LOG, SQUARED_RAW, ASYMMETRIC_HUBER)}


class Problem(abc.ABC):
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

    @abc.abstractmethod
    def objective(self, misfit: Misfit, weights: np.ndarray | None = None) -> Objective:
        """The misfit in units of `unit` squared, for `minimise`; `weights` [B, size] are multiplicities of points."""


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
