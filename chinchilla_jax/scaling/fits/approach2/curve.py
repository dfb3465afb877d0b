"""Which size is best on an IsoFLOP profile? Two curves through the losses of one budget against x = ln N (or ln D); a
third, by the runs near the minimum, is in `near_minimum`.

`parabolas`: least squares, Hoffmann et al. 2022 (arXiv 2203.15556) section 3.2; misses the skew of the true profile.
`akima`: Akima's (1970) interpolant through the points, averaged by size, and its exact minimum, as in Porian et al.
2024 (arXiv 2406.19146): no shape is assumed, and no noise is averaged away.

Both work on M profiles of at most n runs at once, in many sets of losses or weights: arrays [B, M, n] with weight 0
where a profile has no such run or a resample does not hold it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from chinchilla_jax.scaling.fits.approach2 import profile_shape

if TYPE_CHECKING:  # importing it takes longer than most fits
    from scipy.interpolate import Akima1DInterpolator


@dataclasses.dataclass(frozen=True)
class ProfileCurve:
    """The curve of one profile, against x (parameters or tokens), through runs with x in [low, high]: with u =
    ln(x / best) lowest + curvature * u^2; with a `skew` lowest + curvature * S(u), S of `profile_shape`; with an
    `interpolant` that, in ln x, and `curvature` is half its second derivative at the minimum."""

    best: float
    lowest: float
    curvature: float
    low: float
    high: float
    skew: float | None = None
    interpolant: Akima1DInterpolator | None = dataclasses.field(default=None, compare=False, repr=False)

    def at(self, x: np.ndarray | float) -> np.ndarray:
        """Loss at x; of an interpolant NaN outside the sizes tried."""
        if self.interpolant is not None:
            return self.interpolant(np.log(np.asarray(x)))
        u = np.log(np.asarray(x) / self.best)
        return self.lowest + self.curvature * (u**2 if self.skew is None else profile_shape.shape(u, self.skew))


@dataclasses.dataclass(frozen=True)
class ProfileMinima:
    """Minima of B sets of M profiles.

    `inside`: the curve opens upward and its minimum is strictly between the sizes tried (all of them, whatever a
    resample holds); elsewhere the other values [B, M] stand for nothing. `fitted` [B, M, n] is the curve at the runs,
    NaN for interpolants.
    """

    log_best: np.ndarray
    lowest: np.ndarray
    curvature: np.ndarray
    inside: np.ndarray
    fitted: np.ndarray


def parabolas(x: np.ndarray, loss: np.ndarray, weight: np.ndarray, within: np.ndarray) -> ProfileMinima:
    """Least-squares parabolas through `loss` [B, M, n] at x [M, n]; `weight` [B, M, n] or [1, M, n] is 0 where there is
    no run; `within` [M, n] says which of x are sizes tried, the bounds of a minimum."""
    total = np.maximum(weight.sum(-1, keepdims=True), 1e-300)

    def mean(values: np.ndarray) -> np.ndarray:
        return (weight * values).sum(-1, keepdims=True) / total

    # x centred and scaled, and x^2 orthogonal to it: the normal equations in raw ln N lose half the digits.
    centre = mean(x)
    scale = np.sqrt(mean((x - centre) ** 2))
    z = (x - centre) / np.where(scale > 0, scale, 1.0)
    third = mean(z**3)
    square = z * z - third * z - 1.0
    level, first, norm = mean(loss), mean(z * loss), mean(square * square)
    with np.errstate(divide="ignore", invalid="ignore"):
        second = mean(square * loss) / norm
        # square carries -third z and -1 with it; undo that to get plain coefficients.
        vertex = -(first - second * third) / (2.0 * second)
        lowest = level - second - second * vertex**2
        log_best = centre + vertex * scale
        curvature = second / scale**2
        # Two or fewer distinct sizes leave only rounding error in `square`: no parabola.
        good = (norm > 1e-9) & (curvature > 0)
    fitted = level + first * z + second * square
    log_best, lowest, curvature = (v[..., 0] for v in (log_best, lowest, np.where(good, curvature, -1.0)))
    low, high = _bounds(x, within)
    with np.errstate(invalid="ignore"):
        inside = good[..., 0] & (log_best > low) & (log_best < high)
    return ProfileMinima(log_best, lowest, curvature, inside, fitted)


def interpolant(x: np.ndarray, loss: np.ndarray, weight: np.ndarray) -> Akima1DInterpolator:
    """Akima's curve through losses [k] or [k, S] of runs at x [k], averaged by size with weights [k]."""
    from scipy.interpolate import Akima1DInterpolator

    knots, size = np.unique(x, return_inverse=True)
    share = np.zeros((len(knots), len(x)))
    share[size, np.arange(len(x))] = weight
    return Akima1DInterpolator(knots, share / share.sum(1, keepdims=True) @ loss)


