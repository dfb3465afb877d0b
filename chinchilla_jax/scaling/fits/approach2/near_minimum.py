"""Where is the minimum of each IsoFLOP profile, by the runs near it, and how well is it known?

No curve of three constants is right from 0.1 to 10 times the best size. Fitted to all sizes, it misses the minimum in
order to come near runs that nobody asks about.

So a run counts less the higher it lies above the minimum: its error is taken to be the noise of a run together with the
share `MISFIT` of its excess. Beyond `WINDOW` only the two neighbours on either side of the lowest size are fitted. All
budgets share one skew (`profile_shape`), and their curvatures, relative to the loss, follow a line in ln C up to
`CURVATURE_SPREAD`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from chinchilla_jax.scaling.fits.approach2 import profile_shape
from chinchilla_jax.scaling.fits.approach2.curve import ProfileMinima
from chinchilla_jax.scaling.fits.resample import LEAST_NOISE

WINDOW = 0.1  # relative excess over the lowest loss of a budget up to which a run is near
NEIGHBOURS = 2  # sizes on either side of the lowest that are near whatever they cost
MISFIT = 0.1  # of the excess: how far the curve may be off there
CURVATURE_SPREAD = 0.3  # of ln(relative curvature) about its line in ln C
_CURVATURE_SLOPE = 0.15  # standard deviation of that line's slope
_USUAL_CURVATURE = 0.04  # relative, in ln N: the middle of what tables have (`tests.benchmarks.prediction`)
USUAL_NOISE, NOISE_FREEDOM = 0.002, 3.0  # a run's noise before residuals speak, and how many of them it counts for
_MOST_NOISE = 0.05
_ROUNDS, _STEPS = 4, 30


@dataclasses.dataclass(frozen=True)
class NearFit(ProfileMinima):
    """Minima, with B = 1, by the runs `near` [M, n]; the `skew` of all; `covariance` [M, M] of the logarithms of
    `lowest`; `log_best_sd` [M]; `noise`, the relative standard deviation of a run, known from `freedom` degrees of
    freedom; `theta`, all unknowns as `NearProblem` orders them; `moves`, what errors of the runs do to the minima."""

    near: np.ndarray
    skew: float
    covariance: np.ndarray
    log_best_sd: np.ndarray
    noise: float
    freedom: float
    theta: np.ndarray
    moves: Moves = dataclasses.field(compare=False)


@dataclasses.dataclass(frozen=True)
class Moves:
    """How ln lowest [M] and then ln best [M] move with errors, to first order: `by_run` [2M, R] with the relative error
    of each near run (in the order of `near`), `by_prior` [2M, M + 3] with one standard deviation of each prior: the
    curvature of each profile, the skew of all, the middle and slope of the curvatures. Of the runs: the relative
    `residual` [R], the share `spared` [R] of an error that shows in it, and how far the curve may be off, `misfit` [R].
    """

    by_run: np.ndarray
    by_prior: np.ndarray
    residual: np.ndarray
    spared: np.ndarray
    misfit: np.ndarray

    def noise(self, supposed: float) -> tuple[float, float]:
        """One run's relative noise from the residuals alone, and its degrees of freedom. Runs whose curve may be off by
        more than the `supposed` noise count little."""
        weight = supposed**2 / (supposed**2 + self.misfit**2)
        freedom = float((weight * self.spared).sum())
        return float(np.sqrt((weight * self.residual**2).sum() / freedom)), freedom


def near_runs(x: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Which runs [n] of one profile lie near its minimum, given ln N (or ln D) and losses: at least four sizes, if
    there are four. Runs of one size count by their mean."""
    sizes, which = np.unique(x, return_inverse=True)
    mean = np.bincount(which, loss) / np.bincount(which)
    lowest = int(mean.argmin())
    rank = np.abs(np.arange(len(sizes)) - lowest)
    near = (mean <= mean[lowest] * (1.0 + WINDOW)) | (rank <= NEIGHBOURS)
    if near.sum() < 4:
        near |= rank <= np.sort(rank)[min(3, len(rank) - 1)]
    return near[which]


def fit_near(x: np.ndarray, loss: np.ndarray, held: np.ndarray, log_flops: np.ndarray) -> NearFit:
    """Profiles through the runs near their minima, by Gauss and Newton, all together.

    `x` is ln N or ln D, [M, n]; `loss` [M, n] positive; `held` [M, n] which entries are runs: at least four sizes a
    profile, with a parabola that opens upward; `log_flops` [M] ln of the budgets.
    """
    near = np.zeros_like(held)
    for m, mine in enumerate(held):
        near[m, mine] = near_runs(x[m, mine], loss[m, mine])
    problem = NearProblem(x, np.log(np.where(held, loss, 1.0)), near, log_flops - log_flops.mean())
    theta, noise = problem.start(), USUAL_NOISE
    for _ in range(_ROUNDS):
        for _ in range(_STEPS):
            step = problem.step(theta, noise)
            theta = theta + step
            if np.abs(step).max() < 1e-7:
                break
        noise, freedom, covariance = problem.noise(theta, noise)
    m = len(x)
    log_lowest, log_best, log_curvature = theta[: 3 * m].reshape(3, 1, m)
    skew = float(theta[3 * m])
    lowest, curvature, sd = np.exp(log_lowest), np.exp(log_curvature), np.sqrt(np.diag(covariance))
    fitted = lowest[..., None] * (1.0 + curvature[..., None] * profile_shape.shape(x - log_best[..., None], skew))
    inside = (log_best > x.min(1)) & (log_best < x.max(1))
    known = covariance[:m, :m], sd[m : 2 * m], noise, freedom, theta, problem.moves(theta, noise, covariance)
    return NearFit(log_best, lowest, curvature * lowest, inside, fitted, near, skew, *known)


