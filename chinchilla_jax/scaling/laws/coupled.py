"""Does more data help a larger model more, and what does a loss that cannot exceed a guess look like?

In the law of Hoffmann et al. what lack of parameters costs and what lack of tokens costs add up, whatever the other is.
Two forms of 2026 couple them by one curve over the same sum of two powers, so the plain law is a limit of both:

`skaling`, Videau, Youbi-Idrissi, Lopez-Paz and Ahuja 2026 (arXiv 2608.07222): the sum to a power k, E + A (N^-alpha +
R D^-beta)^k. k = 1 is the plain law with B = A R; an inner exponent beta = 1 is that of Kaplan et al. with a floor.

`saturating`, Bryant and Liu 2026 (arXiv 2605.09189): between E and L0, the loss of a model that knows nothing, E +
(L0 - E) h / (1 + h). Where h is small it is the plain law with A = (L0 - E) a and B = (L0 - E) b. L0 is no matter of
fitting where the vocabulary is known: fix it at ln(vocabulary). Left free, few tables determine it, and a, b and L0
move together. `overfitting` is the whole law of that paper: a third term of h, c N^gamma / U^delta, rises with the size
of the model where U unique tokens are few; with U large it is `saturating`.

At a budget C = 6 N D both have the optimum of their inner sum, whose N* grows as C^(beta / (alpha + beta)); the term of
overfitting has no such constant exponent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from chinchilla_jax.scaling.fits.approach3.parametric import SurfaceProblem
from chinchilla_jax.scaling.fits.minimise import HUBER, Misfit
from chinchilla_jax.scaling.fits.resample import LEAST_NOISE
from chinchilla_jax.scaling.fits.surface import FlopsPerToken, Surface
from chinchilla_jax.scaling.laws.dense import PARAMS, TOKENS
from chinchilla_jax.scaling.laws.fit import FormFit, fit_form
from chinchilla_jax.scaling.laws.form import Form, amplitude, form, positive, positives
from chinchilla_jax.scaling.laws.optimum import allocate
from chinchilla_jax.scaling.read.runs import FitRefused, Run

_EXPONENTS = {"alpha": (0.05, 1.0), "beta": (0.05, 1.0)}
_COLUMNS = ("params", "tokens", "flops", "loss")
_AHEAD = 4.0  # times the largest C: where a law without a constant exponent is asked for N*


def _powers(c: SimpleNamespace, x: SimpleNamespace) -> Any:
    """The inner sum of `skaling`."""
    return x.params**-c.alpha + c.R * x.tokens**-c.beta


def _between(c: SimpleNamespace, h: Any) -> Any:
    """From E at h = 0 to L0 at h infinite."""
    return c.E + (c.L0 - c.E) * h / (1.0 + h)


def _lacking(c: SimpleNamespace, x: SimpleNamespace) -> Any:
    """h without overfitting: what parameters and tokens are lacking."""
    return c.a * x.params**-c.alpha + c.b * x.tokens**-c.beta


def _overfit(c: SimpleNamespace, x: SimpleNamespace) -> Any:
    """The term of overfitting without its factor c."""
    return x.params**c.gamma * x.unique_tokens**-c.delta


_SATURATING = (
    amplitude("E", low=0.1, high=1.0),
    amplitude("L0", low=1.2, high=6.0),
    *positives(**_EXPONENTS),
    positive("a", 0.01, 1.0, lambda c, x, xp: x.params**-c.alpha),
    positive("b", 0.01, 1.0, lambda c, x, xp: x.tokens**-c.beta),
)

FORMS = (
    Form(
        "skaling",
        "L = E + A (N^-alpha + R D^-beta)^k",
        "arXiv 2608.07222",
        (PARAMS, TOKENS),
        (
            amplitude("E", low=0.1, high=1.0),
            *positives(**_EXPONENTS, k=(0.3, 1.2)),
            positive("R", 0.05, 20.0, lambda c, x, xp: x.params**c.alpha * x.tokens**-c.beta),
            amplitude("A", lambda c, x, xp: _powers(c, x) ** c.k),
        ),
        lambda c, x, xp: c.E + c.A * _powers(c, x) ** c.k,
    ),
    Form(
        "saturating",
        "L = E + (L0 - E) h / (1 + h), h = a / N^alpha + b / D^beta",
        "arXiv 2605.09189, without repeated tokens",
        (PARAMS, TOKENS),
        _SATURATING,
        lambda c, x, xp: _between(c, _lacking(c, x)),
    ),
    Form(
        "overfitting",
        "L = E + (L0 - E) h / (1 + h), h = a / N^alpha + b / D^beta + c N^gamma / U^delta",
        "arXiv 2605.09189",
        (PARAMS, TOKENS, ("unique_tokens", "distinct tokens U of the data set; D where none is repeated")),
        (
            *_SATURATING,
            *positives(gamma=(0.05, 1.5), delta=(0.05, 1.5)),
            positive("c", 1e-3, 1.0, lambda c, x, xp: _overfit(c, x)),
        ),
        lambda c, x, xp: _between(c, _lacking(c, x) + c.c * _overfit(c, x)),
    ),
)


@dataclasses.dataclass(frozen=True)
class CoupledFit:
    """`skaling` or `saturating` fitted to runs; `inner` is the sum that the form bends, a surface without a floor: the
    loss rises with it, so both have their optimum at the same N and D."""

    fit: FormFit
    inner: Surface

    @property
    def a(self) -> float:
        """Exponent of N* ~ C^a under C = 6 N D."""
        return float(self.inner.a)

    def optimum(self, flops: float, flops_per: FlopsPerToken = 6.0) -> tuple[float, float, float]:
        """N*, D* and the loss there for a budget of `flops`; `flops_per` as in `Surface.optimum`."""
        params, tokens, _ = self.inner.optimum(flops, flops_per)
        return float(params), float(tokens), float(self.fit.predict(params=params, tokens=tokens))


def fit_coupled(
    runs: Sequence[Run],
    name: str,
    *,
    misfit: Misfit = HUBER,
    fixed: Mapping[str, float] | None = None,
    starts: int = 64,
    seed: int = 0,
) -> CoupledFit:
    """The form `name`, `skaling` or `saturating`, through the runs with role `isoflop`.

    `fixed` as in `fit_form`: {"L0": ln(vocabulary)} is how the source of `saturating` uses it. FitRefused `form` for
    another name, `no_optimum` where only N or only D matters, else as `SurfaceProblem` and `fit_form`.
    """
    if name not in ("skaling", "saturating"):
        raise FitRefused("form", f"no coupled form {name!r}; there are skaling, saturating")
    points = SurfaceProblem(runs)  # refuses what no surface can be fitted to
    inputs = {"params": points.params, "tokens": points.tokens}
    fit = fit_form(form(name), inputs, points.loss, misfit, fixed=fixed, starts=starts, seed=seed)
    c = {key: np.float64(value) for key, value in fit.constants.items()}
    first, second = (np.float64(1.0), c["R"]) if name == "skaling" else (c["a"], c["b"])
    _check_both_count(fit, points)
    return CoupledFit(fit, Surface(np.float64(0.0), first, second, c["alpha"], c["beta"]))


def _check_both_count(fit: FormFit, points: SurfaceProblem) -> None:
    """Refuses a law without an optimum, in which only N or only D matters."""
    middle = {"params": np.exp(np.log(points.params).mean()), "tokens": np.exp(np.log(points.tokens).mean())}
    for key, letter in (("params", "N"), ("tokens", "D")):
        values = getattr(points, key)
        low, high = (float(fit.predict(**(middle | {key: end}))) for end in (values.max(), values.min()))
        if not high > low * (1.0 + LEAST_NOISE):
            why = f"over the range of {letter} the loss of the best law falls by {high / low - 1.0:.2g} of itself"
            advice = f"it must fall with both N and D: widen the range of {key}"
            raise FitRefused("no_optimum", f"{fit.form.name}: {why}; {advice}")


def compare_forms(runs: Sequence[Run]) -> tuple[dict[str, Any], ...]:
    """A row for each newer form of the surface, as `fits.variants.compare_variants` has them: the exponent a of N*,
    constants, misfit; `why` where refused. `overfitting` is among them where runs repeat their data; its N* is that at
    4 times the largest C on as many unique tokens as any run had."""
    fits = {"skaling": _row, "saturating": _row}
    if any(run.unique_tokens for run in runs):
        fits["overfitting"] = _overfitting
    rows = []
    for name, row in fits.items():
        try:
            rows.append({"variant": f"{name}, huber"} | row(runs, name))
        except FitRefused as refusal:
            rows.append({"variant": f"{name}, huber", "why": str(refusal)})
    return tuple(rows)


def _row(runs: Sequence[Run], name: str) -> dict[str, Any]:
    coupled = fit_coupled(runs, name)
    return {"a": coupled.a} | _facts(coupled.fit)


def _overfitting(runs: Sequence[Run], name: str) -> dict[str, Any]:
    runs = [run for run in runs if run.role == "isoflop"]
    params, tokens, flops, loss = (np.array([getattr(run, key) for run in runs]) for key in _COLUMNS)
    unique = np.array([run.unique_tokens or run.tokens for run in runs])
    inputs = {"params": params, "tokens": tokens, "unique_tokens": unique}
    fit = fit_form(form(name), inputs, loss, HUBER)
    most = max(run.unique_tokens or 0.0 for run in runs)
    target, per_token = _AHEAD * flops.max(), float(np.median(flops / (params * tokens)))
    best = allocate(lambda n, d: fit.predict(params=n, tokens=d, unique_tokens=np.minimum(most, d)), target, per_token)
    return _facts(fit) | {f"N* at {target:.3g} FLOPs": best.params}


def _facts(fit: FormFit) -> dict[str, Any]:
    """What a row says of a fit; the factors a and b of `saturating` are left out beside the exponent of that name."""
    constants = {key: fit.constants[key] for key in ("E", "A", "alpha", "beta", "k", "L0") if key in fit.constants}
    return constants | {"starts there": f"{fit.agreement:.0%}", "scatter": f"{np.round(fit.scatter, 6):.2%}"}
