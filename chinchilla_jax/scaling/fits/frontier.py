"""How does one optimal quantity (N*, D* or the minimum loss) move with compute?

Two forms: the pure power law y = k C^x, and for the loss also L = E + k C^-g with an irreducible part. Both are fitted
to many bootstrap replicates at once, so every value here may carry a leading replicate dimension. `OptimumLaw` is a
power law that knows how far from it the best size of a larger budget may lie.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.special import stdtrit

from chinchilla_jax.scaling.fits.minimise import minimise_on_grid

_EXPONENT_RANGE = (1e-3, 3.0)
# The scatter of optima about their line, in ln N, that is supposed before the residuals are seen (tables have 0.02 to
# 0.2: `tests.benchmarks.prediction`); how much it grows for every factor e of compute away from the largest budget; and
# how many residuals this assumption counts for.
_SCATTER, _DRIFT, _FREEDOM = 0.08, 0.03, 3.0


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """y = coefficient * C^exponent, kept as its value at a central compute because 1e20 ** x loses digits.

    `log_centre` ln of the central C; `log_value` [] or [B], ln y there; `exponent` [] or [B].
    """

    log_centre: float
    log_value: np.ndarray
    exponent: np.ndarray

    @property
    def coefficient(self) -> np.ndarray:
        """k in y = k C^exponent."""
        return np.exp(self.log_value - self.exponent * self.log_centre)

    def at(self, flops: float | np.ndarray) -> np.ndarray:
        """y at C = flops; replicates broadcast against it."""
        return np.exp(self.log_value + self.exponent * (np.log(flops) - self.log_centre))


@dataclasses.dataclass(frozen=True)
class OptimumLaw(PowerLaw):
    """A power law whose centre is the largest budget fitted.

    `covariance` [2, 2] of `log_value` and `exponent`, and `scale` of the spread of optima about the line over what was
    supposed, both known from `freedom` degrees of freedom. Minima of flat profiles scatter by more than the noise of
    runs explains, and so will the optimum of the next budget.
    """

    covariance: np.ndarray = dataclasses.field(compare=False)
    scale: float
    freedom: float

    def spread(self, flops: float) -> float:
        """Standard deviation of ln of the optimum at C = flops about the line: of the optimum, not of the line."""
        return self.scale * float(np.hypot(_SCATTER, _DRIFT * max(0.0, np.log(flops) - self.log_centre)))

    def interval(self, flops: float, level: float) -> tuple[float, float]:
        """Central interval of the optimum at C = flops."""
        basis = np.array([1.0, np.log(flops) - self.log_centre])
        sd = np.sqrt(basis @ self.covariance @ basis + self.spread(flops) ** 2)
        half = float(stdtrit(self.freedom, 0.5 + 0.5 * level)) * sd
        value = float(self.at(flops))
        return value * float(np.exp(-half)), value * float(np.exp(half))

    def draws(self, normal: np.ndarray, shared: np.ndarray) -> PowerLaw:
        """Replicates of the line from standard normal numbers [B, 2]; `shared` [B] divides them into Student's t."""
        moved = normal @ np.linalg.cholesky(self.covariance).T / shared[:, None]
        return PowerLaw(self.log_centre, self.log_value + moved[:, 0], self.exponent + moved[:, 1])


@dataclasses.dataclass(frozen=True)
class OffsetLaw:
    """L = irreducible + value * (C / exp(log_centre)) ** -exponent; fields [] or [B]."""

    log_centre: float
    irreducible: np.ndarray
    value: np.ndarray
    exponent: np.ndarray

    def at(self, flops: float | np.ndarray) -> np.ndarray:
        """L at C = flops; replicates broadcast against it."""
        return self.irreducible + self.value * np.exp(-self.exponent * (np.log(flops) - self.log_centre))