class NearProblem:
    """Residuals and their derivatives by theta: ln lowest, x best, ln curvature, each [M]; skew, and the curvatures'
    middle and slope."""

    def __init__(self, x: np.ndarray, log_loss: np.ndarray, near: np.ndarray, centred: np.ndarray):
        m = self.count = len(x)
        self.profile = np.repeat(np.arange(m), near.sum(1))
        self.x, self.y, self.size = x[near], log_loss[near], 3 * m + 3
        # The priors: what `prior` @ theta misses of what is expected, over its spread.
        rows = self.prior = np.zeros((m + 3, self.size))
        rows[np.arange(m), 2 * m + np.arange(m)] = 1.0 / CURVATURE_SPREAD
        rows[:m, 3 * m + 1] = -1.0 / CURVATURE_SPREAD
        rows[:m, 3 * m + 2] = -centred / CURVATURE_SPREAD
        rows[m, 3 * m] = 1.0 / profile_shape.SKEW_SPREAD
        rows[m + 1, 3 * m + 1] = 1.0
        rows[m + 2, 3 * m + 2] = 1.0 / _CURVATURE_SLOPE
        self.expected = np.zeros(len(rows))
        self.expected[m + 1] = np.log(_USUAL_CURVATURE)

    def start(self) -> np.ndarray:
        """From a parabola through each profile's runs."""
        theta = np.zeros(self.size)
        m = self.count
        for i in range(m):
            x, y = self.x[self.profile == i], self.y[self.profile == i]
            middle = x.mean()
            second, first, _ = np.polyfit(x - middle, y, 2)
            if second <= 0:  # of the near runs alone; all of them open upward
                second, first = _USUAL_CURVATURE, -2.0 * _USUAL_CURVATURE * (x[y.argmin()] - middle)
            best = np.clip(middle - first / (2.0 * second), x.min() - 0.3, x.max() + 0.3)
            theta[[i, m + i, 2 * m + i]] = y.min(), best, np.log(np.clip(second, 1e-3, 1.0))
        theta[3 * m + 1] = np.median(theta[2 * m : 3 * m])
        return theta

    def runs(self, theta: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weighted residuals of the runs, their derivatives with the sign turned, and the matrix of both and priors."""
        m, rows = self.count, np.arange(len(self.x))
        low, best, log_curvature = theta[: 3 * m].reshape(3, m)[:, self.profile]
        skew, curvature, u = theta[3 * m], np.exp(log_curvature), self.x - best
        excess = curvature * profile_shape.shape(u, skew)
        inner = 1.0 / (1.0 + excess)
        weight = 1.0 / np.sqrt(noise**2 + (MISFIT * np.minimum(excess, 1.0)) ** 2)
        slopes = np.zeros((len(rows), self.size))
        slopes[rows, self.profile] = 1.0
        slopes[rows, m + self.profile] = -curvature * profile_shape.slope(u, skew) * inner
        slopes[rows, 2 * m + self.profile] = excess * inner
        slopes[:, 3 * m] = curvature * profile_shape.skew_slope(u, skew) * inner
        slopes = slopes * weight[:, None]
        normal = slopes.T @ slopes + self.prior.T @ self.prior + 1e-9 * np.eye(self.size)
        return (self.y - low - np.log1p(excess)) * weight, slopes, normal

    def step(self, theta: np.ndarray, noise: float) -> np.ndarray:
        """The next change of theta, short enough that the line it rests on holds."""
        m = self.count
        residual, slopes, normal = self.runs(theta, noise)
        step = np.linalg.solve(normal, slopes.T @ residual + self.prior.T @ (self.expected - self.prior @ theta))
        step[m : 2 * m] = np.clip(step[m : 2 * m], -0.4, 0.4)
        step[2 * m : 3 * m] = np.clip(step[2 * m : 3 * m], -0.5, 0.5)
        step[3 * m] = np.clip(step[3 * m], -0.03, 0.03)
        return step

    def noise(self, theta: np.ndarray, noise: float) -> tuple[float, float, np.ndarray]:
        """A run's relative noise from the residuals, its degrees of freedom, and theta's covariance."""
        residual, slopes, normal = self.runs(theta, noise)
        covariance = np.linalg.inv(normal)
        spent = float(np.einsum("ri,ij,rj->", slopes, covariance, slopes))
        freedom = max(0.5, len(residual) - spent) + NOISE_FREEDOM
        squares = noise**2 * float((residual**2).sum()) + NOISE_FREEDOM * USUAL_NOISE**2
        return float(np.clip(np.sqrt(squares / freedom), LEAST_NOISE, _MOST_NOISE)), freedom, covariance

    def moves(self, theta: np.ndarray, noise: float, covariance: np.ndarray) -> Moves:
        """Of the minima, with errors as they count at `noise`."""
        residual, slopes, _ = self.runs(theta, noise)
        weight = slopes[np.arange(len(residual)), self.profile]  # of a run's own minimum: one over its deviation
        spared = 1.0 - np.einsum("ri,ij,rj->r", slopes, covariance, slopes)
        misfit = np.sqrt(np.maximum(weight**-2.0 - noise**2, 0.0))
        rows = covariance[: 2 * self.count]
        return Moves(rows @ slopes.T * weight, rows @ self.prior.T, residual / weight, spared, misfit)
