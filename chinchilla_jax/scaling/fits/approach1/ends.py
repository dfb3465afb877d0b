"""Where does the lower envelope of on-schedule losses run, and which size lies on it?

Every run's loss at the end of its schedule is the envelope at its compute plus what its size costs there:

    L = f(C) + k(C) S(ln N - ln N*(C))        N*(C) = exp(p + a x),  x = ln C - mean ln C
    f = f0 + f1 (1 - e^(-g x)) / g            a constant and a power of C, written so that g -> 0 is no special case
    k = k0 e^(h x)                            the curvature

with S of `profile_shape`, a parabola with a skew. A run is one observation, at whatever compute it ended; no two runs
need share a budget. Of the eight unknowns three are held loosely where published laws have them, with standard
deviation 0.1 or 0.05 (`_PRIOR`): profiles say little about g, h and the skew when there are few runs, and much when
there are many. L = E + A/N^alpha + B/D^beta is the special case g = -h = alpha beta / (alpha + beta).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from chinchilla_jax.scaling.fits.approach2 import profile_shape
from chinchilla_jax.scaling.fits.frontier import OffsetLaw, PowerLaw
from chinchilla_jax.scaling.fits.minimise import minimise
from chinchilla_jax.scaling.fits.resample import LEAST_NOISE, Resampling, Residuals, sized

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


@dataclasses.dataclass(frozen=True)
class RunEnds:
    """R run ends: ln N, ln C and loss."""

    log_params: np.ndarray
    log_flops: np.ndarray
    loss: np.ndarray


@dataclasses.dataclass(frozen=True)
class SmoothEnvelope:
    """The unknowns, [8] or replicates [B, 8], about the mean ln C `log_centre`.

    `noise` is the relative error of one run; `curvature_z` k0 over its standard error, [] or None for replicates.
    """

    log_centre: float
    theta: np.ndarray
    noise: float
    curvature_z: float | None = None

    @property
    def params_law(self) -> PowerLaw:
        """N*(C)."""
        return PowerLaw(self.log_centre, self.theta[..., _P], self.theta[..., _A])

    @property
    def loss_law(self) -> OffsetLaw:
        """The envelope f(C); its irreducible part is an extrapolation and may be negative."""
        g = _away_from_zero(self.theta[..., _G])
        scale = self.theta[..., _F1] / g
        return OffsetLaw(self.log_centre, self.theta[..., _F0] + scale, -scale, g)


def fit_smooth_envelope(
    ends: RunEnds, resampling: Resampling | Residuals | None, rng: np.random.Generator
) -> tuple[SmoothEnvelope, SmoothEnvelope | None, float]:
    """The fit, its replicates, and the share of replicates that curve upward.

    Least squares of relative residuals, in which a run more than three robust standard deviations off counts by its
    distance and no longer by its square (Huber 1964): one spoilt training must not bend the envelope.
    """
    problem = _Problem(ends)
    noise, (theta, weight) = 0.01, problem.starts()
    for _ in range(_PASSES):  # The noise sets how much the prior counts, and what is an outlier.
        theta, value = problem.minimum(theta, noise, weight=weight)
        theta = theta[[value.argmin()]]
        residual, jacobian = (part[0] for part in problem.residuals(theta, ends.loss[None], _PRODUCT))
        scaled = np.sqrt(weight)[:, None] * jacobian / noise
        covariance = np.linalg.inv(scaled.T @ scaled + np.diag(_PRIOR_SPREAD**-2.0))
        leverage = np.clip(np.einsum("ri,ij,rj->r", scaled, covariance, scaled), 0.0, 0.95)
        freedom = max(1.0, float((1.0 - leverage).sum()))
        weight = _huber(np.abs(residual), np.median(np.abs(residual)) * np.sqrt(problem.size / freedom))
        clipped = residual * weight
        noise = max(LEAST_NOISE, float(np.sqrt((clipped**2).sum() / freedom)))
    curvature_z = float(theta[0, _K0] / np.sqrt(covariance[_K0, _K0]))
    envelope = SmoothEnvelope(problem.centre, theta[0], noise, curvature_z)
    if resampling is None:
        return envelope, None, 1.0
    count = resampling.replicates
    loss = np.broadcast_to(ends.loss, (count, problem.size))
    if isinstance(resampling, Residuals):
        unleveraged = sized(clipped / np.sqrt(1.0 - leverage), noise)
        loss = loss * (1.0 + resampling.draw(unleveraged, freedom, problem.size, rng))
    else:
        weight = weight * resampling.weights(problem.size, rng)
    known = np.isfinite(_PRIOR_SPREAD)
    prior = _PRIOR + np.where(known, _PRIOR_SPREAD, 0.0) * rng.standard_normal((count, 8)) * known
    product = profile_shape.PRODUCT * np.exp(profile_shape.PRODUCT_SPREAD * rng.standard_normal(count))
    drawn, _ = problem.minimum(
        np.repeat(theta, count, 0),
        noise,
        loss=loss,
        weight=weight,
        prior=prior,
        product=product,
        max_steps=40,
        tolerance=1e-3,  # of a unit's step, far below the spread of the replicates
    )
    upward = (drawn[:, _K0] > 0) & np.isfinite(drawn).all(1)
    boot = SmoothEnvelope(problem.centre, drawn[upward], noise) if upward.sum() > 1 else None
    return envelope, boot, float(upward.mean())


class _Problem:
    """Least squares of the model above through R run ends, whose losses may be redrawn."""

    def __init__(self, ends: RunEnds):
        self.centre, self.size = float(ends.log_flops.mean()), len(ends.loss)
        self.x, self.log_n, self.loss = ends.log_flops - ends.log_flops.mean(), ends.log_params, ends.loss

    def residuals(self, theta: np.ndarray, loss: np.ndarray, product: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Relative residuals [B, R] of losses [B, R], and the model's derivatives [B, R, 8] over the loss."""
        f0, f1, g, k0, h, p, a, skew = np.moveaxis(theta, -1, 0)[..., None]
        x, q, g = self.x, product[:, None], _away_from_zero(g)
        u = self.log_n - p - a * x
        power, gain = np.exp(-g * x), np.exp(h * x)
        rise = (1.0 - power) / g
        excess, tilt = profile_shape.shape(u, skew, q), k0 * gain * profile_shape.slope(u, skew, q)
        by_f1, by_g = rise, f1 * (x * power - rise) / g
        by_k0, by_h = gain * excess, k0 * x * gain * excess
        by_skew = k0 * gain * profile_shape.skew_slope(u, skew, q)
        parts = np.broadcast_arrays(np.ones_like(u), by_f1, by_g, by_k0, by_h, -tilt, -tilt * x, by_skew)
        model = f0 + f1 * rise + k0 * gain * excess
        return (loss - model) / loss, np.stack(parts, -1) / loss[..., None]

    def minimum(
        self,
        starts: np.ndarray,
        noise: float,
        *,
        weight: np.ndarray,
        loss: np.ndarray | None = None,
        prior: np.ndarray = _PRIOR,
        product: np.ndarray = _PRODUCT,
        **options: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unknowns [B, 8] of least squares for losses [B, R], by Gauss and Newton, and the objective [B].

        Args:
          loss, weight: [B, R]; prior: [B, 8]; product: [B]; or the same for all B.
        """
        count = len(starts)
        loss = np.broadcast_to(self.loss if loss is None else loss, (count, self.size))
        weight, prior = np.broadcast_to(weight, loss.shape), np.broadcast_to(prior, starts.shape)
        product = np.broadcast_to(product, count)
        stiff = _STEP / _PRIOR_SPREAD

        def objective(z: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            theta = z * _STEP
            residual, jacobian = self.residuals(theta, loss[rows], product[rows])
            residual, jacobian = residual / noise, jacobian * (_STEP / noise)
            off = np.where(np.isfinite(_PRIOR_SPREAD), (theta - prior[rows]) / _PRIOR_SPREAD, 0.0)
            weighted = weight[rows, :, None] * jacobian
            value = 0.5 * ((weight[rows] * residual**2).sum(1) + (off**2).sum(1))
            gradient = stiff * off - (weighted * residual[..., None]).sum(1)
            return value, gradient, np.swapaxes(weighted, 1, 2) @ jacobian + np.diag(stiff**2)

        minima = minimise(objective, starts / _STEP, **{"max_steps": 200, "tolerance": 1e-5} | options)
        return minima.theta * _STEP, minima.value

    def starts(self) -> tuple[np.ndarray, np.ndarray]:
        """[S, 8]: for each exponent a of a grid the best p of a grid, with f0, f1 and k0 by linear fits; weights [R].

        Fits and choices are by absolute errors, and the weights are those of the best: an outlier must not pick the
        valley.
        """
        starts, totals, weights = [], [], []
        rise = (1.0 - np.exp(-_PRIOR[_G] * self.x)) / _PRIOR[_G]
        for a in _EXPONENTS:
            along = self.log_n - a * self.x
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
