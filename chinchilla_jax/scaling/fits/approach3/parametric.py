"""Approach 3: which surface L(N, D) = E + A / N^alpha + B / D^beta lies through all runs, and where is its optimum?

Hoffmann et al. 2022 (arXiv 2203.15556) section 3.3 and appendix D.2: minimise the sum over runs of
Huber_delta(LSE(a - alpha ln N, b - beta ln D, e) - ln L) from 4500 starting points. The fit here keeps that objective
and those starts and changes how the minimum is reached (see `minimise`): the published constants stop short of it
(Besiroglu et al., arXiv 2404.10102; `as_published` shows how). Other objectives are those of `objective.MISFITS`. A
and B are flat directions: compare predictions and exponents, not A and B.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from chinchilla_jax.scaling.fits.approach3.objective import CONSTANTS, HUBER, Misfit, Problem
from chinchilla_jax.scaling.fits.minimise import Minima, minimise
from chinchilla_jax.scaling.fits.resample import FULL, Resampling
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.read.runs import FitRefused, Run

AGREEMENT = 1e-3  # a start agrees when its objective is within this relative distance of the best
DIFFERENCES = (
    "the objective is the sum over runs, not the mean, and is brought to zero gradient: averaged, it is so small that "
    "an optimiser's default tolerance stops it early (Besiroglu et al. 2024)",
    "intervals are 95% over resamples of all runs with replacement; the paper's 100 subsets of 80% come out half "
    "as wide as the sampling error",
    "constants are kept unrounded: alpha and beta to two digits move predicted losses by more than the fit's error",
)
_CARRIED = 512
_FAR_OFF, _FAR_TIMES = 0.05, 8.0
_FLAT = 0.95  # two constants with a larger correlation are one direction


@dataclasses.dataclass(frozen=True)
class ParametricFit:
    """Approach 3 on `n_runs` runs.

    `objective` is the plain sum of the misfit; `gradient` its largest component in standardised coordinates, in units
    of `misfit.unit` squared; `agreement` the share of the starts that reached this minimum; `scatter` the root mean
    square of the log residuals, corrected for the unknowns. `flat` names the constants that cannot be told apart, with
    their correlation. `boot` holds the bootstrap replicates and `boot_kept` the share of resamples that had a usable
    minimum.
    """

    surface: Surface
    misfit: Misfit
    tied: bool
    n_runs: int
    n_starts: int
    objective: float
    gradient: float
    converged: bool
    agreement: float
    scatter: float
    flat: tuple[tuple[str, str, float], ...] = ()
    preset: str = "corrected"
    boot: Surface | None = None
    boot_kept: float = 1.0


def paper_starts() -> np.ndarray:
    """The 4500 starts of appendix D.2, [4500, 5]: columns a, b, e, alpha, beta."""
    ab = np.arange(0.0, 30.0, 5.0)
    e = np.arange(-1.0, 1.5, 0.5)
    exponents = np.arange(0.0, 2.5, 0.5)
    return np.array(list(itertools.product(ab, ab, e, exponents, exponents)))


def few_starts() -> np.ndarray:
    """A ninth of them, [500, 5], at a ninth of the time: every value along every axis still occurs."""
    return paper_starts()[::9]


def fit_parametric(
    runs: Sequence[Run],
    *,
    misfit: Misfit = HUBER,
    tied: bool = False,
    starts: np.ndarray | None = None,
    resampling: Resampling | None = FULL,
    seed: int = 0,
) -> ParametricFit:
    """Approach 3 on the runs with role `isoflop`.

    The starts first descend a wider Huber loss (0.1 in log loss), where almost every residual counts as squared; the
    best distinct minima go on through narrower ones to `misfit`. At once with 1e-3 most starts see only absolute
    values, whose curvature says nothing, and crawl. The minimum reached is that of the final objective.

    Args:
      tied: one exponent for N and D (Muennighoff et al. 2023; Gadre et al. 2024).
      starts: [S, 5] in a, b, e, alpha, beta; `paper_starts()` unless given. With `tied` those with alpha = beta.
      resampling: how runs are resampled; each replicate is refitted from the best minima of the full fit.

    Raises:
      FitRefused: `few_points` (not more runs than unknowns), `same_size` (all N or all D equal), `collinear` (D/N the
        same function of N throughout), `no_optimum` (the best surface does not fall with both N and D).
    """
    problem = fit_problem(runs, tied)
    starts = paper_starts() if starts is None else np.asarray(starts, np.float64)
    starts = starts[starts[:, 3] == starts[:, 4]] if tied else starts
    wide = [Misfit("", "log", d) for d in (1e-1, 1e-2, 1e-3, 1e-4) if d > misfit.delta * 1.001]
    stages = [*(wide or [Misfit("", "log", 1e-1)]), misfit]
    theta, origin, minima = problem.standardise(starts), np.arange(len(starts)), None
    for index, stage in enumerate(stages):
        minima = minimise(problem.objective(stage), theta, max_steps=300 if index else 100)
        theta, origin = _distinct(minima, origin, keep=None if stage is misfit else _CARRIED)
    order = np.argsort(np.where(np.isfinite(minima.value), minima.value, np.inf))
    best = int(order[0])
    found = minima.value[best]
    if not problem.usable(minima.theta[[best]])[0]:
        surface = problem.surface(minima.theta[best])
        raise FitRefused(
            "no_optimum",
            f"approach 3: the best surface has alpha = {surface.alpha:.3g}, beta = "
            f"{surface.beta:.3g}; loss must fall with both N and D: widen the range of sizes and tokens",
        )
    reached = np.isin(origin, np.flatnonzero(minima.value[_first(minima)] <= found * (1.0 + AGREEMENT)))
    fit = describe_fit(problem, minima.theta[best], misfit, float(minima.gradient[best]), float(reached.mean()))
    fit = dataclasses.replace(fit, n_starts=len(starts), objective=float(found * misfit.unit**2))
    if resampling is None:
        return fit
    boot = _bootstrap(problem, misfit, minima.theta[order[:4]], resampling, np.random.default_rng(seed))
    good = problem.usable(boot)
    if not good.any():
        return dataclasses.replace(fit, boot_kept=0.0)
    return dataclasses.replace(fit, boot=problem.surface(boot[good]), boot_kept=float(good.mean()))


def fit_problem(runs: Sequence[Run], tied: bool = False) -> Problem:
    """The problem of the runs with role `isoflop`; raises `FitRefused` as `fit_parametric` says."""
    runs = [run for run in runs if run.role == "isoflop"]
    needed = 5 if tied else 6
    if len(runs) < needed:
        raise FitRefused(
            "few_points",
            f"approach 3 has {needed - 1} unknowns: needs {needed} runs, got {len(runs)}; train more sizes",
        )
    return Problem(runs, tied)


def describe_fit(
    problem: Problem, theta: np.ndarray, misfit: Misfit, gradient: float, agreement: float
) -> ParametricFit:
    """What there is to say about a minimum `theta` [P] of `problem`."""
    residual = problem.residuals(theta, "log")
    spare = max(1, len(residual) - problem.unknowns)
    return ParametricFit(
        problem.surface(theta),
        misfit,
        problem.tied,
        len(residual),
        1,
        float(problem.objective(misfit)(theta[None], np.zeros(1, int))[0][0] * misfit.unit**2),
        gradient,
        gradient < 1e-2,
        agreement,
        float(np.sqrt((residual**2).sum() / spare)),
        _flat_directions(problem, theta),
    )


def suspects(fit: ParametricFit, runs: Sequence[Run]) -> tuple[tuple[Run, float], ...]:
    """Runs far off the surface, worst first, with their relative excess; a slip in a table looks like this.

    Far is eight times the typical residual (1.48 times the median of absolute values) and at least 5%.
    """
    own = [run for run in runs if run.role == "isoflop"]
    excess = np.array([run.loss / float(fit.surface.loss(run.params, run.tokens)) - 1.0 for run in own])
    far = np.abs(excess) > max(_FAR_OFF, _FAR_TIMES * 1.48 * float(np.median(np.abs(excess))))
    return tuple((own[i], float(excess[i])) for i in np.argsort(-np.abs(excess)) if far[i])


def _flat_directions(problem: Problem, theta: np.ndarray) -> tuple[tuple[str, str, float], ...]:
    """Pairs of constants the runs determine only together, and their correlation, from the Gauss-Newton covariance."""
    jacobian = problem.jacobian(theta)
    if problem.tied:
        jacobian = np.column_stack([jacobian[:, :3], jacobian[:, 3] + jacobian[:, 4]])
    scale = np.linalg.norm(jacobian, axis=0)
    covariance = np.linalg.pinv((jacobian / scale).T @ (jacobian / scale), hermitian=True)
    sd = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(sd, sd)
    pairs = [(i, j) for i in range(problem.unknowns) for j in range(i) if abs(correlation[i, j]) > _FLAT]
    return tuple((CONSTANTS[j], CONSTANTS[i], float(correlation[i, j])) for i, j in sorted(pairs))


def _first(minima: Minima) -> np.ndarray:
    """Index of one representative of each distinct minimum."""
    return np.unique(np.round(minima.theta, 4), axis=0, return_index=True)[1]


def _distinct(minima: Minima, origin: np.ndarray, keep: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Representatives of the `keep` best distinct minima, and for each start which it belongs to (-1: none kept)."""
    _, first, inverse = np.unique(np.round(minima.theta, 4), axis=0, return_index=True, return_inverse=True)
    value = np.where(np.isfinite(minima.value[first]), minima.value[first], np.inf)
    chosen = np.arange(len(first)) if keep is None else np.argsort(value, kind="stable")[:keep]
    place = np.full(len(first) + 1, -1)
    place[chosen] = np.arange(len(chosen))
    return minima.theta[first[chosen]], place[np.where(origin >= 0, inverse.ravel()[origin], -1)]


def _bootstrap(
    problem: Problem, misfit: Misfit, seeds: np.ndarray, resampling: Resampling, rng: np.random.Generator
) -> np.ndarray:
    """[B, P] minima of resampled problems, each the best of the descents from `seeds` [K, P]."""
    weights = resampling.weights(len(problem.loss), rng)
    count = len(weights)
    theta = np.tile(seeds, (count, 1))
    repeated = np.repeat(np.arange(count), len(seeds))
    minima = minimise(problem.objective(misfit, weights, repeated), theta, tolerance=1e-4, max_steps=60)
    value = np.where(np.isfinite(minima.value), minima.value, np.inf).reshape(count, -1)
    return minima.theta.reshape(count, -1, problem.unknowns)[np.arange(count), value.argmin(1)]
