"""How does the best size grow with compute, and between which sizes does the best one of a larger budget lie?

A straight line of ln N* (or ln D*) in ln C, with the prediction interval that its residuals give. Minima of flat
profiles scatter by more than the noise of runs explains, and so will the optimum of the next budget.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.special import stdtrit

from chinchilla_jax.scaling.fits.frontier import PowerLaw

# The scatter of optima about their line, in ln N, that is supposed before the residuals are seen (tables have 0.02 to
# 0.2: `tests.benchmarks.prediction`); how much it grows for every factor e of compute away from the largest budget; and
# how many residuals this assumption counts for.
_SCATTER, _DRIFT, _FREEDOM = 0.08, 0.03, 3.0


@dataclasses.dataclass(frozen=True)
class OptimumLaw(PowerLaw):
    """A power law whose centre is the largest budget fitted.

    `covariance` [2, 2] of `log_value` and `exponent`, and `scale` of the spread of optima about the line over what was
    supposed, both known from `freedom` degrees of freedom.
    """

    covariance: np.ndarray = dataclasses.field(default=None, compare=False)
    scale: float = 1.0
    freedom: float = 1.0

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
