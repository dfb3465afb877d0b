"""What do the training curves say: the loss of a run at a given compute, and the lower envelope of the runs' ends?

Training losses are noisy and may be logged every step or every thousand; approach 1 reads them smoothed (`smooth`).

Every run's loss at the end of its schedule is the envelope at its compute plus what its size costs there:

    L = f(C) + k(C) S(ln N - ln N*(C))        N*(C) = exp(p + a x),  x = ln C - mean ln C
    f = f0 + f1 (1 - e^(-g x)) / g            a constant and a power of C, written so that g -> 0 is no special case
    k = k0 e^(h x)                            the curvature

with S of `profile_shape`, a parabola with a skew. A run is one observation, at whatever compute it ended; no two runs
need share a budget. Three of the eight unknowns (g, h and the skew) are held loosely where published laws have them,
with standard deviation 0.1 or 0.05 (`_PRIOR`): a few runs say little about them, many runs much.
L = E + A/N^alpha + B/D^beta is the special case g = -h = alpha beta / (alpha + beta).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from chinchilla_jax.scaling.fits.approach2 import profile_shape
from chinchilla_jax.scaling.fits.frontier import OffsetLaw, PowerLaw
from chinchilla_jax.scaling.fits.minimise import minimise
from chinchilla_jax.scaling.fits.resample import LEAST_NOISE, Resampling, Residuals, Scheme, sized
from chinchilla_jax.scaling.read.runs import Run

_MOST_POINTS = 500
_SAME_END = 0.02  # in ln C
FEWEST = 10  # run ends
_F0, _F1, _G, _K0, _H, _P, _A, _SKEW = range(8)
_PRIOR = np.zeros(8)
_PRIOR[[_G, _H]] = 0.15, -0.15
_PRIOR_SPREAD = np.full(8, np.inf)
_PRIOR_SPREAD[[_G, _H, _SKEW]] = 0.1, 0.1, profile_shape.SKEW_SPREAD
_PRODUCT = np.array([profile_shape.PRODUCT])
# About the steps over which each unknown matters alike.
_STEP = np.array([0.01, 0.01, 0.1, 0.01, 0.1, 0.3, 0.1, 0.05])
_EXPONENTS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_PASSES = 4
_OUTLIER = 3.0  # Huber's limit, in robust standard deviations


def gaussian(loss: np.ndarray, window: int = 10) -> np.ndarray:
    """Losses [K] under a Gaussian of `window` logged points in all, standard deviation a quarter of that.

    The paper's window is 10 steps of many thousands; of a coarse log it is never more than a fiftieth of the points.
    """
    half = min(window, len(loss) // 50) // 2
    if half < 1:
        return loss
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / (0.5 * half)) ** 2)
    # Near the ends the window is cut, and divided by what is left of it.
    return np.convolve(loss, kernel, "same") / np.convolve(np.ones_like(loss), kernel, "same")


def local_linear(tokens: np.ndarray, loss: np.ndarray, spread: float = 0.05) -> np.ndarray:
    """Losses [K] from straight lines in ln tokens, fitted about each point with a Gaussian of `spread` in ln tokens.

    Unlike a mean, a line is not biased at the end of a falling curve, the part that matters here.
    """
    x = np.log(tokens)
    apart = x[None] - x[:, None]
    weight = np.exp(-0.5 * (apart / spread) ** 2)
    weight /= weight.sum(1, keepdims=True)
    mean_x, mean_y = (weight * apart).sum(1), (weight * loss).sum(1)
    spread_x = (weight * apart**2).sum(1) - mean_x**2
    slope = ((weight * apart * loss).sum(1) - mean_x * mean_y) / (spread_x + 1e-3 * spread**2)
    return mean_y - slope * mean_x


def smooth(run: Run, curve: str) -> tuple[np.ndarray, np.ndarray]:
    """ln C [K] and smoothed loss [K] along a run that has a curve: by `gaussian` where `curve`, of the preset, is
    `winner`; else by `local_linear`, for which more than 500 points are averaged in neighbouring groups first."""
    assert run.curve is not None
    tokens, loss = np.asarray(run.curve.tokens, np.float64), np.asarray(run.curve.loss, np.float64)
    if curve == "winner":
        loss = gaussian(loss)
    else:
        if len(loss) > _MOST_POINTS:
            # Counted from the end, so that the last group is full.
            from_end = np.arange(len(loss))[::-1] // -(-len(loss) // _MOST_POINTS)
            group = from_end.max() - from_end
            size = np.bincount(group)
            tokens, loss = np.bincount(group, tokens) / size, np.bincount(group, loss) / size
        loss = local_linear(tokens, loss)
    return np.log(run.flops * tokens / run.tokens), loss


def read_curves(runs: Sequence[Run], log_flops: np.ndarray, curve: str) -> np.ndarray:
    """Loss [R, G] of every run at ln C [G]; infinite where its curve does not reach."""
    loss = np.full((len(runs), len(log_flops)), np.inf)
    for row, run in zip(loss, runs, strict=True):
        x, y = smooth(run, curve)
        inside = (log_flops >= x[0]) & (log_flops <= x[-1] + 1e-9)
        row[inside] = np.interp(log_flops[inside], x, y)
    return loss


def read_ends(runs: Sequence[Run]) -> RunEnds:
    """The ends of the smoothed curves; repeats of a size and horizon count as one, the mean of their losses."""
    ends = []
    for run in runs:
        log_flops, loss = smooth(run, "smooth")
        ends.append((np.log(run.params), log_flops[-1], loss[-1]))
    groups: list[list[tuple[float, float, float]]] = []
    for end in sorted(ends):
        first = groups[-1][0] if groups else (np.nan, np.nan)
        if end[0] == first[0] and end[1] - first[1] < _SAME_END:
            groups[-1].append(end)
        else:
            groups.append([end])
    return RunEnds(*np.array([np.mean(group, axis=0) for group in groups]).T)


class SmoothFit(NamedTuple):
    """The `laws` of N* and of the envelope, whose irreducible part is an extrapolation and may be negative; the
    relative error of one run; k0 over its standard error; the laws of the replicates that curve upward, and their
    share."""

    laws: tuple[PowerLaw, OffsetLaw]
    noise: float
    curvature_z: float
    boot: tuple[PowerLaw, OffsetLaw] | None = None
    kept: float = 1.0


class RunEnds:
    """R run ends: ln N `log_params`, ln C `log_flops` and `loss`, each [R]; and least squares of the model above."""

    def __init__(self, log_params: np.ndarray, log_flops: np.ndarray, loss: np.ndarray):
        self.log_params, self.log_flops, self.loss = log_params, log_flops, loss
        self.centre = float(log_flops.mean())
        self.x = log_flops - log_flops.mean()

    def fit(self, resampling: Scheme | None, rng: np.random.Generator) -> SmoothFit:
        """Least squares of relative residuals; a run more than three robust standard deviations off counts by its
        distance, not by its square (Huber 1964): one spoilt training must not bend the envelope."""
        noise, size, (theta, weight) = 0.01, len(self.loss), self._starts()
        for _ in range(_PASSES):  # The noise sets how much the prior counts, and what is an outlier.
            theta, value = self._minimum(theta, noise, weight, self.loss)
            theta = theta[[value.argmin()]]
            residual, jacobian = (part[0] for part in self._residuals(theta, self.loss[None], _PRODUCT))
            scaled = np.sqrt(weight)[:, None] * jacobian / noise
            covariance = np.linalg.inv(scaled.T @ scaled + np.diag(_PRIOR_SPREAD**-2.0))
            leverage = np.clip(np.einsum("ri,ij,rj->r", scaled, covariance, scaled), 0.0, 0.95)
            freedom = max(1.0, float((1.0 - leverage).sum()))
            weight = _huber(np.abs(residual), np.median(np.abs(residual)) * np.sqrt(size / freedom))
            clipped = residual * weight
            noise = max(LEAST_NOISE, float(np.sqrt((clipped**2).sum() / freedom)))
        fit = SmoothFit(self._laws(theta[0]), noise, float(theta[0, _K0] / np.sqrt(covariance[_K0, _K0])))
        if resampling is None:
            return fit
        count = resampling.replicates
        loss = np.broadcast_to(self.loss, (count, size))
        if isinstance(resampling, Residuals):
            unleveraged = sized(clipped / np.sqrt(1.0 - leverage), noise)
            loss = loss * (1.0 + resampling.draw(unleveraged, freedom, (size,), rng))
        elif isinstance(resampling, Resampling):
            weight = weight * resampling.weights(size, rng)
        known = np.isfinite(_PRIOR_SPREAD)
        prior = _PRIOR + np.where(known, _PRIOR_SPREAD, 0.0) * rng.standard_normal((count, 8)) * known
        product = profile_shape.PRODUCT * np.exp(profile_shape.PRODUCT_SPREAD * rng.standard_normal(count))
        starts = np.repeat(theta, count, 0)
        # The tolerance, in the unknowns' steps, is far below the spread of the replicates.
        drawn, _ = self._minimum(starts, noise, weight, loss, prior, product, max_steps=40, tolerance=1e-3)
        upward = (drawn[:, _K0] > 0) & np.isfinite(drawn).all(1)
        boot = self._laws(drawn[upward]) if upward.sum() > 1 else None
        return fit._replace(boot=boot, kept=float(upward.mean()))

    def _laws(self, theta: np.ndarray) -> tuple[PowerLaw, OffsetLaw]:
        """N*(C) and f(C) for unknowns [..., 8]."""
        g = _away_from_zero(theta[..., _G])
        scale = theta[..., _F1] / g
        offset = OffsetLaw(self.centre, theta[..., _F0] + scale, -scale, g)
        return PowerLaw(self.centre, theta[..., _P], theta[..., _A]), offset

    def _residuals(self, theta: np.ndarray, loss: np.ndarray, product: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Relative residuals [B, R] of losses [B, R], and the model's derivatives [B, R, 8] over the loss."""
        f0, f1, g, k0, h, p, a, skew = np.moveaxis(theta, -1, 0)[..., None]
        x, q, g = self.x, product[:, None], _away_from_zero(g)
        u = self.log_params - p - a * x
        power, gain = np.exp(-g * x), np.exp(h * x)
        rise = (1.0 - power) / g
        excess, tilt = profile_shape.shape(u, skew, q), k0 * gain * profile_shape.slope(u, skew, q)
        by_g, by_k0, by_h = f1 * (x * power - rise) / g, gain * excess, k0 * x * gain * excess
        by_skew = k0 * gain * profile_shape.skew_slope(u, skew, q)
        parts = np.broadcast_arrays(np.ones_like(u), rise, by_g, by_k0, by_h, -tilt, -tilt * x, by_skew)
        model = f0 + f1 * rise + k0 * gain * excess
        return (loss - model) / loss, np.stack(parts, -1) / loss[..., None]

    def _minimum(
        self,
        starts: np.ndarray,
        noise: float,
        weight: np.ndarray,
        loss: np.ndarray,
        prior: np.ndarray = _PRIOR,
        product: np.ndarray = _PRODUCT,
        max_steps: int = 200,
        tolerance: float = 1e-5,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unknowns [B, 8] of least squares, by Gauss and Newton, and the objective [B]; `weight` and `loss` are [B, R],
        `prior` [B, 8] and `product` [B], or the same for all B."""
        count = len(starts)
        loss = np.broadcast_to(loss, (count, len(self.loss)))
        weight, prior = np.broadcast_to(weight, loss.shape), np.broadcast_to(prior, starts.shape)
        product = np.broadcast_to(product, count)
        stiff = _STEP / _PRIOR_SPREAD

        def objective(z: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            theta = z * _STEP
            residual, jacobian = self._residuals(theta, loss[rows], product[rows])
            residual, jacobian = residual / noise, jacobian * (_STEP / noise)
            off = np.where(np.isfinite(_PRIOR_SPREAD), (theta - prior[rows]) / _PRIOR_SPREAD, 0.0)
            weighted = weight[rows, :, None] * jacobian
            value = 0.5 * ((weight[rows] * residual**2).sum(1) + (off**2).sum(1))
            gradient = stiff * off - (weighted * residual[..., None]).sum(1)
            return value, gradient, np.swapaxes(weighted, 1, 2) @ jacobian + np.diag(stiff**2)

        minima = minimise(objective, starts / _STEP, max_steps=max_steps, tolerance=tolerance)
        return minima.theta * _STEP, minima.value

    def _starts(self) -> tuple[np.ndarray, np.ndarray]:
        """[S, 8]: for each exponent a of a grid the best p of a grid, with f0, f1 and k0 by linear fits; and weights
        [R], those of the best. All is by absolute errors: an outlier must not pick the valley."""
        starts, totals, weights = [], [], []
        rise = (1.0 - np.exp(-_PRIOR[_G] * self.x)) / _PRIOR[_G]
        for a in _EXPONENTS:
            along = self.log_params - a * self.x
            p = np.linspace(along.min(), along.max(), 25)
            excess = np.exp(_PRIOR[_H] * self.x) * profile_shape.shape(along - p[:, None], 0.0)
            columns = np.stack(np.broadcast_arrays(1.0, rise, excess), -1) / self.loss[:, None]
            weight = np.ones_like(excess)
            for _ in range(3):
                weighted = np.swapaxes(weight[..., None] * columns, -1, -2)
                linear = np.linalg.pinv(weighted @ columns) @ weighted.sum(-1)[..., None]
                error = np.abs(1.0 - columns @ linear)[..., 0]
                weight = _huber(error, np.median(error, -1)[:, None])
            f0, f1, k0 = linear[..., 0].T
            total = np.where(k0 > 0, error.sum(1), np.inf)
            i = int(total.argmin())
            starts.append((f0[i], f1[i], _PRIOR[_G], max(k0[i], 1e-3), _PRIOR[_H], p[i], a, 0.0))
            totals.append(total[i])
            weights.append(weight[i])
        return np.array(starts), weights[int(np.argmin(totals))]


def _away_from_zero(g: np.ndarray) -> np.ndarray:
    return np.where(np.abs(g) < 1e-6, 1e-6, g)


def _huber(error: np.ndarray, median: np.ndarray | float) -> np.ndarray:
    """Weights of least squares that amount to Huber's loss, for absolute errors of this median."""
    limit = _OUTLIER * np.maximum(LEAST_NOISE, 1.4826 * median)
    return np.minimum(1.0, limit / np.maximum(error, 1e-300))
