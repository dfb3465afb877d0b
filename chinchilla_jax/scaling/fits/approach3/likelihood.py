"""Which values of a constant, or of a prediction, do the runs not contradict?

For a quantity q the objective is minimised over everything else at each value of q; the interval holds the values where
it rises little. How little follows from the residuals: with psi the derivative of the Huber loss,
2 rise mean(psi') / mean(psi^2) is about F(1, n - P) distributed (Ronchetti's likelihood-ratio type test of
M-estimators). For squared residuals that is the profile likelihood of normal noise; for the paper's threshold of 1e-3
it assumes nothing of the noise's shape. No resampling is needed, and unlike a covariance it follows a curved valley.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import fdtri

from chinchilla_jax.scaling.fits.approach3.parametric import ParametricFit, SurfaceProblem
from chinchilla_jax.scaling.fits.minimise import minimise
from chinchilla_jax.scaling.fits.surface import FlopsPerToken, Surface
from chinchilla_jax.scaling.read.runs import Run

# Surface with fields [B] -> [B]; natural logs where the quantity is positive and wide-ranging.
Quantity = Callable[[Surface], np.ndarray]

_REACH = 8.0  # standard deviations traced to either side
_STEPS = 16
_PULL = 1e3  # how much stiffer than the objective the spring is that draws q aside


@dataclasses.dataclass(frozen=True)
class ProfileLikelihood:
    """`values` [K] of the quantity, `best` by the fit, and the `drop` [K] of the log-likelihood, or what stands for it;
    an end of the `interval` is infinite when the likelihood had not dropped enough where tracing ended."""

    best: float
    values: np.ndarray
    drop: np.ndarray
    interval: tuple[float, float]


def quantities(budget: float | None = None, flops_per: FlopsPerToken = 6.0) -> dict[str, Quantity]:
    """The constants, the exponent a of N*, and with a `budget` in FLOPs ln N*, ln D* and the loss there."""
    by_name: dict[str, Quantity] = {name: operator.attrgetter(name) for name in ("E", "alpha", "beta", "a")}
    by_name |= {"ln A": lambda s: np.log(s.A), "ln B": lambda s: np.log(s.B)}
    if budget is not None:
        by_name["ln N*"] = lambda s: np.log(s.optimum(budget, flops_per)[0])
        by_name["ln D*"] = lambda s: np.log(s.optimum(budget, flops_per)[1])
        by_name["loss"] = lambda s: s.optimum(budget, flops_per)[2]
    return by_name


def profile_likelihood(
    runs: Sequence[Run], fit: ParametricFit, quantity: Quantity, level: float = 0.95
) -> ProfileLikelihood:
    """The profile of `quantity` about `fit`, which must be that of the same runs, with the interval of `level`."""
    problem = SurfaceProblem(runs, fit.tied)
    theta = problem.locate(fit.surface)
    objective = problem.objective(fit.misfit)

    def value_of(at: np.ndarray) -> np.ndarray:
        return quantity(problem.surface(at))

    best, lowest = float(value_of(theta[None])[0]), objective(theta[None], np.zeros(1, int))[0][0]
    # The standard deviation of q by the delta method, with independent log residuals of the fit's spread.
    jacobian = _derivatives(lambda at: problem.residuals(at, "log"), theta, 1e-5)
    slope = _derivatives(value_of, theta[None], 1e-4)[0]
    variance = slope @ np.linalg.pinv(jacobian.T @ jacobian, hermitian=True) @ slope
    sd = float(np.sqrt(variance) * max(fit.scatter, 1e-9))
    offsets = np.linspace(-_REACH, _REACH, 2 * _STEPS + 1)
    targets = best + sd * offsets[offsets != 0]
    # Wherever the spring comes to rest, the gradient of H is along that of q: a point of the profile, whether or not q
    # reached its target. So the spring need not be stiff, and its second derivative may be left out.
    stiffness = _PULL * lowest / (problem.size * sd * sd)

    def pulled(at: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        energy, gradient, hessian = objective(at, rows)
        gap, slope = value_of(at) - targets[rows], _derivatives(value_of, at, 1e-4)
        energy = energy + 0.5 * stiffness * gap**2
        gradient = gradient + stiffness * gap[:, None] * slope
        return energy, gradient, hessian + stiffness * slope[:, :, None] * slope[:, None, :]

    ends = minimise(pulled, np.tile(theta, (len(targets), 1)), tolerance=1e-5, max_steps=200).theta
    rise = objective(ends, np.arange(len(ends)))[0] - lowest
    drop = np.maximum(rise * problem.unit(fit.misfit) ** 2 * _information(problem, theta, fit), 0.0)
    values, drop = np.append(value_of(ends), best), np.append(drop, 0.0)
    order = np.argsort(values, kind="stable")
    values, drop = values[order], drop[order]
    limit = 0.5 * fdtri(1, max(1, problem.size - problem.unknowns), level)
    return ProfileLikelihood(best, values, drop, _crossings(values, drop, best, limit))


def _derivatives(function: Callable[[np.ndarray], np.ndarray], theta: np.ndarray, step: float) -> np.ndarray:
    """[..., P]: central differences of a function of theta [..., P]."""
    units = np.eye(theta.shape[-1]) * step
    return np.stack([(function(theta + unit) - function(theta - unit)) / (2 * step) for unit in units], -1)


def _information(problem: SurfaceProblem, theta: np.ndarray, fit: ParametricFit) -> float:
    """mean(psi') / mean(psi^2) of the residuals, the latter corrected for the unknowns.

    psi' of the Huber loss is 1 within delta. Where delta is far below the scatter, the share within three quarters of
    the scatter is taken instead, scaled down; for a bell-shaped density a little low: it errs towards wide intervals.
    """
    signed = problem.residuals(theta, fit.misfit.residual)
    side, residual = np.where(signed > 0, fit.misfit.above, 1.0), np.abs(signed)
    spare = max(1, len(residual) - problem.unknowns)
    size = np.sqrt((residual**2).sum() / spare)
    delta = fit.misfit.delta
    width = max(delta, 0.75 * size)
    slope = (side * (residual < width)).mean() * min(1.0, delta / width)
    return float(slope / (((side * np.minimum(residual, delta)) ** 2).sum() / spare))


def _crossings(values: np.ndarray, drop: np.ndarray, best: float, limit: float) -> tuple[float, float]:
    """Where `drop` crosses `limit` on either side of `best`, linear in its square root, which is nearly straight."""
    ends = []
    for side in (-1.0, 1.0):
        beyond = (values - best) * side >= 0
        far, root = (values[beyond] - best) * side, np.sqrt(drop[beyond])
        order = np.argsort(far)
        root = np.maximum.accumulate(root[order])
        ends.append(float(best + side * np.interp(np.sqrt(limit), root, far[order], right=np.inf)))
    return ends[0], ends[1]
