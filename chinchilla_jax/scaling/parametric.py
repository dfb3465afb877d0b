"""Approach 3: which surface L(N, D) = E + A / N^alpha + B / D^beta lies through all runs, and where is its optimum?

Hoffmann et al. 2022 (arXiv 2203.15556) section 3.3 and appendix D.2: minimise the sum over runs of
Huber_delta(LSE(a - alpha ln N, b - beta ln D, e) - ln L) from 4500 starting points. The fit here keeps that objective
and those starts and changes how the minimum is reached (see `minimise`): the published constants stop short of it
(Besiroglu et al., arXiv 2404.10102). A and B are flat directions; compare predictions and exponents, not A and B.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from chinchilla_jax.scaling.minimise import Minima, Objective, minimise
from chinchilla_jax.scaling.resample import FULL, Resampling
from chinchilla_jax.scaling.runs import FitRefused, Run
from chinchilla_jax.scaling.surface import Surface

PAPER_DELTA = 1e-3
AGREEMENT = 1e-3  # a start agrees when its objective is within this relative distance of the best
MIN_RUNS = 6
_CARRIED = 512
_CLIP = 300.0
_MIN_SPREAD = 0.05  # of ln D about its line in ln N; an IsoFLOP ladder of ratio 1.6 has 0.5 and more
_LOG_NEGLIGIBLE = np.log(1e-6)  # a term this much smaller than the loss is absent

@dataclasses.dataclass(frozen=True)
class ParametricFit:
    """Approach 3 on `n_runs` runs.

    `objective` is the plain sum of the paper; `gradient` its largest component in standardised coordinates, in units
    of delta^2; `agreement` the share of the starts that reached this minimum; `scatter` the root mean square of the
    log residuals, corrected for five unknowns. `boot` holds the bootstrap replicates and `boot_kept` the share of
    resamples that had a usable minimum.
    """

    surface: Surface
    delta: float
    n_runs: int
    n_starts: int
    objective: float
    gradient: float
    converged: bool
    agreement: float
    scatter: float
    boot: Surface | None = None
    boot_kept: float = 1.0


def paper_starts() -> np.ndarray:
    """The 4500 starts of appendix D.2, [4500, 5]: columns a, b, e, alpha, beta."""
    ab = np.arange(0.0, 30.0, 5.0)
    e = np.arange(-1.0, 1.5, 0.5)
    exponents = np.arange(0.0, 2.5, 0.5)
    return np.array(list(itertools.product(ab, ab, e, exponents, exponents)))


def fit_parametric(
    runs: Sequence[Run],
    *,
    delta: float = PAPER_DELTA,
    starts: np.ndarray | None = None,
    resampling: Resampling | None = FULL,
    seed: int = 0,
) -> ParametricFit:
    """Approach 3 on the runs with role `isoflop`.

    The starts first descend a wider Huber loss (delta 0.1), where almost every residual counts as squared; the best
    distinct minima go on through narrower ones to `delta`. At once with 1e-3 most starts see only absolute values,
    whose curvature says nothing, and crawl. The minimum reached is that of the final objective.

    Args:
      delta: Huber threshold on the log loss; 1e-3 in the paper, `inf` for half the squared log error.
      starts: [S, 5] in a, b, e, alpha, beta; `paper_starts()` unless given.
      resampling: how runs are resampled; each replicate is refitted from the best minima of the full fit.

    Raises:
      FitRefused: `few_points` (< 6 runs), `same_size` (all N or all D equal), `collinear` (D/N the same function of N
        throughout), `no_optimum` (the best surface does not fall with both N and D).
    """
    runs = [run for run in runs if run.role == "isoflop"]
    if len(runs) < MIN_RUNS:
        raise FitRefused("few_points", f"approach 3 has 5 unknowns: needs {MIN_RUNS} runs, got {len(runs)}")
    problem = _Problem(runs)
    starts = paper_starts() if starts is None else np.asarray(starts, np.float64)
    thresholds = [d for d in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5) if d > delta * 1.001] + [delta]
    theta, origin, minima = problem.standardise(starts), np.arange(len(starts)), None
    for stage, threshold in enumerate(thresholds):
        minima = minimise(problem.objective(threshold), theta, max_steps=300 if stage else 100)
        theta, origin = _distinct(minima, origin, keep=None if threshold == delta else _CARRIED)
    order = np.argsort(np.where(np.isfinite(minima.value), minima.value, np.inf))
    best = int(order[0])
    found = minima.value[best]
    surface = problem.surface(minima.theta[best])
    if not problem.usable(minima.theta[[best]])[0]:
        raise FitRefused(
            "no_optimum",
            f"approach 3: the best surface has alpha = {surface.alpha:.3g}, beta = "
            f"{surface.beta:.3g}; loss must fall with both N and D: widen the range of sizes and tokens",
        )
    reached = np.isin(origin, np.flatnonzero(minima.value[_first(minima)] <= found * (1.0 + AGREEMENT)))
    residual = np.log(surface.loss(problem.params, problem.tokens)) - problem.log_loss
    fit = ParametricFit(
        surface,
        delta,
        len(runs),
        len(starts),
        float(found * _unit(delta) ** 2),
        float(minima.gradient[best]),
        bool(minima.gradient[best] < 1e-2),
        float(reached.sum() / len(starts)),
        float(np.sqrt((residual**2).sum() / max(1, len(runs) - 5))),
    )
    if resampling is None:
        return fit
    boot = _bootstrap(problem, delta, minima.theta[order[:4]], resampling, np.random.default_rng(seed))
    good = problem.usable(boot)
    if not good.any():
        return dataclasses.replace(fit, boot_kept=0.0)
    return dataclasses.replace(fit, boot=problem.surface(boot[good]), boot_kept=float(good.mean()))


def _first(minima: Minima) -> np.ndarray:
    """Index of one representative of each distinct minimum."""
    return np.unique(np.round(minima.theta, 4), axis=0, return_index=True)[1]


def _distinct(minima: Minima, origin: np.ndarray, keep: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Representatives of the `keep` best distinct minima, and for each start which it belongs to (-1: none kept)."""
    _, first, inverse = np.unique(np.round(minima.theta, 4), axis=0, return_index=True, return_inverse=True)
    value = np.where(np.isfinite(minima.value[first]), minima.value[first], np.inf)
    chosen = np.arange(len(first)) if keep is None else np.argsort(value, kind="stable")[:keep]
    place = np.full(len(first) + 1, -1)
    place[chosen] = np.arange(len(chosen))
    return minima.theta[first[chosen]], place[np.where(origin >= 0, inverse.ravel()[origin], -1)]


