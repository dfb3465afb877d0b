"""Which constants of a form lie closest to the data, and which of them do the data not determine?

Any form is fitted by `fits.minimise`, in double precision; its gradient and Hessian come from JAX. Constants are
rarely determined one by one: a fit with twice the A and a slightly larger alpha can be as good. `FormFit.flat` says
which may move together and how far; compare predictions, not constants.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from chinchilla_jax.scaling.fits.minimise import HUBER, SQUARED_RAW, Fit, Misfit, Objective, Problem, bootstrap, descend
from chinchilla_jax.scaling.fits.resample import Resampling, interval
from chinchilla_jax.scaling.laws.form import Form, form
from chinchilla_jax.scaling.read.runs import FitRefused

MOVE = 1e-3  # root mean square relative change of the predictions along a flat direction
FLAT = 0.1  # a direction is flat when some constant may change by this share meanwhile
# A fit evaluates its objective a few hundred times for milliseconds: compiling fast matters more than running fast.
_COMPILER = {"xla_backend_optimization_level": 0}
_LEAST_BATCH, _MOST_BATCH = 8, 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class FormFit(Fit):
    """A form fitted to n points: `constants` by name, the fixed ones included; `free` the names that were fitted;
    `predictions` [n]; `scatter` of residuals as in the misfit; `boot`, replicates [B] of the free constants.

    `flat` are the directions that the data leave open, flattest first. Each maps the free constants to changes of their
    logarithms that together move the predictions by 0.1% (root mean square over the points); a change beyond about 1
    means that the data do not determine the constant.
    """

    form: Form
    constants: Mapping[str, float]
    free: tuple[str, ...]
    predictions: np.ndarray
    flat: tuple[Mapping[str, float], ...]
    boot: Mapping[str, np.ndarray] | None = None

    def predict(self, **inputs: Any) -> np.ndarray:
        """The fitted law at other inputs."""
        return self.form.value(self.constants, **inputs)

    def interval(self, level: float, **inputs: float) -> tuple[float, float]:
        """Central bootstrap interval of the law (not of one more run) at one point; FitRefused `no_replicates` when the
        fit was made without resampling."""
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
    starts: int = 64,
    seed: int = 0,
    resampling: Resampling | None = None,
) -> FormFit:
    """Fits the constants of `form` to points.

    Args:
      inputs: an array [n] or a number for each input of the form; target: [n], what the form gives.
      fixed: constants held at a value, e.g. those of a base law fitted before.
      starts: how many scrambled Sobol points in the ranges the form states. Forms of nine or ten constants deserve 256
        when `agreement` is low.

    Raises:
      FitRefused: `inputs`, `constants` (unknown or missing names), `points` (not finite, or not positive where the
        objective takes logarithms), `few_points` (no more points than free constants) or `no_minimum` (no start leads
        anywhere finite).
    """
    problem = _FormProblem(form, inputs, target, misfit, fixed or {})
    theta = problem.starts(starts, seed)
    problem.chunk = min(max(_LEAST_BATCH, 1 << (len(theta) - 1).bit_length()), _MOST_BATCH)
    minima, agreement = descend(problem, theta, [*misfit.narrowing(misfit.residual), misfit])
    if not np.isfinite(minima.value[0]):
        raise FitRefused("no_minimum", f"law {form.name}: no start gives finite values; check the units of the inputs")
    constants = {name: float(values[0]) for name, values in problem.decode(minima.theta[:1]).items()}
    predictions = form.value(constants, **problem.inputs)
    logs = misfit.residual == "log"
    residuals = np.log(predictions / problem.target) if logs else predictions - problem.target
    boot, kept = None, 1.0
    if resampling is not None:
        resampled, kept = bootstrap(problem, misfit, minima, resampling, np.random.default_rng(seed))
        replicates = problem.decode(resampled)
        boot = {name: replicates[name] for name in problem.free}
    return FormFit(
        form=form,
        constants=constants,
        free=problem.free,
        predictions=predictions,
        misfit=misfit,
        objective=float(minima.value[0] * problem.unit(misfit) ** 2),
        gradient=float(minima.gradient[0]),
        agreement=agreement,
        scatter=float(np.sqrt((residuals**2).sum() / max(1, problem.size - len(problem.free)))),
        n_starts=len(theta),
        flat=_flat_directions(constants, problem),
        boot=boot,
        boot_kept=kept,
    )


def fit_widths(params: Sequence[float], losses: Sequence[float], *, seed: int = 0) -> FormFit:
    """The law `width` through the losses of narrow proxies [n], n >= 4, at one step; `.predict(params=...)` is the loss
    at the target width. Refused as `fit_form`."""
    return fit_form(form("width"), {"params": params}, losses, SQUARED_RAW, seed=seed)


class _FormProblem(Problem):
    """One data set for one form. All evaluations are padded to `chunk` problems, so that one size is compiled."""

    def __init__(self, form: Form, inputs: Mapping[str, Any], target: Any, misfit: Misfit, fixed: Mapping[str, float]):
        form.check_names("inputs", form.input_names, inputs)
        form.check_names("constants", form.constant_names, (*form.constant_names, *fixed))
        self.form = form
        self.fixed = {name: float(value) for name, value in fixed.items()}
        self.searched = tuple(constant for constant in form.constants if constant.name not in fixed)
        self.free = tuple(constant.name for constant in self.searched)
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
            why = f"{len(self.free)} free constants: needs more points than that, got {self.size}"
            raise FitRefused("few_points", f"law {form.name} has {why}")
        self.typical = float(np.median(np.abs(self.target)))

    def starts(self, count: int, seed: int) -> np.ndarray:
        """[count, P] searched quantities, spread over the ranges the form states."""
        from scipy.stats import qmc  # here, because importing it takes longer than most fits

        unit = qmc.Sobol(len(self.free), rng=seed).random_base2(max(0, count - 1).bit_length())[:count]
        ends = [[c.low, c.high] if c.kind == "signed" else np.log([c.low, c.high]) for c in self.searched]
        low, high = np.array(ends).T
        return low + (high - low) * unit

    def decode(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Searched quantities [S, P] -> constants [S]."""
        x = SimpleNamespace(**self.inputs)
        rows = [vars(_decode(self.form, self.free, self.fixed, row, x, self.typical, np)) for row in theta]
        return {name: np.array([float(row[name]) for row in rows]) for name in self.form.constant_names}

    def objective(self, misfit: Misfit, weights: np.ndarray | None = None) -> Objective:
        """As `minimise.Problem` says."""
        import jax

        compiled = _derivatives(self.form, self.free, misfit.residual)
        unit = self.unit(misfit)
        data = self.fixed, self.inputs, self.target

        def evaluate(theta: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            padded = np.minimum(np.arange(self.chunk), len(theta) - 1)
            weight = np.ones((self.chunk, self.size)) if weights is None else weights[rows[padded]]
            # Both are settings of a thread, and `minimise` uses several. Accelerators have no fast double precision.
            with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
                out = compiled(theta[padded], *data, weight, (misfit.delta / unit, misfit.above), unit, self.typical)
                value, gradient, hessian = (np.array(part)[: len(theta)] for part in out)
            return value, gradient, hessian

        return evaluate


def _decode(
    form: Form, free: tuple[str, ...], fixed: Mapping, u: Any, x: SimpleNamespace, typical: Any, xp: ModuleType
) -> SimpleNamespace:
    """The constants that searched quantities `u` [P] stand for."""
    c = SimpleNamespace(**fixed)
    for constant in form.decoding_order:
        if constant.name not in fixed:
            setattr(c, constant.name, constant.decode(u[free.index(constant.name)], c, x, typical, xp))
    return c


@functools.cache
def _derivatives(form: Form, free: tuple[str, ...], scale: str) -> Callable:
    """Value [B], slope [B, P] and Hessian [B, P, P] at theta [B, P], compiled; `shape` is delta in units of
    `unit`, and how much more a target predicted too high counts."""
    import jax
    import jax.numpy as jnp

    def energy(
        u: Any, fixed: Any, inputs: Any, target: Any, weight: Any, shape: Any, unit: Any, typical: Any
    ) -> jax.Array:
        x = SimpleNamespace(**inputs)
        predicted = form.law(_decode(form, free, fixed, u, x, typical, jnp), x, jnp)
        gap = jnp.log(predicted) - jnp.log(target) if scale == "log" else predicted - target
        residual, (width, above) = gap / unit, shape
        force = jnp.clip(residual, -width, width)
        return (weight * jnp.where(residual > 0, above, 1.0) * force * (residual - 0.5 * force)).sum()

    def everything(u: jax.Array, *data: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        def gradient(v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            value, slope = jax.value_and_grad(energy)(v, *data)
            return slope, (value, slope)

        curvature, (value, slope) = jax.jacfwd(gradient, has_aux=True)(u)
        return value, slope, curvature

    batched = jax.vmap(everything, in_axes=(0, None, None, None, 0, None, None, None))
    return jax.jit(batched, compiler_options=_COMPILER)


def _flat_directions(constants: Mapping[str, float], problem: _FormProblem) -> tuple[dict[str, float], ...]:
    """Of the logarithms of the constants, by J^T J with J the derivatives of the log predictions: the Hessian of the
    squared log objective where the fit is good. The Huber objective's own counts only points within its threshold."""
    names = [name for name in problem.free if constants[name] != 0.0]
    step, columns = 1e-5, []
    scale = np.maximum(np.abs(problem.target), 1e-3 * problem.typical)
    for name in names:
        moved = ({**constants, name: constants[name] * np.exp(s)} for s in (step, -step))
        up, down = (problem.form.value(values, **problem.inputs) for values in moved)
        columns.append((up - down) / (2.0 * step * scale))
    jacobian = np.stack(columns, 1)
    if not np.isfinite(jacobian).all():
        return ()
    roots, axes = np.linalg.eigh(jacobian.T @ jacobian / problem.size)
    directions = []
    for root, axis in zip(roots, axes.T, strict=True):
        moves = axis * MOVE / np.sqrt(max(root, 1e-24))
        largest = moves[np.abs(moves).argmax()]
        if abs(largest) >= FLAT:
            moves *= np.sign(largest)
            directions.append(dict(zip(names, moves.tolist(), strict=True)))
    return tuple(directions)
