"""Approach 3: which surface L(N, D) = E + A / N^alpha + B / D^beta lies through all runs, and where is its optimum?

Hoffmann et al. 2022 (arXiv 2203.15556) section 3.3 and appendix D.2: minimise the sum over runs of
Huber_delta(LSE(a - alpha ln N, b - beta ln D, e) - ln L) from 4500 starting points. The fit here keeps that objective
and those starts and changes how the minimum is reached (see `multistart`): the published constants stop short of it
(Besiroglu et al., arXiv 2404.10102; `as_published` shows how). Other objectives are those of `multistart.MISFITS`. A
and B are flat directions: compare predictions and exponents, not A and B.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from chinchilla_jax.scaling.fits.approach3.objective import CONSTANTS, SurfaceProblem
from chinchilla_jax.scaling.fits.multistart import HUBER, Fit, Misfit, bootstrap, descend
from chinchilla_jax.scaling.fits.resample import FULL, Resampling
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.read.runs import FitRefused, Run

DIFFERENCES = (
    "the objective is the sum over runs, not the mean, and is brought to zero gradient: averaged, it is so small that "
    "an optimiser's default tolerance stops it early (Besiroglu et al. 2024)",
    "intervals are 95% over resamples of all runs with replacement; the paper's 100 subsets of 80% come out half "
    "as wide as the sampling error",
    "constants are kept unrounded: alpha and beta to two digits move predicted losses by more than the fit's error",
)
_FAR_OFF, _FAR_TIMES = 0.05, 8.0
_FLAT = 0.95  # two constants with a larger correlation are one direction


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParametricFit(Fit):
    """Approach 3 on `n_runs` runs.

    `scatter` is of the log residuals whatever the misfit. `flat` names the constants that cannot be told apart, with
    their correlation. `boot` holds the bootstrap replicates.
    """

    surface: Surface
    tied: bool
    n_runs: int
    flat: tuple[tuple[str, str, float], ...]
    preset: str = "corrected"
    boot: Surface | None = None


def paper_starts() -> np.ndarray:
    """The 4500 starts of appendix D.2, [4500, 5]: columns a, b, e, alpha, beta."""
    ab = np.arange(0.0, 30.0, 5.0)
    e = np.arange(-1.0, 1.5, 0.5)
    exponents = np.arange(0.0, 2.5, 0.5)
    return np.array(list(itertools.product(ab, ab, e, exponents, exponents)))


def few_starts() -> np.ndarray:
    """One in 23 of them, [196, 5]: 23 divides no length of the grid, so that every value along every axis occurs."""
    return paper_starts()[::23]


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

    Args:
      tied: one exponent for N and D (Muennighoff et al. 2023; Gadre et al. 2024).
      starts: [S, 5] in a, b, e, alpha, beta; `paper_starts()` unless given. With `tied` those with alpha = beta.
      resampling: how runs are resampled; each replicate is refitted from the best minima of the full fit.

    Raises:
      FitRefused: as `SurfaceProblem`; `no_optimum` (the best surface does not fall with both N and D).
    """
    problem = SurfaceProblem(runs, tied)
    starts = paper_starts() if starts is None else np.asarray(starts, np.float64)
    starts = starts[starts[:, 3] == starts[:, 4]] if tied else starts
    wide = misfit.narrowing("log") or [Misfit("", "log", 1e-1)]
    minima, agreement = descend(problem, problem.standardise(starts), [*wide, misfit])
    if not problem.usable(minima.theta[:1])[0]:
        surface = problem.surface(minima.theta[0])
        why = "loss must fall with both N and D: widen the range of sizes and tokens"
        exponents = f"alpha = {surface.alpha:.3g}, beta = {surface.beta:.3g}"
        raise FitRefused("no_optimum", f"approach 3: the best surface has {exponents}; {why}")
    fit = describe_fit(problem, minima.theta[0], misfit, agreement, len(starts))
    if resampling is None:
        return fit
    theta, kept = bootstrap(problem, misfit, minima, resampling, np.random.default_rng(seed))
    return dataclasses.replace(fit, boot=problem.surface(theta) if len(theta) else None, boot_kept=kept)


def describe_fit(
    problem: SurfaceProblem, theta: np.ndarray, misfit: Misfit, agreement: float, n_starts: int
) -> ParametricFit:
    """What there is to say about a minimum `theta` [P] of `problem`."""
    value, gradient, _ = problem.objective(misfit)(theta[None], np.zeros(1, int))
    residual = problem.residuals(theta, "log")
    return ParametricFit(
        surface=problem.surface(theta),
        misfit=misfit,
        tied=problem.tied,
        n_runs=problem.size,
        n_starts=n_starts,
        objective=float(value[0] * problem.unit(misfit) ** 2),
        gradient=float(np.abs(gradient).max()),
        agreement=agreement,
        scatter=float(np.sqrt((residual**2).sum() / max(1, problem.size - problem.unknowns))),
        flat=_correlated(problem, theta),
    )


def suspects(fit: ParametricFit, runs: Sequence[Run]) -> tuple[tuple[Run, float], ...]:
    """Runs far off the surface, worst first, with their relative excess; a slip in a table looks like this.

    Far is eight times the typical residual (1.48 times the median of absolute values) and at least 5%.
    """
    fitted = [run for run in runs if run.role == "isoflop"]
    excess = np.array([run.loss / float(fit.surface.loss(run.params, run.tokens)) - 1.0 for run in fitted])
    far = np.abs(excess) > max(_FAR_OFF, _FAR_TIMES * 1.48 * float(np.median(np.abs(excess))))
    return tuple((fitted[i], float(excess[i])) for i in np.argsort(-np.abs(excess)) if far[i])


def _correlated(problem: SurfaceProblem, theta: np.ndarray) -> tuple[tuple[str, str, float], ...]:
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
