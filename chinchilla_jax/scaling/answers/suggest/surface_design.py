"""Which further runs narrow the answer of approach 3 the most?

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

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri

from chinchilla_jax.scaling.answers.decide import per_token
from chinchilla_jax.scaling.answers.suggest.cells import LEVEL, Cell, added, cost
from chinchilla_jax.scaling.fits.approach3.parametric import ParametricFit
from chinchilla_jax.scaling.fits.surface import FlopsPerToken, Surface
from chinchilla_jax.scaling.read.runs import FitRefused, Run

_GRID = 64  # values of N, and of C, among the candidates
_PASSES = 20
_RIDGE = 1e-12  # relative; keeps a law without E, or without one of its terms, solvable
_EVEN = 5  # values of C, and of D/N, of the even grid


class Regression:
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
        return self.surface.slopes(params, tokens, self.centre)

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


class SurfaceDesign:
    """The design of approach 3. As `cells.Design`.

    Args:
      fit: approach 3 of the `runs`.
      target: budget in FLOPs; `quantity` there: `loss` or `params`.
      flops_per: training FLOPs of a token, as in `Surface.optimum`.
      cells: the candidates; by default a grid as far as `purse` reaches.

    Raises:
      FitRefused: `purse`, when it pays for no run within the D/N of the present ones.
    """

    def __init__(
        self,
        fit: ParametricFit,
        runs: Sequence[Run],
        target: float,
        quantity: str,
        flops_per: FlopsPerToken,
        purse: float,
        cells: Sequence[Cell] | None = None,
        most: float = np.inf,
    ):
        self.runs = runs
        self.scatter = fit.scatter if quantity == "loss" else 0.0  # the best size of a budget is no run
        params, tokens = ([getattr(run, name) for run in runs] for name in ("params", "tokens"))
        self.regression = Regression(fit.surface, params, tokens, fit.misfit.noise(fit.scatter) ** 2)
        self.gradient, _ = self.regression.target(target, flops_per, quantity)
        self.cells = list(cells) if cells is not None else _grid(runs, flops_per, purse, min(target, most))
        self._rows = self.regression.rows(*np.array([(c.params, c.tokens) for c in self.cells]).reshape(-1, 2).T)
        self._flops = np.array([cell.flops for cell in self.cells])

    def variance(self, chosen: Sequence[int]) -> float:
        """Of ln(quantity), c^T V c with the chosen runs added."""
        return float(self.gradient @ self._covariance(chosen) @ self.gradient)

    def _covariance(self, chosen: Sequence[int]) -> np.ndarray:
        """V after a rank-one update for each chosen run."""
        v = self.regression.covariance
        for i in chosen:
            v = added(v, self._rows[i], self.regression.noise)
        return v

    def _half(self, variance: float) -> float:
        return math.sinh(float(ndtri(0.5 + 0.5 * LEVEL)) * math.hypot(math.sqrt(variance), self.scatter))

    def half_width(self, chosen: Sequence[int]) -> float:
        return self._half(self.variance(chosen))

    def repeated(self, flops: float) -> float:
        return self._half(self.variance(()) / (1.0 + flops / sum(run.flops for run in self.runs)))

    def even_grid(self, chosen: Sequence[int]) -> float:
        ratios = np.array([run.tokens / run.params for run in self.runs])
        costs = [run.flops for run in self.runs] + [self.cells[i].flops for i in chosen]
        c = np.repeat(np.geomspace(min(costs), max(costs), _EVEN), _EVEN)
        ratio = np.tile(np.geomspace(ratios.min(), ratios.max(), _EVEN), _EVEN)
        rows = self.regression.rows(np.sqrt(c / 6.0 / ratio), np.sqrt(c / 6.0 * ratio))
        weight = cost(self.cells, chosen) / float(c.sum())
        more = weight * rows.T @ rows / self.regression.noise
        covariance = np.linalg.inv(np.linalg.inv(self.regression.covariance) + more)
        return self._half(float(self.gradient @ covariance @ self.gradient))

    def choose(self, purse: float, count: int) -> list[int]:
        designs = [self._exchanged(self._greedy(purse, count, power), purse) for power in (0.0, 1.0)]
        return min(designs, key=self.variance)

    def _gains(self, chosen: Sequence[int], left: float) -> np.ndarray:
        """[n]: what each candidate takes off the variance; minus infinity if it is chosen already or too expensive."""
        v = self._covariance(chosen)
        along = self._rows @ v
        gains = (along @ self.gradient) ** 2 / (self.regression.noise + (along * self._rows).sum(1))
        gains[list(chosen)] = -np.inf
        return np.where(self._flops <= left * (1.0 + 1e-9), gains, -np.inf)

    def _greedy(self, purse: float, count: int, power: float) -> list[int]:
        """One run after the other, each the best by gain / FLOPs^power."""
        chosen: list[int] = []
        while len(chosen) < count:
            score = self._gains(chosen, purse - self._flops[chosen].sum()) / self._flops**power
            best = int(score.argmax())
            if not score[best] > 0.0:
                break
            chosen.append(best)
        return chosen

    def _exchanged(self, chosen: list[int], purse: float) -> list[int]:
        """`chosen` after replacing one run at a time by a better one, until none is."""
        for _ in range(_PASSES):
            before = self.variance(chosen)
            for place in range(len(chosen)):
                others = chosen[:place] + chosen[place + 1 :]
                chosen[place] = int(self._gains(others, purse - self._flops[others].sum()).argmax())
            if self.variance(chosen) > before * (1.0 - 1e-6):
                break
        return chosen

    def in_order(self, chosen: Sequence[int]) -> list[int]:
        made: list[int] = []
        while len(made) < len(chosen):
            score = self._gains(made, np.inf) / self._flops
            made.append(max((i for i in chosen if i not in made), key=lambda i: score[i]))
        return made


def _grid(runs: Sequence[Run], flops_per: FlopsPerToken, purse: float, target: float) -> list[Cell]:
    """A grid in ln N and ln C, from the cheapest run to the purse or the target, within the runs' range of D/N."""
    params = np.array([run.params for run in runs])
    ratios = np.array([run.tokens / run.params for run in runs])
    cheapest = min(run.flops for run in runs)
    dearest = min(purse, max(target, cheapest))
    if not cheapest <= dearest:
        return []
    sizes = np.geomspace(params.min(), params.max() * dearest / cheapest, 2 * _GRID)
    n, c = (grid.ravel() for grid in np.meshgrid(sizes, np.unique(np.geomspace(cheapest, dearest, _GRID))))
    d = c / per_token(n, flops_per)
    tried = (d / n >= ratios.min() * (1.0 - 1e-9)) & (d / n <= ratios.max() * (1.0 + 1e-9))
    if not tried.any():
        span = f"{ratios.min():.3g} to {ratios.max():.3g}"
        words = f"no run within {purse:.4g} FLOPs has a D/N among those of the present runs, {span}"
        raise FitRefused("purse", words)
    return [Cell(*row) for row in np.stack([n, d, c], 1)[tried].tolist()]
