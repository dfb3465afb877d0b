"""Which constants of a form lie closest to the data, and which of them do the data not determine?

One fitter for every form. The value, gradient and Hessian come from JAX in double precision; `minimise` brings all
starts to their minima together; the threshold of the Huber loss narrows in stages, as in `parametric.py`, because a
start far from the data sees only absolute values, whose curvature says nothing.

Constants of a scaling law are rarely determined one by one: a fit with twice the A and a slightly larger alpha can be
as good. `FormFit.flat` says which constants may move together and how far; compare predictions, not constants.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from chinchilla_jax.scaling.fits.approach3.objective import HUBER, Misfit
from chinchilla_jax.scaling.fits.minimise import Minima, minimise
from chinchilla_jax.scaling.fits.resample import Resampling, interval
from chinchilla_jax.scaling.laws.form import Constant, Form
from chinchilla_jax.scaling.read.runs import FitRefused

AGREEMENT = 1e-3  # a start agrees when its objective is within this relative distance of the best
MOVE = 1e-3  # root mean square relative change of the predictions along a flat direction
FLAT = 0.1  # a direction is flat when some constant may change by this share meanwhile
_EXACT = 1e-6  # relative residuals below this are a perfect fit; the rest is rounding
_BATCH = 64
_BOOT_SEEDS = 2
# A fit evaluates its objective a few hundred times for milliseconds: compiling fast matters more than running fast.
_COMPILER = {"xla_backend_optimization_level": 0}


@dataclasses.dataclass(frozen=True)
class FlatDirection:
    """Constants that may move together without moving the predictions.

    `moves` maps each fitted constant to a change of its logarithm; all of them together change the predictions by 0.1%
    (root mean square over the points). A change beyond about 1 means that the data do not determine the constant.
    """

    moves: Mapping[str, float]

    @property
    def names(self) -> tuple[str, ...]:
        """The constants that move by a tenth of the largest change or more."""
        largest = max(abs(move) for move in self.moves.values())
        return tuple(name for name, move in self.moves.items() if abs(move) >= 0.1 * largest)

    def describe(self) -> str:
        """The larger changes as factors, e.g. `A x1.35, alpha x1.05`."""
        return ", ".join(f"{name} x{np.exp(np.clip(self.moves[name], -99, 99)):.3g}" for name in self.names)


@dataclasses.dataclass(frozen=True)
class FormFit:
    """A form fitted to n points.

    `constants` by name, the fixed ones included; `free` the names that were fitted; `predictions` [n]; `objective` the
    plain sum of the misfit; `gradient` its largest component in searched coordinates, in units of min(delta, 0.01)^2;
    `agreement` the share of the `n_starts` starts that reached this minimum; `scatter` the root mean square of the
    residuals, corrected for the free constants; `flat` the directions that the data leave open, flattest first. `boot`
    holds bootstrap replicates of the free constants [B], `boot_kept` the share that had a minimum.
    """

    form: Form
    constants: Mapping[str, float]
    free: tuple[str, ...]
    predictions: np.ndarray
    misfit: Misfit
    objective: float
    gradient: float
    converged: bool
    agreement: float
    scatter: float
    n_starts: int
    flat: tuple[FlatDirection, ...]
    boot: Mapping[str, np.ndarray] | None = None
    boot_kept: float = 1.0

    def predict(self, **inputs: Any) -> np.ndarray:
        """The fitted law at other inputs."""
        return self.form.value(self.constants, **inputs)

    def interval(self, level: float, **inputs: float) -> tuple[float, float]:
        """Central bootstrap interval of the law (not of one more run) at one point, e.g. level 0.95.

        Raises:
          FitRefused: `no_replicates`, when the fit was made without resampling.
        """
        if self.boot is None:
            raise FitRefused("no_replicates", "fit with resampling=Resampling(...) to get intervals")
        return interval(self.form.value({**self.constants, **self.boot}, **inputs), level)


def fit_form(
    form: Form,
    inputs: Mapping[str, Any],
    target: Any,
    misfit: Misfit = HUBER,
    *,
    fixed: Mapping[str, float] | None = None,
    starts: int | Sequence[Mapping[str, float]] = 64,
    seed: int = 0,
    resampling: Resampling | None = None,
) -> FormFit:
    """Fits the constants of `form` to points.

    Args:
      inputs: an array [n] or a number for each input of the form.
      target: [n], what the form gives.
      misfit: with `raw` residuals, in the unit of the target.
      fixed: constants held at a value, e.g. those of a base law fitted before.
      starts: how many scrambled Sobol points in the ranges the form states, or the constants to start from. Forms of
        nine or ten constants deserve 256 when `agreement` is low.
      seed: of the starts and of the resampling.

    Raises:
      FitRefused: `inputs`, `constants` (unknown or missing names), `points` (not finite, or not positive where the
        objective takes logarithms), `few_points` (no more points than free constants) or `no_minimum` (no start leads
        anywhere finite).
    """
    problem = _Problem(form, inputs, target, misfit, fixed or {})
    theta = problem.starts(starts, seed) if isinstance(starts, int) else problem.encode(starts)
    minima = None
    for threshold in [d for d in (1e-1, 1e-2, 1e-3, 1e-4) if d > misfit.delta * 1.001] + [misfit.delta]:
        minima = problem.minimise(theta, threshold)
        theta = minima.theta
    value = np.where(np.isfinite(minima.value), minima.value, np.inf)
    order = np.argsort(value, kind="stable")
    best = int(order[0])
    if not np.isfinite(value[best]):
        raise FitRefused("no_minimum", f"law {form.name}: no start gives finite values; check the units of the inputs")
    constants = problem.decode(minima.theta[[best]])
    constants = {name: float(constants[name][0]) for name in form.constant_names}
    predictions = form.value(constants, **problem.inputs)
    logs = misfit.residual == "log"
    residuals = np.log(predictions / problem.target) if logs else predictions - problem.target
    allowed = value[best] * (1.0 + AGREEMENT) + 0.5 * problem.size * (_EXACT / problem.unit) ** 2
    fit = FormFit(
        form,
        constants,
        problem.free,
        predictions,
        misfit,
        float(value[best] * problem.unit**2),
        float(minima.gradient[best]),
        bool(minima.gradient[best] < 1e-2),
        float((value <= allowed).mean()),
        float(np.sqrt((residuals**2).sum() / max(1, problem.size - len(problem.free)))),
        len(theta),
        _flat_directions(form, constants, problem),
    )
    if resampling is None:
        return fit
    boot = _bootstrap(problem, minima, order, resampling, np.random.default_rng(seed))
    good = np.isfinite(boot).all(1)
    replicates = problem.decode(boot[good])
    return dataclasses.replace(fit, boot={k: replicates[k] for k in problem.free}, boot_kept=float(good.mean()))


class _Problem:
    """One data set for one form: checked, and with the way between searched quantities and constants."""

    def __init__(self, form: Form, inputs: Mapping[str, Any], target: Any, misfit: Misfit, fixed: Mapping):
        form.check_names("inputs", form.input_names, inputs)
        unknown = [name for name in fixed if name not in form.constant_names]
        if unknown:
            form.check_names("constants", form.constant_names, dict.fromkeys((*form.constant_names, *unknown)))
        self.form, self.misfit = form, misfit
        self.fixed = {name: float(value) for name, value in fixed.items()}
        self.free = tuple(name for name in form.constant_names if name not in fixed)
        self.target = np.atleast_1d(np.asarray(target, np.float64))
        self.size = len(self.target)
        try:
            self.inputs = {k: np.broadcast_to(np.asarray(v, np.float64), self.target.shape) for k, v in inputs.items()}
        except ValueError:
            shapes = ", ".join(f"{k} {np.shape(v)}" for k, v in inputs.items())
            raise FitRefused("points", f"law {form.name}: target {self.target.shape} but {shapes}") from None
        for name, values in (*self.inputs.items(), ("target", self.target)):
            if not np.isfinite(values).all():
                raise FitRefused("points", f"law {form.name}: {name} holds values that are not finite")
        if misfit.residual == "log" and not (self.target > 0).all():
            raise FitRefused("points", f"law {form.name}: the target must be positive for its logarithm")
        if self.size <= len(self.free):
            raise FitRefused("few_points", f"law {form.name} has {len(self.free)} free constants: needs more points "
                             f"than that, got {self.size}")  # fmt: skip
        self.typical = float(np.median(np.abs(self.target)))
        # Residuals are measured in this unit, which brings the objective near the number of points.
        self.unit = min(misfit.delta, 1e-2 * (1.0 if misfit.residual == "log" else self.typical))
        self.free_constants = tuple(c for c in form.constants if c.name in self.free)

    def starts(self, count: int, seed: int) -> np.ndarray:
        """[count, P] searched quantities, spread over the ranges the form states."""
        from scipy.stats import qmc  # here, because importing it takes longer than most fits

        unit = qmc.Sobol(len(self.free), rng=seed).random_base2(max(0, count - 1).bit_length())[:count]
        low, high = (np.array([_searched(c, getattr(c, end)) for c in self.free_constants]) for end in ("low", "high"))
        return low + (high - low) * unit

    def encode(self, starts: Sequence[Mapping[str, float]]) -> np.ndarray:
        """[S, P] searched quantities of sets of constants."""
        x, rows = SimpleNamespace(**self.inputs), []
        for start in starts:
            whole = {**start, **self.fixed}
            self.form.check_names("constants", self.form.constant_names, whole)
            c = SimpleNamespace(**whole)
            rows.append([k.encode(whole[k.name], c, x, self.typical) for k in self.free_constants])
        return np.array(rows, np.float64)

    def decode(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Searched quantities [S, P] -> constants [S]."""
        x = SimpleNamespace(**self.inputs)
        rows = [vars(_decode(self.form, self.free, self.fixed, row, x, self.typical, np)) for row in theta]
        return {name: np.array([float(row[name]) for row in rows]) for name in self.form.constant_names}

    def minimise(self, theta: np.ndarray, delta: float, weights: np.ndarray | None = None, **options: Any) -> Minima:
        """`minimise` from `theta` [B, P] with this threshold, the objective in units of `unit`^2.

        `weights` [R, n] of the points serve B / R consecutive rows each.
        """
        import jax

        compiled = _derivatives(self.form, self.free, self.misfit.residual)
        width = np.float64(delta / self.unit)
        weights = np.ones((1, self.size)) if weights is None else weights
        rows_per_weight = len(theta) // len(weights)
        batch = min(_BATCH, 1 << (len(theta) - 1).bit_length())  # one size for all calls, so that it compiles once

        def evaluate(theta: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            count = len(theta)
            pad = np.minimum(np.arange(batch), count - 1)
            weight = weights[rows[pad] // rows_per_weight]
            # Both are settings of a thread, and `minimise` uses several. Accelerators have no fast double precision.
            with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
                out = compiled(theta[pad], self.fixed, self.inputs, self.target, weight, width, self.unit, self.typical)
                return tuple(np.array(part)[:count] for part in out)

        return minimise(evaluate, theta, chunk=batch, **options)


def _searched(constant: Constant, value: float) -> float:
    return value if constant.kind == "signed" else np.log(value)


def _decode(
    form: Form, free: tuple[str, ...], fixed: Mapping, u: Any, x: SimpleNamespace, typical: Any, xp: ModuleType
) -> SimpleNamespace:
    c = SimpleNamespace(**fixed)
    for constant in form.decoding_order:
        if constant.name not in fixed:
            setattr(c, constant.name, constant.decode(u[free.index(constant.name)], c, x, typical, xp))
    return c


@functools.cache
def _derivatives(form: Form, free: tuple[str, ...], scale: str) -> Callable:
    """Value [B], slope [B, P] and Hessian [B, P, P] at theta [B, P], compiled; `width` is delta in units of `unit`."""
    import jax
    import jax.numpy as jnp

    def energy(u, fixed, inputs, target, weight, width, unit, typical):
        x = SimpleNamespace(**inputs)
        predicted = form.law(_decode(form, free, fixed, u, x, typical, jnp), x, jnp)
        gap = jnp.log(predicted) - jnp.log(target) if scale == "log" else predicted - target
        residual = gap / unit
        force = jnp.clip(residual, -width, width)
        return (weight * force * (residual - 0.5 * force)).sum()

    def everything(u, *data):
        def gradient(v):
            value, slope = jax.value_and_grad(energy)(v, *data)
            return slope, (value, slope)

        curvature, (value, slope) = jax.jacfwd(gradient, has_aux=True)(u)
        return value, slope, curvature

    batched = jax.vmap(everything, in_axes=(0, None, None, None, 0, None, None, None))
    return jax.jit(batched, compiler_options=_COMPILER)


def _flat_directions(form: Form, constants: Mapping[str, float], problem: _Problem) -> tuple[FlatDirection, ...]:
    """Directions of the logarithms of the constants in which the predictions hardly move.

    From J^T J, with J the derivatives of the log predictions: the Hessian of the squared log objective where the fit is
    good. The Huber objective's own Hessian counts only the few points within its threshold.
    """
    names = [name for name in problem.free if constants[name] != 0.0]
    step, columns = 1e-5, []
    scale = np.maximum(np.abs(problem.target), 1e-3 * problem.typical)
    for name in names:
        moved = ({**constants, name: constants[name] * np.exp(s)} for s in (step, -step))
        up, down = (form.value(values, **problem.inputs) for values in moved)
        columns.append((up - down) / (2.0 * step * scale))
    jacobian = np.stack(columns, 1)
    if not np.isfinite(jacobian).all():
        return ()
    roots, axes = np.linalg.eigh(jacobian.T @ jacobian / problem.size)
    found = []
    for root, axis in zip(roots, axes.T, strict=True):
        moves = axis * MOVE / np.sqrt(max(root, 1e-24))
        largest = moves[np.abs(moves).argmax()]
        if abs(largest) >= FLAT:
            moves = moves * np.sign(largest)
            found.append(FlatDirection(dict(zip(names, moves.tolist(), strict=True))))
    return tuple(found)


def _bootstrap(
    problem: _Problem, minima: Minima, order: np.ndarray, resampling: Resampling, rng: np.random.Generator
) -> np.ndarray:
    """[R, P] minima of resampled problems, each the best of the descents from the best distinct minima."""
    weights = resampling.weights(problem.size, rng)
    ranked = minima.theta[order][np.isfinite(minima.value[order])]
    _, first = np.unique(np.round(ranked, 3), axis=0, return_index=True)
    seeds = ranked[np.sort(first)[:_BOOT_SEEDS]]
    theta = np.tile(seeds, (len(weights), 1))  # all seeds for one resample, then for the next
    found = problem.minimise(theta, problem.misfit.delta, weights, tolerance=1e-4, max_steps=60)
    value = np.where(np.isfinite(found.value), found.value, np.inf).reshape(len(weights), -1)
    chosen = found.theta.reshape(len(weights), len(seeds), -1)[np.arange(len(weights)), value.argmin(1)]
    return np.where(np.isfinite(value.min(1))[:, None], chosen, np.nan)
