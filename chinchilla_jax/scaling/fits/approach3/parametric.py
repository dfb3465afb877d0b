"""Approach 3: which surface L(N, D) = E + A / N^alpha + B / D^beta lies through all runs, and where is its optimum?

Hoffmann et al. 2022 (arXiv 2203.15556) section 3.3 and appendix D.2: minimise the sum over runs of
Huber_delta(LSE(a - alpha ln N, b - beta ln D, e) - ln L) from 4500 starting points. The fit here keeps that objective
and those starts and changes how the minimum is reached (see `minimise`): the published constants stop short of it
(Besiroglu et al., arXiv 2404.10102; `as_published` shows how). Other objectives are those of `minimise.MISFITS`. A
and B are flat directions: compare predictions and exponents, not A and B.

With p the three terms of the law as shares of their sum, z = ln(sum) has gradient p and Hessian diag(p) - p p^T in the
logs of the terms. Those are linear in the unknowns once ln N and ln D are centred and divided by their spread, so
value, gradient and Hessian of thousands of problems are a few products of moments.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from chinchilla_jax.scaling.fits.approach3.known import Known, known
from chinchilla_jax.scaling.fits.minimise import (
    HUBER,
    Fit,
    Misfit,
    Objective,
    Problem,
    bootstrap,
    descend,
)
from chinchilla_jax.scaling.fits.resample import FULL, Resampling
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.read.runs import FitRefused, Run

DIFFERENCES = (
    "the objective is the sum over runs, not the mean, and is brought to zero gradient: averaged, it is so small that "
    "an optimiser's default tolerance stops it early (Besiroglu et al. 2024)",
    "intervals are 95% over resamples of all runs with replacement; the paper's 100 subsets of 80% come out half "
    "as wide as the sampling error",
    "constants are kept unrounded: alpha and beta to two digits move predicted losses by more than the fit's error",
)
CONSTANTS = ("A", "B", "E", "alpha", "beta")
_CLIP = 300.0
_MIN_SPREAD = 0.05  # of ln D about its line in ln N; an IsoFLOP ladder of ratio 1.6 has 0.5 and more
_LOG_NEGLIGIBLE = np.log(1e-6)  # a term this much smaller than the loss is absent
_FAR_OFF, _FAR_TIMES = 0.05, 8.0
_TAIL = 1.5  # times the typical residual: scatter beyond it is that of a few runs
_FLAT = 0.95  # two constants with a larger correlation are one direction


class SurfaceProblem(Problem):
    """The fit of E + A/N^alpha + B/D^beta to the runs with role `isoflop`, in standardised coordinates theta [..., P].

    ln N and ln D are centred and divided by their spread, so that a, b and e are logs of the three terms at the centre
    of the data and all five unknowns matter about equally. With `tied` exponents P is 4: a, b, e and the common
    exponent (alpha = beta).

    Raises:
      FitRefused: `few_points` (not more runs than unknowns), `constant_loss` (all losses equal), `same_size` (fewer
        than 3 distinct N or D), `collinear` (D/N the same function of N throughout).
    """

    def __init__(self, runs: Sequence[Run], tied: bool = False):
        runs = [run for run in runs if run.role == "isoflop"]
        self.tied, self.size = tied, len(runs)
        self.params, self.tokens, self.loss = (
            np.array([getattr(run, name) for run in runs]) for name in ("params", "tokens", "loss")
        )
        self._refuse_unfit(5 if tied else 6)
        log_n, log_d = np.log(self.params), np.log(self.tokens)
        self.centre, self.spread = (log_n.mean(), log_d.mean()), (log_n.std(), log_d.std())
        self._x = x = (log_n - self.centre[0]) / self.spread[0]
        self._y = y = (log_d - self.centre[1]) / self.spread[1]
        apart = (y - x * (x @ y) / len(x)).std() * self.spread[1]
        if apart < _MIN_SPREAD:
            raise FitRefused(
                "collinear",
                f"approach 3: ln D follows ln N to within {apart:.2g}, so their effects cannot be told apart; train "
                "some size on several token counts",
            )
        # theta_[P] -> the five of the untied law; the common exponent is measured in the geometric mean of the spreads.
        ratio = np.sqrt(self.spread[0] / self.spread[1])
        self._basis = np.column_stack([np.eye(5, 3), [0.0, 0.0, 0.0, ratio, 1.0 / ratio]]) if tied else np.eye(5)
        self.unknowns = self._basis.shape[1]

    def _refuse_unfit(self, needed: int) -> None:
        if self.size < needed:
            raise FitRefused(
                "few_points",
                f"approach 3 has {needed - 1} unknowns: needs {needed} runs, got {self.size}; train more sizes",
            )
        if np.ptp(self.loss) <= 1e-12 * self.loss.max():
            why = "nothing falls with N or D; is this the column of the loss?"
            raise FitRefused("constant_loss", f"approach 3: all {self.size} losses are {self.loss[0]:g}: {why}")
        for word, values in (("N", self.params), ("D", self.tokens)):
            if len(np.unique(values)) < 3:
                raise FitRefused("same_size", f"approach 3: {len(np.unique(values))} distinct {word}; needs 3")

    def usable(self, theta: np.ndarray) -> np.ndarray:
        """[B]: whether the law falls with both N and D, by more than rounding error at the centre of the data."""
        five = theta @ self._basis.T
        total = np.logaddexp(np.logaddexp(five[:, 0], five[:, 1]), five[:, 2])
        present = (five[:, :2] > (total + _LOG_NEGLIGIBLE)[:, None]).all(1)
        return np.isfinite(five).all(1) & present & (five[:, 3:] > 0).all(1)

    def standardise(self, starts: np.ndarray) -> np.ndarray:
        """[S, 5] columns a, b, e, alpha, beta of the paper -> theta [S, P]."""
        a, b, e, alpha, beta = starts.T
        five = np.stack(
            [a - alpha * self.centre[0], b - beta * self.centre[1], e, alpha * self.spread[0], beta * self.spread[1]], 1
        )
        return np.linalg.lstsq(self._basis, five.T, rcond=None)[0].T

    def surface(self, theta: np.ndarray) -> Surface:
        """theta [..., P] -> the law."""
        a, b, e, alpha, beta = np.moveaxis(theta @ self._basis.T, -1, 0)
        alpha, beta = alpha / self.spread[0], beta / self.spread[1]
        with np.errstate(over="ignore"):
            A, B = np.exp(a + alpha * self.centre[0]), np.exp(b + beta * self.centre[1])
        return Surface(np.exp(e), A, B, alpha, beta)

    def locate(self, surface: Surface) -> np.ndarray:
        """The inverse of `surface` for scalars, [P]."""
        a, b, e = np.log([surface.A, surface.B, surface.E])
        return self.standardise(np.array([[a, b, e, surface.alpha, surface.beta]]))[0]

    def residuals(self, theta: np.ndarray, residual: str) -> np.ndarray:
        """[..., n]: predicted less measured, in log loss or in nats."""
        predicted = self.surface(theta).columns().loss(self.params, self.tokens)
        return np.log(predicted / self.loss) if residual == "log" else predicted - self.loss

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """[n, 5]: derivative of the log of the predicted loss by ln A, ln B, ln E, alpha, beta."""
        return self.surface(theta).slopes(self.params, self.tokens)

    def objective(self, misfit: Misfit, weights: np.ndarray | None = None) -> Objective:
        """As `minimise.Problem` says."""
        unit, raw = self.unit(misfit), misfit.residual == "raw"
        width, log_loss = misfit.delta / unit, np.log(self.loss)
        basis = self._basis if self.tied else None
        x, y, one = self._x, self._y, np.ones_like(self._x)
        moments_x, moments_y = np.stack([one, x, x * x], 1), np.stack([one, y, y * y], 1)
        moments_xy = np.stack([one, x, y, x * y], 1)

        def evaluate(theta: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            five = theta if basis is None else theta @ basis.T
            a, b, e, alpha, beta = five.T[:, :, None]
            term_n, term_d, term_e = (np.exp(np.clip(v, -_CLIP, _CLIP)) for v in (a - alpha * x, b - beta * y, e))
            total = term_n + term_d + term_e
            residual = ((total - self.loss) if raw else (np.log(total) - log_loss)) / unit
            force = np.clip(residual, -width, width)
            stiff = (np.abs(residual) < width) / unit**2
            energy = force * (residual - 0.5 * force)
            force = force / unit
            if misfit.above != 1.0:
                side = np.where(residual > 0, misfit.above, 1.0)
                energy, force, stiff = energy * side, force * side, stiff * side
            if raw:  # d total = total d ln(total), twice
                force, stiff = force * total, stiff * total**2 + force * total
            if weights is not None:
                w = weights[rows]
                energy, force, stiff = energy * w, force * w, stiff * w
            stiff = stiff - force
            p, q, s = term_n / total, term_d / total, term_e / total
            fp, fq, fs, kp, kq = force * p, force * q, force * s, stiff * p, stiff * q
            pp, qq = (kp * p + fp) @ moments_x, (kq * q + fq) @ moments_y
            ss = (stiff * s * s + fs).sum(1)
            pq, ps, qs = (kp * q) @ moments_xy, (kp * s) @ moments_x, (kq * s) @ moments_y
            gp, gq = fp @ moments_x, fq @ moments_y
            gradient = np.stack([gp[:, 0], gq[:, 0], fs.sum(1), -gp[:, 1], -gq[:, 1]], 1)
            upper = (
                *(pp[:, 0], pq[:, 0], ps[:, 0], -pp[:, 1], -pq[:, 2]),
                *(qq[:, 0], qs[:, 0], -pq[:, 1], -qq[:, 1]),
                *(ss, -ps[:, 1], -qs[:, 1]),
                *(pp[:, 2], pq[:, 3]),
                qq[:, 2],
            )
            hessian = np.empty((len(theta), 5, 5))
            i, j = np.triu_indices(5)
            hessian[:, i, j] = hessian[:, j, i] = np.stack(upper, 1)
            if basis is not None:
                gradient, hessian = gradient @ basis, basis.T @ hessian @ basis
            return energy.sum(1), gradient, hessian

        return evaluate


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParametricFit(Fit):
    """Approach 3 on `n_runs` runs. `scatter` is of the log residuals whatever the misfit; `flat` names the constants
    that cannot be told apart, with their correlation; `known` says whether the runs determine them at all; `boot` holds
    the bootstrap replicates."""

    surface: Surface
    tied: bool
    n_runs: int
    flat: tuple[tuple[str, str, float], ...]
    known: Known
    preset: str = "corrected"
    boot: Surface | None = None


def paper_starts() -> np.ndarray:
    """The 4500 starts of appendix D.2, [4500, 5]: columns a, b, e, alpha, beta."""
    ab = np.arange(0.0, 30.0, 5.0)
    e = np.arange(-1.0, 1.5, 0.5)
    exponents = np.arange(0.0, 2.5, 0.5)
    return np.array(list(itertools.product(ab, ab, e, exponents, exponents)))


def few_starts() -> np.ndarray:
    """One in 23 of them, [196, 5]: 23 divides no length of the grid, so that every value along every axis occurs."""
    return paper_starts()[::23]


def fit_parametric(
    runs: Sequence[Run],
    *,
    misfit: Misfit = HUBER,
    tied: bool = False,
    starts: np.ndarray | None = None,
    resampling: Resampling | None = FULL,
    seed: int = 0,
) -> ParametricFit:
    """Approach 3 on the runs with role `isoflop`.

    Args:
      tied: one exponent for N and D (Muennighoff et al. 2023; Gadre et al. 2024).
      starts: [S, 5] in a, b, e, alpha, beta; `paper_starts()` unless given. With `tied` those with alpha = beta.

    Raises:
      FitRefused: as `SurfaceProblem`; `no_optimum` (the best surface does not fall with both N and D).
    """
    problem = SurfaceProblem(runs, tied)
    starts = paper_starts() if starts is None else np.asarray(starts, np.float64)
    starts = starts[starts[:, 3] == starts[:, 4]] if tied else starts
    wide = misfit.narrowing("log") or [Misfit("", "log", 1e-1)]
    minima, agreement = descend(problem, problem.standardise(starts), [*wide, misfit])
    if not problem.usable(minima.theta[:1])[0]:
        surface = problem.surface(minima.theta[0])
        why = "loss must fall with both N and D: widen the range of sizes and tokens"
        exponents = f"alpha = {surface.alpha:.3g}, beta = {surface.beta:.3g}"
        raise FitRefused("no_optimum", f"approach 3: the best surface has {exponents}; {why}")
    fit = describe_fit(problem, minima.theta[0], misfit, agreement, len(starts))
    if resampling is None:
        return fit
    theta, kept = bootstrap(problem, misfit, minima, resampling, np.random.default_rng(seed))
    return dataclasses.replace(fit, boot=problem.surface(theta) if len(theta) else None, boot_kept=kept)


def describe_fit(
    problem: SurfaceProblem, theta: np.ndarray, misfit: Misfit, agreement: float, n_starts: int
) -> ParametricFit:
    """What there is to say about a minimum `theta` [P] of `problem`."""
    value, gradient, _ = problem.objective(misfit)(theta[None], np.zeros(1, int))
    residual = problem.residuals(theta, "log")
    spared = max(1, problem.size - problem.unknowns)
    scatter = float(np.sqrt((residual**2).sum() / spared))
    # Runs far off, of which the fit takes little notice, are no noise of the others; and as many runs as there are
    # unknowns are nearly met by an absolute misfit, whatever their noise.
    typical = 1.4826 * float(np.median(np.sort(np.abs(residual))[min(problem.unknowns, problem.size - 1) :]))
    noise = misfit.noise(min(scatter, _TAIL * float(typical)))
    return ParametricFit(
        surface=problem.surface(theta),
        misfit=misfit,
        tied=problem.tied,
        n_runs=problem.size,
        n_starts=n_starts,
        objective=float(value[0] * problem.unit(misfit) ** 2),
        gradient=float(np.abs(gradient).max()),
        agreement=agreement,
        scatter=scatter,
        flat=_correlated(problem, theta),
        known=known(problem.surface(theta), problem.params, problem.tokens, noise, problem.tied),
    )


def suspects(fit: ParametricFit, runs: Sequence[Run]) -> tuple[tuple[Run, float], ...]:
    """Runs far off the surface, by eight typical residuals (1.48 times the median of absolute values) and at least 5%,
    worst first, with their relative excess; a slip in a table looks like this."""
    fitted = [run for run in runs if run.role == "isoflop"]
    excess = np.array([run.loss / float(fit.surface.loss(run.params, run.tokens)) - 1.0 for run in fitted])
    far = np.abs(excess) > max(_FAR_OFF, _FAR_TIMES * 1.48 * float(np.median(np.abs(excess))))
    return tuple((fitted[i], float(excess[i])) for i in np.argsort(-np.abs(excess)) if far[i])


def _correlated(problem: SurfaceProblem, theta: np.ndarray) -> tuple[tuple[str, str, float], ...]:
    """Pairs of constants the runs determine only together, and their correlation, from the Gauss-Newton covariance."""
    jacobian = problem.jacobian(theta)
    if problem.tied:
        jacobian = np.column_stack([jacobian[:, :3], jacobian[:, 3] + jacobian[:, 4]])
    scale = np.linalg.norm(jacobian, axis=0)
    covariance = np.linalg.pinv((jacobian / scale).T @ (jacobian / scale), hermitian=True)
    sd = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(sd, sd)
    pairs = [(i, j) for i in range(problem.unknowns) for j in range(i) if abs(correlation[i, j]) > _FLAT]
    return tuple((CONSTANTS[j], CONSTANTS[i], float(correlation[i, j])) for i, j in sorted(pairs))