def akima(x: np.ndarray, loss: np.ndarray, weight: np.ndarray, within: np.ndarray) -> ProfileMinima:
    """Akima's interpolant through losses averaged by size, and its minimum; arguments as of `parabolas`."""
    shape = np.broadcast_shapes(loss.shape, weight.shape)
    loss, weight = np.broadcast_to(loss, shape), np.broadcast_to(weight, shape)
    lowest_points = np.full((3, *shape[:2]), np.nan)
    for m in range(shape[1]):
        # Sets that hold the same runs share their knots.
        patterns, which = np.unique(weight[:, m], axis=0, return_inverse=True)
        for index, pattern in enumerate(patterns):
            held, rows = np.flatnonzero(pattern > 0), which.ravel() == index
            if len(np.unique(x[m, held])) >= 4:
                curve = interpolant(x[m, held], loss[rows, m][:, held].T, pattern[held])
                lowest_points[:, rows, m] = lowest_point(curve)
    log_best, lowest, curvature = lowest_points
    low, high = _bounds(x, within)
    inside = (log_best > low + 1e-12) & (log_best < high - 1e-12) & (curvature > 0)
    return ProfileMinima(log_best, lowest, curvature, inside, np.full(shape, np.nan))


def lowest_point(curve: Akima1DInterpolator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, value and half the second derivative [...] at the minimum of a piecewise cubic with values [K, ...].

    The candidates are the ends of every piece and the root of its derivative where it turns upward. At an end of the
    whole curve the second derivative is given as negative: that minimum is no minimum.
    """
    c = curve.c.reshape(4, len(curve.x) - 1, -1)  # highest power first, in x - left end
    width = np.diff(curve.x)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(c[1] ** 2 - 3.0 * c[0] * c[2])
        turn = np.where(c[1] >= 0, -c[2] / (c[1] + root), (root - c[1]) / (3.0 * c[0]))
        turn = np.where((turn > 0) & (turn < width), turn, 0.0)
    turn = np.concatenate([turn, width[-1:] * np.ones_like(turn[:1])])
    pieces = np.append(np.arange(len(width)), len(width) - 1)
    value = ((c[0, pieces] * turn + c[1, pieces]) * turn + c[2, pieces]) * turn + c[3, pieces]
    ends = np.concatenate([c[3], value[-1:]])
    inner = np.append(curve.x[:-1], curve.x[-2])[:, None] + turn
    values, places = np.concatenate([value, ends]), np.concatenate([inner, curve.x[:, None] * np.ones_like(ends)])
    bends = np.concatenate([3.0 * c[0, pieces] * turn + c[1, pieces], np.concatenate([c[1], c[1, -1:]])])
    best = values.argmin(0)[None]
    x, y, bend = (np.take_along_axis(a, best, 0)[0] for a in (places, values, bends))
    bend = np.where((x <= curve.x[0]) | (x >= curve.x[-1]), -1.0, np.maximum(bend, 1e-12))
    trailing = curve.c.shape[2:]
    return x.reshape(trailing), y.reshape(trailing), bend.reshape(trailing)


def _bounds(x: np.ndarray, within: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.where(within, x, np.inf).min(-1), np.where(within, x, -np.inf).max(-1)
