"""What is a quantity of a run, by that of finished runs of other sizes, and how sure is that?

A quadratic surface over ln N and ln D whose slopes and bends are small unless many runs say otherwise: a Bayesian
regression, normal about 0 in the coefficients, inverse gamma in the noise. Few or distant runs make the answer wide; a
run that lies far off the others, because it went wrong, hardly counts.
"""

from __future__ import annotations

import math

import numpy as np

FREEDOM = 3.0  # weight, in runs, of the noise that is expected before any run has been seen
_LEAST_SLOPE, _BEND = 0.002, 0.25  # a slope expected at least, and how much of the slopes the bends may be
_OUTLIER, _ROUNDS = 4.0, 4  # runs that many usual deviations off count less; rounds in which they are told
_NORMAL = 0.6745  # median of the size of a standard normal


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
    prior = np.diag([0.0, penalty, penalty, bend, bend, bend])
    weights = np.ones(len(values))
    for _ in range(_ROUNDS):
        weighted = weights[:, None] * basis
        inverse = np.linalg.inv(basis.T @ weighted + prior)
        left = values - basis @ (inverse @ (weighted.T @ values))
        usual = max(float(np.median(np.abs(left))) / _NORMAL, noise)
        weights, used = np.minimum(1.0, _OUTLIER * usual / np.maximum(np.abs(left), 1e-300)) ** 4, weights
    weighted = used[:, None] * basis
    taken = float(np.einsum("rk,kl,rl->", basis, inverse, weighted))
    freedom = max(float(used.sum()) - taken, 0.0) + FREEDOM
    variance = (float(used @ left**2) + FREEDOM * noise**2) / freedom
    mean = float(inverse[0] @ (weighted.T @ values))
    return mean, math.sqrt(variance * (1.0 + float(inverse[0, 0]))), freedom
