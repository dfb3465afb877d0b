"""Approach 3 as the paper ran it: what do averaging and a default tolerance do to the constants?

The objective was averaged over the runs instead of summed, and minimised by L-BFGS-B, which stops once the decrease
of a step falls below 2.2e-9 times max(|objective|, 1). On the points of Figure 4 the sum is 1e-3 at the minimum and
the mean 4e-6, so that averaged nearly every start stops on the way, and the best of 4500 is whichever came furthest
(Besiroglu et al. 2024, arXiv 2404.10102). To learn something about runs use `parametric`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from chinchilla_jax.scaling.fits.approach3.parametric import ParametricFit, SurfaceProblem, describe_fit, paper_starts
from chinchilla_jax.scaling.fits.minimise import AGREEMENT, HUBER
from chinchilla_jax.scaling.fits.resample import PAPER, Resampling
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.read.runs import Run

DIFFERENCES = (
    "the objective is averaged over the runs and minimised by L-BFGS-B at its default tolerance, which stops early",
    "replicates are 100 subsets of 80% that start from the fit, and stop as early: the interval is far too narrow",
)


def fit_as_published(
    runs: Sequence[Run],
    *,
    average: bool = True,
    starts: np.ndarray | None = None,
    resampling: Resampling | None = PAPER,
    seed: int = 0,
) -> ParametricFit:
    """Approach 3 on the runs with role `isoflop` by scipy's L-BFGS-B at its default tolerances.

    With `average` the mean over the runs as in the paper; else their sum, and most starts then arrive. `starts` are
    [S, 5] in a, b, e, alpha, beta; by default `paper_starts()`, which takes half a minute. Bootstrap replicates start
    from the fit itself, so they hardly move when the objective is averaged. Refused as `fit_parametric`, `no_optimum`
    excepted: what was reached is returned.
    """
    import scipy.optimize  # here, because importing it takes longer than the fits of the other preset

    problem = SurfaceProblem(runs)

    def descend(start: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
        """Objective as a sum, and a, b, e, alpha, beta where L-BFGS-B stops."""
        scale = 1.0 / weights.sum() if average else 1.0
        result = scipy.optimize.minimize(paper_objective(problem, weights, scale), start, jac=True, method="L-BFGS-B")
        return result.fun / scale, result.x

    starts = paper_starts() if starts is None else np.asarray(starts, np.float64)
    every = np.ones(len(problem.loss))
    ends = [descend(start, every) for start in starts]
    values = np.array([value for value, _ in ends])
    best = int(values.argmin())
    theta = problem.standardise(ends[best][1][None])[0]
    agreement = float((values <= values[best] * (1.0 + AGREEMENT)).mean())
    fit = dataclasses.replace(describe_fit(problem, theta, HUBER, agreement, len(starts)), preset="paper")
    if resampling is None:
        return fit
    weights = resampling.weights(len(problem.loss), np.random.default_rng(seed))
    a, b, e, alpha, beta = np.array([descend(ends[best][1], row)[1] for row in weights]).T
    return dataclasses.replace(fit, boot=Surface(np.exp(e), np.exp(a), np.exp(b), alpha, beta))


def paper_objective(problem: SurfaceProblem, weights: np.ndarray, scale: float) -> Callable[[np.ndarray], tuple]:
    """`scale` times the sum over runs, of `weights` [n], and its gradient, in a, b, e, alpha, beta as in the paper."""
    log_n, log_d, log_loss = np.log(problem.params), np.log(problem.tokens), np.log(problem.loss)

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        terms = np.stack([theta[0] - theta[3] * log_n, theta[1] - theta[4] * log_d, np.full_like(log_n, theta[2])])
        top = terms.max(0)
        shares = np.exp(terms - top)
        total = shares.sum(0)
        residual = np.log(total) + top - log_loss
        force = np.clip(residual, -HUBER.delta, HUBER.delta)
        value = (weights * force * (residual - 0.5 * force)).sum()
        n, d, e = weights * force * shares / total
        return value * scale, np.array([n.sum(), d.sum(), e.sum(), -(n @ log_n), -(d @ log_d)]) * scale

    return objective
