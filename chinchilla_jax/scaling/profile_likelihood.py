"""Which values of a constant, or of a prediction, do the runs not contradict?

The Huber objective H is read as a likelihood with a fitted scale s: density exp(-Huber_delta(r) / s) / Z(delta, s), a
normal distribution for a large delta and a Laplace distribution for a small one (Besiroglu et al. 2024, arXiv
2404.10102, fit their scale the same way). For a quantity q the likelihood is maximised over everything else at each
value of q, and the interval holds the values whose log-likelihood is within chi^2_1 / 2 of the best (Wilks 1938). It
needs no resampling, and unlike a covariance it follows a curved valley; it trusts the shape of the noise instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats

from chinchilla_jax.scaling.minimise import minimise
from chinchilla_jax.scaling.objective import Problem
from chinchilla_jax.scaling.parametric import ParametricFit, fit_problem
from chinchilla_jax.scaling.runs import Run
from chinchilla_jax.scaling.surface import FlopsPerToken, Surface

# Surface with fields [B] -> [B]; natural logs where the quantity is positive and wide-ranging.
Quantity = Callable[[Surface], np.ndarray]

_REACH = 8.0  # standard deviations traced to either side
_STEPS = 16
_PULL = 1e3  # how much stiffer than the objective the spring is that draws q aside


@dataclasses.dataclass(frozen=True)
class ProfileLikelihood:
    """`values` [K] of the quantity and the `drop` [K] of the log-likelihood below its maximum at each.

    `interval` is that of `level`; an end is infinite when the likelihood had not dropped enough where tracing ended.
    """

    name: str
    best: float
    values: np.ndarray
    drop: np.ndarray
    level: float
    interval: tuple[float, float]


def quantities(budget: float | None = None, flops_per: FlopsPerToken = 6.0) -> dict[str, Quantity]:
    """The constants, the exponent a of N*, and with a `budget` in FLOPs ln N*, ln D* and the loss there."""
    found: dict[str, Quantity] = {
        "E": lambda s: s.E,
        "ln A": lambda s: np.log(s.A),
        "ln B": lambda s: np.log(s.B),
        "alpha": lambda s: s.alpha,
        "beta": lambda s: s.beta,
        "a": lambda s: s.a,
    }
    if budget is not None:
        found["ln N*"] = lambda s: np.log(s.optimum(budget, flops_per)[0])
        found["ln D*"] = lambda s: np.log(s.optimum(budget, flops_per)[1])
        found["loss"] = lambda s: s.optimum(budget, flops_per)[2]
    return found


def profile_likelihood(
    runs: Sequence[Run], fit: ParametricFit, name: str, quantity: Quantity, *, level: float = 0.95
) -> ProfileLikelihood:
    """The profile of `quantity` about `fit`, which must be that of the same runs.

    Args:
      name: for the reader, e.g. a key of `quantities()`.
      level: of the interval.
    """
    problem = fit_problem(runs, fit.tied)
    theta = problem.locate(fit.surface)
    best = float(quantity(problem.surface(theta[None]))[0])
    sd = _standard_deviation(problem, theta, quantity, fit.scatter)
    offsets = np.linspace(-_REACH, _REACH, 2 * _STEPS + 1)
    targets = best + sd * offsets[offsets != 0]
    objective = problem.objective(fit.misfit)
    value = lambda t: objective(t, np.zeros(len(t), int))[0]  # noqa: E731
    # Wherever the spring comes to rest, the gradient of H is along that of q: a point of the profile, whether or not q
    # reached its target. So the spring need not be stiff, and its second derivative may be left out.
    stiffness = _PULL * value(theta[None])[0] / (len(problem.loss) * sd * sd)

    def pulled(at: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        energy, gradient, hessian = objective(at, rows)
        gap = quantity(problem.surface(at)) - targets[rows]
        slope = _slopes(problem, at, quantity)
        energy = energy + 0.5 * stiffness * gap**2
        gradient = gradient + stiffness * gap[:, None] * slope
        return energy, gradient, hessian + stiffness * slope[:, :, None] * slope[:, None, :]

    ends = minimise(pulled, np.tile(theta, (len(targets), 1)), tolerance=1e-5, max_steps=200).theta
    unit = fit.misfit.unit**2
    count, delta = len(problem.loss), fit.misfit.delta
    at_best = _log_likelihood(fit.objective, count, delta)
    drop = np.array([at_best - _log_likelihood(v * unit, count, delta) for v in value(ends)])
    order = np.argsort(found := quantity(problem.surface(ends)))
    values = np.concatenate([[best], found[order]])
    drop = np.concatenate([[0.0], np.maximum(drop[order], 0.0)])
    keep = np.argsort(values, kind="stable")
    values, drop = values[keep], drop[keep]
    limit = 0.5 * scipy.stats.chi2.ppf(level, 1)
    return ProfileLikelihood(name, best, values, drop, level, _crossings(values, drop, best, limit))


def _slopes(problem: Problem, theta: np.ndarray, quantity: Quantity, step: float = 1e-4) -> np.ndarray:
    """[B, P]: central differences of the quantity."""
    columns = []
    for unit in np.eye(problem.unknowns) * step:
        up, down = (quantity(problem.surface(theta + sign * unit)) for sign in (1, -1))
        columns.append((up - down) / (2 * step))
    return np.stack(columns, -1)


def _standard_deviation(problem: Problem, theta: np.ndarray, quantity: Quantity, scatter: float) -> float:
    """Of the quantity by the delta method, with independent log residuals of spread `scatter`."""
    step = 1e-5
    columns = [
        (problem.residuals(theta + unit, "log") - problem.residuals(theta - unit, "log")) / (2 * step)
        for unit in np.eye(problem.unknowns) * step
    ]
    jacobian = np.stack(columns, -1)
    slope = _slopes(problem, theta[None], quantity)[0]
    variance = slope @ np.linalg.pinv(jacobian.T @ jacobian, hermitian=True) @ slope
    return float(np.sqrt(variance) * max(scatter, 1e-9))


def _log_likelihood(objective: float, count: int, delta: float) -> float:
    """Of `count` residuals whose Huber losses sum to `objective`, at the best scale s."""
    mean = objective / count
    if np.isinf(delta):
        return -0.5 * count * (np.log(2 * np.pi * 2 * mean) + 1.0)

    def negative(log_s: float) -> float:
        s = np.exp(log_s)
        z = np.sqrt(2 * np.pi * s) * scipy.special.erf(delta / np.sqrt(2 * s))
        z += 2 * s / delta * np.exp(-(delta**2) / (2 * s))
        return mean / s + np.log(z)

    guess = np.log(mean)
    return -count * float(scipy.optimize.minimize_scalar(negative, bounds=(guess - 3, guess + 3), method="bounded").fun)


def _crossings(values: np.ndarray, drop: np.ndarray, best: float, limit: float) -> tuple[float, float]:
    """Where `drop` crosses `limit` on either side of `best`, linear in its square root, which is nearly straight."""
    ends = []
    for side in (-1.0, 1.0):
        own = (values - best) * side >= 0
        far, root = (values[own] - best) * side, np.sqrt(drop[own])
        order = np.argsort(far)
        far, root = far[order], np.maximum.accumulate(root[order])
        beyond = np.flatnonzero(root > np.sqrt(limit))
        if not len(beyond):
            ends.append(side * np.inf)
            continue
        i = beyond[0]
        share = (np.sqrt(limit) - root[i - 1]) / (root[i] - root[i - 1])
        ends.append(best + side * (far[i - 1] + share * (far[i] - far[i - 1])))
    return float(ends[0]), float(ends[1])
