"""Which further runs narrow the prediction for a target budget the most?

Optimal design (Atkinson and Donev 1992, chapters 9 to 12; Fedorov 1972 for the exchange). Near its minimum the fit of
approach 3 is a linear regression of the log losses on five unknowns: a run at (N, D) has the row j = d ln L / d theta
and the run-to-run scatter s as its error. The unknowns' covariance is V = s^2 (sum j j^T)^-1, and a quantity with
gradient c has variance c^T V c (the delta method). A further run changes V by a rank-one update (Sherman and Morrison
1950) and so lowers that variance by

    (c^T V j)^2 / (s^2 + j^T V j)

whatever loss it will turn out to have. Runs are chosen from a grid of (N, D) greedily, by this figure and by this
figure per FLOP, then exchanged one at a time as long as that helps; the better of the two sets is the answer.

The choice trusts the law. Candidates therefore stay within the tokens per parameter of the runs there are: nothing is
known of the law beyond, and a design that goes there to measure its constants would measure its misfit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from chinchilla_jax.scaling.answers.answers import Answer
from chinchilla_jax.scaling.answers.decide import per_token
from chinchilla_jax.scaling.fits.approach3.parametric import ParametricFit, fit_parametric
from chinchilla_jax.scaling.fits.surface import FlopsPerToken, Surface
from chinchilla_jax.scaling.read.runs import FitRefused, Run, flops_per_token

QUANTITIES = ("loss", "params")
LEVEL_80 = 1.2815515655446004  # half width of a central 80% interval in standard deviations of a normal law
_GRID = 64  # values of N, and of C, among the candidates
_PASSES = 20
_RIDGE = 1e-12  # relative; keeps a law without E, or without one of its terms, solvable


@dataclasses.dataclass(frozen=True)
class NextRun:
    """A run to add: N, D, C; `deviation` is the standard deviation of ln(quantity) once it and those before are in."""

    params: float
    tokens: float
    flops: float
    deviation: float


@dataclasses.dataclass(frozen=True)
class NextRuns:
    """Further runs for a narrower prediction at `budget` FLOPs.

    `quantity` is `loss` (the law's lowest loss at the budget) or `params` (N* there), `value` its value now. `runs` are
    in the order in which to train them: the largest narrowing per FLOP first. `before`, `after` and `repeated` are
    standard deviations of ln(quantity): now, with the runs, and with their FLOPs spent on repeating all present runs in
    proportion. They describe the law's own uncertainty; a single trained run scatters about it by `scatter` more.
    """

    budget: float
    allowance: float
    quantity: str
    value: float
    runs: tuple[NextRun, ...]
    before: float
    after: float
    repeated: float
    scatter: float

    @property
    def flops(self) -> float:
        """FLOPs of all runs together."""
        return sum(run.flops for run in self.runs)

    def interval(self, deviation: float) -> tuple[float, float]:
        """The central 80% interval of the quantity for one of the standard deviations."""
        return self.value * math.exp(-LEVEL_80 * deviation), self.value * math.exp(LEVEL_80 * deviation)


def next_runs(
    runs: Sequence[Run],
    budget: float,
    allowance: float,
    count: int = 3,
    *,
    quantity: str = "loss",
    fit: ParametricFit | None = None,
    flops_per: FlopsPerToken | None = None,
) -> NextRuns:
    """The at most `count` runs within `allowance` FLOPs that leave the narrowest interval at `budget`.

    Args:
      runs: the finished ones; those with role `isoflop` are fitted.
      allowance: FLOPs for all new runs together, counted as `runs` count theirs.
      quantity: `loss` or `params`.
      fit: approach 3 on the same runs; made here unless given.
      flops_per: training FLOPs of a token over N, as in `Surface.optimum`; by default read off the runs.

    Raises:
      FitRefused: approach 3 refuses the runs; `quantity`, `count`, `budget` or `allowance` cannot be met.
    """
    fitted = [run for run in runs if run.role == "isoflop"]
    if quantity not in QUANTITIES:
        raise FitRefused("quantity", f"unknown quantity {quantity!r}; one of {', '.join(QUANTITIES)}")
    if count < 1:
        raise FitRefused("count", f"at least one run must be asked for, got {count}")
    if not 0.0 < budget < math.inf:
        raise FitRefused("budget", f"the target budget must be positive and finite, got {budget}")
    fit = fit or fit_parametric(fitted, resampling=None)
    flops_per = flops_per if flops_per is not None else flops_per_token(fitted)
    design = Design(fit.surface, [r.params for r in fitted], [r.tokens for r in fitted], _noise(fit))
    gradient, value = design.target(budget, flops_per, quantity)
    params, tokens, flops = _candidates(fitted, flops_per, allowance)
    start = _Choice(design, gradient, design.rows(params, tokens), flops, allowance)
    chosen = min((start.exchanged(start.greedy(count, power)) for power in (0.0, 1.0)), key=start.variance)
    made, deviations = start.in_order(chosen)
    before = math.sqrt(start.variance(()))
    repeated = before / math.sqrt(1.0 + float(flops[made].sum()) / sum(run.flops for run in fitted))
    rows = zip(params[made].tolist(), tokens[made].tolist(), flops[made].tolist(), deviations, strict=True)
    found = tuple(NextRun(*row) for row in rows)
    return NextRuns(budget, allowance, quantity, value, found, before, deviations[-1], repeated, fit.scatter)


def answer(chosen: NextRuns) -> Answer:
    """The runs with what each leaves of the interval."""
    what = {"loss": "Predicted loss", "params": "Predicted N*"}[chosen.quantity]
    before, after = chosen.interval(chosen.before), chosen.interval(chosen.after)
    rows = []
    for number, run in enumerate(chosen.runs, 1):
        row = {"run": str(number), "N": run.params, "D": run.tokens, "D/N": run.tokens / run.params, "C": run.flops}
        rows.append(row | {"80% after it": f"+-{LEVEL_80 * run.deviation:.3%}"})
    notes = (
        f"With these {len(chosen.runs)} runs, {chosen.flops:.3g} of {chosen.allowance:.3g} FLOPs allowed: 80% "
        f"{after[0]:.5g} to {after[1]:.5g}, {1 - chosen.after / chosen.before:.0%} narrower",
        f"The same FLOPs on repeats of the present runs: {1 - chosen.repeated / chosen.before:.0%} narrower",
    )
    title = (
        f"{what} at C = {chosen.budget:.4g}: {chosen.value:.5g}, 80% {before[0]:.5g} to {before[1]:.5g} "
        f"(+-{LEVEL_80 * chosen.before:.3%}); further runs that narrow it most"
    )
    return Answer("more_runs", title, tuple(rows), notes)


class Design:
    """Approach 3 as a linear regression about a fitted law: what its unknowns' covariance says about a target.

    The unknowns are ln A', ln B', ln E, alpha and beta, where A' and B' are the terms at the centre of the data; in
    these coordinates they are of about the same size and far less correlated than as printed.

    Args:
      params, tokens: [n] of the runs there are.
      noise: variance of one run's log loss, as it counts in the fit.
    """

    def __init__(self, surface: Surface, params: Sequence[float], tokens: Sequence[float], noise: float):
        self.surface, self.noise = surface, noise
        self.centre = float(np.log(params).mean()), float(np.log(tokens).mean())
        rows = self.rows(np.asarray(params), np.asarray(tokens))
        information = rows.T @ rows / noise
        information += _RIDGE * np.trace(information) * np.eye(5)
        self.covariance = np.linalg.inv(information)

    def rows(self, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """d ln L / d theta at (N, D), [..., 5]: the three terms' shares of the loss, and the exponents' effect."""
        s = self.surface
        x, y = np.log(params) - self.centre[0], np.log(tokens) - self.centre[1]
        loss = s.loss(params, tokens)
        of_n, of_d = s.A * np.power(params, -s.alpha) / loss, s.B * np.power(tokens, -s.beta) / loss
        return np.stack([of_n, of_d, s.E / loss, -of_n * x, -of_d * y], -1)

    def target(self, budget: float, flops_per: FlopsPerToken, quantity: str) -> tuple[np.ndarray, float]:
        """Gradient [5] of ln(quantity) at the optimum of `budget`, and the quantity there.

        At the optimum a change of N changes the loss in second order only, so the gradient of ln L* is the row of the
        run at (N*, D*). N* itself solves alpha A N^-alpha = m beta B D^-beta with m = d ln c(N) / d ln N, c the FLOPs
        of a token, and moves with the unknowns as the implicit function theorem says.
        """
        s = self.surface
        params, tokens, loss = (float(v) for v in s.optimum(budget, flops_per))
        if quantity == "loss":
            return self.rows(np.array(params), np.array(tokens)), loss
        m, bend = 1.0, 0.0
        if callable(flops_per):
            # Over a factor of e in N: a count read off the runs is a broken line, whose corners mean nothing.
            low, middle, high = (math.log(flops_per(np.array(params * math.exp(step)))) for step in (-0.5, 0.0, 0.5))
            m, bend = high - low, 4.0 * (high - 2.0 * middle + low)
        x, y = math.log(params) - self.centre[0], math.log(tokens) - self.centre[1]
        along = np.array([1.0, -1.0, 0.0, 1.0 / s.alpha - x, y - 1.0 / s.beta])
        return along / (s.alpha + m * s.beta + bend / m), params


@dataclasses.dataclass(frozen=True)
class _Choice:
    """Which candidates to add: their rows [n, 5] and FLOPs [n], for the smallest variance along `gradient`."""

    design: Design
    gradient: np.ndarray
    rows: np.ndarray
    flops: np.ndarray
    allowance: float

    def variance(self, chosen: Sequence[int]) -> float:
        """c^T V c with the chosen runs added."""
        return float(self.gradient @ self._with(chosen) @ self.gradient)

    def _with(self, chosen: Sequence[int]) -> np.ndarray:
        """V after a rank-one update for each chosen run."""
        v = self.design.covariance
        for i in chosen:
            along = v @ self.rows[i]
            v = v - np.outer(along, along) / (self.design.noise + self.rows[i] @ along)
        return v

    def _gains(self, chosen: Sequence[int], left: float) -> np.ndarray:
        """[n]: what each candidate takes off the variance; minus infinity if it is chosen already or too expensive."""
        v = self._with(chosen)
        along = self.rows @ v
        gains = (along @ self.gradient) ** 2 / (self.design.noise + (along * self.rows).sum(1))
        gains[list(chosen)] = -np.inf
        return np.where(self.flops <= left * (1.0 + 1e-9), gains, -np.inf)

    def greedy(self, count: int, power: float) -> list[int]:
        """One run after the other, each the best by gain / FLOPs^power."""
        chosen: list[int] = []
        while len(chosen) < count:
            score = self._gains(chosen, self.allowance - self.flops[chosen].sum()) / self.flops**power
            best = int(score.argmax())
            if not score[best] > 0.0:
                break
            chosen.append(best)
        return chosen

    def exchanged(self, chosen: list[int]) -> list[int]:
        """`chosen` after replacing one run at a time by a better one, until none is."""
        for _ in range(_PASSES):
            before = self.variance(chosen)
            for place in range(len(chosen)):
                others = chosen[:place] + chosen[place + 1 :]
                chosen[place] = int(self._gains(others, self.allowance - self.flops[others].sum()).argmax())
            if self.variance(chosen) > before * (1.0 - 1e-6):
                break
        return chosen

    def in_order(self, chosen: Sequence[int]) -> tuple[list[int], list[float]]:
        """The same runs by gain per FLOP, and the standard deviation after each."""
        made: list[int] = []
        while len(made) < len(chosen):
            score = self._gains(made, np.inf) / self.flops
            made.append(max((i for i in chosen if i not in made), key=lambda i: score[i]))
        return made, [math.sqrt(self.variance(made[: n + 1])) for n in range(len(made))]


def _noise(fit: ParametricFit) -> float:
    """Variance of a log residual as it counts: the scatter, times what a robust misfit pays for being one.

    Huber's estimator with threshold k scatters has variance E[psi^2] / E[psi']^2 under normal errors: 1 for large k,
    pi / 2 for small (Huber 1964). The paper's threshold of 1e-3 is small for most studies.
    """
    scatter = max(fit.scatter, 1e-9)
    k = fit.misfit.delta / scatter
    if not math.isfinite(k) or k > 6.0:
        return scatter**2
    inside, density = math.erf(k / math.sqrt(2.0)), math.exp(-0.5 * k * k) / math.sqrt(2.0 * math.pi)
    return scatter**2 * (inside - 2.0 * k * density + k * k * (1.0 - inside)) / inside**2


def _candidates(
    runs: Sequence[Run], flops_per: FlopsPerToken, allowance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N, D, C [n]: a grid in ln N and ln C, from the smallest run to the allowance, within the runs' range of D/N."""
    params = np.array([run.params for run in runs])
    ratios = np.array([run.tokens / run.params for run in runs])
    cheapest = min(run.flops for run in runs)
    if not cheapest <= allowance < math.inf:
        words = f"{allowance:.4g} FLOPs do not pay for one more run: the cheapest there is cost {cheapest:.4g}"
        raise FitRefused("allowance", words)
    sizes = np.geomspace(params.min(), params.max() * max(1.0, allowance / cheapest), 2 * _GRID)
    n, c = (grid.ravel() for grid in np.meshgrid(sizes, np.geomspace(cheapest, allowance, _GRID)))
    d = c / per_token(n, flops_per)
    tried = (d / n >= ratios.min() * (1.0 - 1e-9)) & (d / n <= ratios.max() * (1.0 + 1e-9))
    if not tried.any():
        span = f"{ratios.min():.3g} to {ratios.max():.3g}"
        words = f"no run within {allowance:.4g} FLOPs has a D/N among those of the present runs, {span}"
        raise FitRefused("allowance", words)
    return n[tried], d[tried], c[tried]
