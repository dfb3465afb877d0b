"""The runs of several IsoFLOP profiles as arrays, their curves, and which of them cannot be one.

A budget is refused, with the reason and what to do, when it has too few runs or sizes, when its parabola opens
downward, or when its minimum lies outside the sizes tried or far below every loss.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from chinchilla_jax.scaling.fits.approach2.curve import ProfileMinima, akima, parabolas
from chinchilla_jax.scaling.fits.approach2.near_minimum import NearFit, fit_near
from chinchilla_jax.scaling.read.runs import FitRefused, Run

QUANTITIES = {"params": "parameters", "tokens": "tokens"}
MIN_POINTS = 4
_FAR_BELOW = 0.8  # of the lowest loss: no profile dips so far between its runs


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A budget left out. `reason` is `few_points`, `downward`, `edge`, `same_size` or `far_off`."""

    budget: float
    reason: str
    message: str


class ProfileTable:
    """The runs of M profiles as padded arrays [M, n]: `x` (ln N and ln D), `loss`, and `held`: which entries are runs.
    What goes through them is `curve`: `near`, `parabola` or `akima`."""

    def __init__(self, members: dict[float, list[Run]], curve: str):
        self.members, self.curve = members, curve
        shape = (len(members), max(len(runs) for runs in members.values()))
        self.budgets = np.array(list(members))
        self.held = np.zeros(shape, bool)
        self.x, self.loss = {quantity: np.zeros(shape) for quantity in QUANTITIES}, np.ones(shape)
        for m, runs in enumerate(members.values()):
            # Padding stands on a real size, so that no basis is spoilt by it.
            padded = [*runs, *[runs[0]] * (shape[1] - len(runs))]
            self.held[m, : len(runs)] = True
            self.loss[m] = [run.loss for run in padded]
            for quantity, x in self.x.items():
                x[m] = np.log([getattr(run, quantity) for run in padded])

    @functools.cached_property
    def near(self) -> dict[str, NearFit]:
        """Profiles by the runs near their minima, against ln N (`params`) and ln D (`tokens`)."""
        log_flops = np.log(self.budgets)
        return {quantity: fit_near(x, self.loss, self.held, log_flops) for quantity, x in self.x.items()}

    @functools.cached_property
    def minima(self) -> Mapping[str, ProfileMinima]:
        """Minima of the curves in ln N and in ln D through the data, B = 1."""
        if self.curve == "near":
            return self.near
        return {quantity: self.redrawn(quantity, self.loss[None], self.held[None]) for quantity in QUANTITIES}

    def redrawn(self, quantity: str, loss: np.ndarray, weight: np.ndarray) -> ProfileMinima:
        """Minima of the curves `parabola` or `akima` for losses or weights [B, M, n]."""
        curves = parabolas if self.curve == "parabola" else akima
        return curves(self.x[quantity], loss, weight.astype(float), self.held)


def read_profiles(runs: Sequence[Run], curve: str) -> tuple[ProfileTable, tuple[Refusal, ...]]:
    """The profiles of the runs with role `isoflop`, and the budgets refused.

    Raises:
      FitRefused: `no_budget` (no run has one), or `few_budgets` (fewer than two profiles are usable).
    """
    members: dict[float, list[Run]] = {}
    for run in runs:
        if run.role == "isoflop" and run.budget is not None:
            members.setdefault(run.budget, []).append(run)
    if not members:
        raise FitRefused("no_budget", "approach 2 needs IsoFLOP runs with a budget; add a column `budget` in FLOPs")
    budgets = sorted(members)
    refusals, refused = [], [refusal for budget in budgets for refusal in _too_few(budget, members[budget])]
    while True:  # A profile refused takes its part of the skew with it, so the others are fitted again.
        refusals += refused
        left_out = {refusal.budget for refusal in refusals}
        kept = {budget: members[budget] for budget in budgets if budget not in left_out}
        if len(kept) < 2:
            why = "; ".join(r.message for r in refusals) or f"the only budget is {budgets[0]:.3g} FLOPs"
            raise FitRefused("few_budgets", f"approach 2 needs two usable profiles, got {len(kept)}: {why}")
        table = ProfileTable(kept, curve)
        refused = _downward(table) or _without_minimum(table)
        if not refused:
            return table, tuple(sorted(refusals, key=lambda refusal: refusal.budget))


def _refusal(budget: float, reason: str, why: str) -> Refusal:
    return Refusal(budget, reason, f"budget {budget:.3g} FLOPs: {why}")


def _too_few(budget: float, runs: Sequence[Run]) -> list[Refusal]:
    """What can be no profile, whatever its losses."""
    if len(runs) < MIN_POINTS:
        return [_refusal(budget, "few_points", f"{len(runs)} runs; a profile needs at least {MIN_POINTS}")]
    for quantity, name in QUANTITIES.items():
        sizes = len({getattr(run, quantity) for run in runs})
        if sizes < MIN_POINTS:
            return [_refusal(budget, "same_size", f"{sizes} distinct {name}; needs {MIN_POINTS} sizes")]
    return []


def _downward(table: ProfileTable) -> list[Refusal]:
    """Profiles whose parabola through all runs opens downward."""
    refused: dict[float, Refusal] = {}
    for quantity, name in QUANTITIES.items():
        minima = parabolas(table.x[quantity], table.loss[None], table.held[None].astype(float), table.held)
        for budget in table.budgets[~(minima.curvature[0] > 0)].tolist():
            why = f"the parabola in log {name} opens downward; add sizes on both sides or repeat noisy runs"
            refused.setdefault(budget, _refusal(budget, "downward", why))
    return [refused[budget] for budget in sorted(refused)]


def _without_minimum(table: ProfileTable) -> list[Refusal]:
    """Profiles whose curve has no minimum inside the sizes tried, or one far below every loss."""
    refused: dict[float, Refusal] = {}
    for m, budget in enumerate(table.budgets.tolist()):
        losses = table.loss[m, table.held[m]]
        for quantity, name in QUANTITIES.items():
            minima, tried = table.minima[quantity], np.exp(table.x[quantity][m, table.held[m]])
            low, high = tried.min(), tried.max()
            if not minima.inside[0, m]:
                side = "smaller" if np.exp(minima.log_best[0, m]) <= np.sqrt(low * high) else "larger"
                why = f"the minimum over {name} lies outside those tried ({low:.3g} to {high:.3g}); add runs with "
                refused.setdefault(budget, _refusal(budget, "edge", f"{why}{side} {name}"))
            elif minima.lowest[0, m] < _FAR_BELOW * losses.min():
                odd = losses[np.abs(np.log(losses / np.median(losses))).argmax()]
                why = (
                    f"the minimum of the curve, {minima.lowest[0, m]:.4g}, lies far below every loss; check the run of "
                )
                refused.setdefault(budget, _refusal(budget, "far_off", f"{why}loss {odd:.4g}"))
    return list(refused.values())