def _bootstrap(
    problem: _Problem, delta: float, seeds: np.ndarray, resampling: Resampling, rng: np.random.Generator
) -> np.ndarray:
    """[count, 5] standardised minima of resampled problems, each the best of the descents from `seeds` [K, 5]."""
    size = len(problem.log_loss)
    weights = resampling.weights(size, rng)
    count = len(weights)
    theta = np.tile(seeds, (count, 1))
    repeated = np.repeat(np.arange(count), len(seeds))
    minima = minimise(problem.objective(delta, weights, repeated), theta, tolerance=1e-4, max_steps=60)
    value = np.where(np.isfinite(minima.value), minima.value, np.inf).reshape(count, -1)
    return minima.theta.reshape(count, -1, 5)[np.arange(count), value.argmin(1)]


def _unit(delta: float) -> float:
    """Residuals are measured in this unit, which brings the objective near the number of runs."""
    return min(delta, 1e-2)


class _Problem:
    """The objective in standardised coordinates: ln N and ln D are centred and divided by their spread.

    Then a, b and e are logs of the three terms at the centre of the data, and all five unknowns matter about equally.
    """

    def __init__(self, runs: Sequence[Run]):
        self.params = np.array([run.params for run in runs])
        self.tokens = np.array([run.tokens for run in runs])
        self.log_loss = np.log([run.loss for run in runs])
        for word, values in (("N", self.params), ("D", self.tokens)):
            if len(np.unique(values)) < 3:
                raise FitRefused("same_size", f"approach 3: {len(np.unique(values))} distinct {word}; needs 3")
        self.centre = np.log(self.params).mean(), np.log(self.tokens).mean()
        self.spread = np.log(self.params).std(), np.log(self.tokens).std()
        x = (np.log(self.params) - self.centre[0]) / self.spread[0]
        y = (np.log(self.tokens) - self.centre[1]) / self.spread[1]
        self.x, self.y = x, y
        one = np.ones_like(x)
        self.moments_x = np.stack([one, x, x * x], 1)
        self.moments_y = np.stack([one, y, y * y], 1)
        self.moments_xy = np.stack([one, x, y, x * y], 1)

        apart = y - x * (x @ y) / len(x)
        if apart.std() * self.spread[1] < _MIN_SPREAD:
            raise FitRefused(
                "collinear",
                f"approach 3: ln D follows ln N to within {apart.std() * self.spread[1]:.2g}, so their effects "
                "cannot be told apart; train some size on several token counts",
            )

    def usable(self, theta: np.ndarray) -> np.ndarray:
        """[B]: whether the law falls with both N and D, by more than rounding error at the centre of the data."""
        total = np.logaddexp(np.logaddexp(theta[:, 0], theta[:, 1]), theta[:, 2])
        present = (theta[:, :2] > (total + _LOG_NEGLIGIBLE)[:, None]).all(1)
        return np.isfinite(theta).all(1) & present & (theta[:, 3:] > 0).all(1)

    def standardise(self, starts: np.ndarray) -> np.ndarray:
        """[S, 5] columns a, b, e, alpha, beta of the paper -> standardised coordinates."""
        a, b, e, alpha, beta = starts.T
        return np.stack(
            [a - alpha * self.centre[0], b - beta * self.centre[1], e, alpha * self.spread[0], beta * self.spread[1]], 1
        )

    def surface(self, theta: np.ndarray) -> Surface:
        """Standardised coordinates [..., 5] -> the law."""
        a, b, e, alpha, beta = np.moveaxis(theta, -1, 0)
        alpha, beta = alpha / self.spread[0], beta / self.spread[1]
        with np.errstate(over="ignore"):
            A, B = np.exp(a + alpha * self.centre[0]), np.exp(b + beta * self.centre[1])
        return Surface(np.exp(e), A, B, alpha, beta)

    def objective(
        self, delta: float, weights: np.ndarray | None = None, problem_of_row: np.ndarray | None = None
    ) -> Objective:
        """Sum of Huber losses in units of `_unit(delta)` squared, with gradient and Hessian; for `minimise`.

        With p the three terms as shares of the sum, z = ln(sum) has gradient p and Hessian diag(p) - p p^T in the logs
        of the terms, which are linear in the unknowns; everything below is moments of that.
        """
        unit = _unit(delta)
        width = delta / unit

        def evaluate(theta: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            a, b, e, alpha, beta = theta.T[:, :, None]
            term_n = np.exp(np.clip(a - alpha * self.x, -_CLIP, _CLIP))
            term_d = np.exp(np.clip(b - beta * self.y, -_CLIP, _CLIP))
            term_e = np.exp(np.clip(e, -_CLIP, _CLIP))
            total = term_n + term_d + term_e
            residual = (np.log(total) - self.log_loss) / unit
            force = np.clip(residual, -width, width)
            stiff = (np.abs(residual) < width) / unit**2
            energy = force * (residual - 0.5 * force)
            force = force / unit
            if weights is not None:
                w = weights[problem_of_row[rows]]
                energy, force, stiff = energy * w, force * w, stiff * w
            stiff = stiff - force
            p, q, s = term_n / total, term_d / total, term_e / total
            fp, fq, fs, kp, kq = force * p, force * q, force * s, stiff * p, stiff * q
            pp, qq, ss = (kp * p + fp) @ self.moments_x, (kq * q + fq) @ self.moments_y, (stiff * s * s + fs).sum(1)
            pq, ps, qs = (kp * q) @ self.moments_xy, (kp * s) @ self.moments_x, (kq * s) @ self.moments_y
            gp, gq = fp @ self.moments_x, fq @ self.moments_y
            gradient = np.stack([gp[:, 0], gq[:, 0], fs.sum(1), -gp[:, 1], -gq[:, 1]], 1)
            upper = (
                pp[:, 0],
                pq[:, 0],
                ps[:, 0],
                -pp[:, 1],
                -pq[:, 2],
                qq[:, 0],
                qs[:, 0],
                -pq[:, 1],
                -qq[:, 1],
                ss,
                -ps[:, 1],
                -qs[:, 1],
                pp[:, 2],
                pq[:, 3],
                qq[:, 2],
            )
            hessian = np.empty((len(theta), 5, 5))
            i, j = np.triu_indices(5)
            hessian[:, i, j] = hessian[:, j, i] = np.stack(upper, 1)
            return energy.sum(1), gradient, hessian

        return evaluate