def fit_power(flops: np.ndarray, values: np.ndarray, weights: np.ndarray | None = None) -> PowerLaw:
    """Least squares of ln values [..., M] on ln flops [M].

    Args:
      weights: [..., M]; a value of weight 0 is left out and may be NaN. Unless given all count the same.
    """
    log_c = np.log(flops)
    centre = float(log_c.mean())
    x, y = log_c - centre, np.log(values)
    weights = np.ones_like(log_c) if weights is None else weights
    share = weights / weights.sum(-1, keepdims=True)
    y = np.where(share > 0, y, 0.0)
    x = x - (share * x).sum(-1, keepdims=True)
    exponent = (share * x * y).sum(-1) / (share * x * x).sum(-1)
    mean_x = log_c - centre - x
    return PowerLaw(centre, (share * y).sum(-1) - exponent * mean_x[..., 0], exponent)


def fit_optimum(flops: np.ndarray, log_best: np.ndarray, log_best_sd: np.ndarray) -> OptimumLaw:
    """Weighted least squares of ln of the optima [M], at least two, with standard deviations, on ln of the budgets."""
    x = np.log(np.asarray(flops, np.float64))
    centre = float(x.max())
    basis = np.stack([np.ones_like(x), x - centre], 1)
    weight = 1.0 / (log_best_sd**2 + _SCATTER**2 + (_DRIFT * (centre - x)) ** 2)
    covariance = np.linalg.inv(basis.T @ (weight[:, None] * basis))
    value, exponent = covariance @ (basis.T @ (weight * log_best))
    left = log_best - basis @ np.array([value, exponent])
    freedom = len(x) - 2 + _FREEDOM
    variance = (float((weight * left**2).sum()) + _FREEDOM) / freedom
    return OptimumLaw(centre, value, exponent, covariance * variance, float(np.sqrt(variance)), freedom)


def fit_offset(flops: np.ndarray, losses: np.ndarray, weights: np.ndarray | None = None) -> OffsetLaw:
    """Least relative squares of L = E + k C^-g with E >= 0 and k > 0; needs three budgets.

    For a given g the law is linear in E and k, so only g is searched. This cannot land in a local minimum or fail to
    converge, which a three-parameter descent on four points can. Where the data ask for E < 0 the bound makes it the
    pure power law.

    Args:
      flops: [M]; losses: [..., M].
      weights: [..., M] on the squared relative errors; a loss of weight 0 is left out and may be NaN.
    """
    log_c = np.log(flops)
    centre = float(log_c.mean())
    x = log_c - centre
    losses = np.asarray(losses, np.float64)
    weights = np.ones_like(losses) if weights is None else weights
    losses = np.where(weights > 0, losses, 1.0)
    grid = np.broadcast_to(np.geomspace(*_EXPONENT_RANGE, 161), (*losses.shape[:-1], 161))
    exponent = minimise_on_grid(lambda g: _linear_part(x, losses, weights, g)[0], grid, rounds=6, points=41)
    _, offset, scale = (part[..., 0] for part in _linear_part(x, losses, weights, exponent[..., None]))
    return OffsetLaw(centre, offset, scale, exponent)


def _linear_part(
    x: np.ndarray, losses: np.ndarray, weights: np.ndarray, exponents: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best E and k for each exponent [..., G], and the squared relative error left."""
    t = np.exp(-exponents[..., None] * x)
    y = losses[..., None, :]
    w = weights[..., None, :] / (y * y)
    total, mean_t, mean_y = w.sum(-1), (w * t).sum(-1), (w * y).sum(-1)
    tc, yc = t - (mean_t / total)[..., None], y - (mean_y / total)[..., None]
    scale = (w * tc * yc).sum(-1) / np.maximum((w * tc * tc).sum(-1), 1e-300)
    offset = (mean_y - scale * mean_t) / total
    bound = offset < 0
    scale = np.where(bound, (w * t * y).sum(-1) / (w * t * t).sum(-1), scale)
    offset = np.where(bound, 0.0, offset)
    error = (w * (offset[..., None] + scale[..., None] * t - y) ** 2).sum(-1)
    return np.where(scale > 0, error, np.inf), offset, scale
