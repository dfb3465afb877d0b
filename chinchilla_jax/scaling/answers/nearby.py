"""What is a quantity of a run, by that of finished runs of other sizes, and how sure is that?

A quadratic surface over ln N and ln D whose slopes and bends are small unless many runs say otherwise: a Bayesian
regression, normal about 0 in the coefficients, inverse gamma in the noise. Few or distant runs make the answer wide.
"""

from __future__ import annotations

import math

import numpy as np

FREEDOM = 3.0  # weight, in runs, of the noise that is expected before any run has been seen
_LEAST_SLOPE, _BEND = 0.002, 0.25  # a slope expected at least, and how much of the slopes the bends may be


def at_size(away: np.ndarray, values: np.ndarray, noise: float, slope: float) -> tuple[float, float, float]:
    """(mean, scale, degrees of freedom) of the Student t of a run's value.

    Args:
      away: [R, 2], how far the other runs are from it in ln N and ln D.
      values: [R], theirs.
      noise: the standard deviation of a run, expected beforehand.
      slope: how far the value is expected to change with a factor e of N or D.
    """
    n, d = away.T
    basis = np.stack([np.ones_like(n), n, d, n * n, d * d, n * d], 1)
    penalty = (noise / math.hypot(slope, _LEAST_SLOPE)) ** 2
    bend = penalty / _BEND**2
    precision = basis.T @ basis + np.diag([0.0, penalty, penalty, bend, bend, bend])
    inverse = np.linalg.inv(precision)
    coefficients = inverse @ (basis.T @ values)
    left = values - basis @ coefficients
    taken = float(np.einsum("rk,kl,rl->", basis, inverse, basis))
    freedom = max(len(values) - taken, 0.0) + FREEDOM
    variance = (float(left @ left) + FREEDOM * noise**2) / freedom
    return float(coefficients[0]), math.sqrt(variance * (1.0 + float(inverse[0, 0]))), freedom
