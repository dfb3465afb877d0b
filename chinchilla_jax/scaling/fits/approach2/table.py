"""The runs of several IsoFLOP profiles as arrays, their curves, and which of them cannot be one.

A budget is refused, with the reason and what to do, when it has too few runs or sizes, when its parabola opens
downward, or when its minimum lies outside the sizes tried or far below every loss.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence

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
    members = {budget: members[budget] for budget in sorted(members)}
    refused: dict[float, Refusal] = {}

    def refuse(complaints: Iterable[tuple[float, str, str]]) -> bool:
        """Whether there was any complaint; of each budget the first one counts."""
        before = len(refused)
        for budget, reason, why in complaints:
            refused.setdefault(budget, Refusal(budget, reason, f"budget {budget:.3g} FLOPs: {why}"))
        return len(refused) > before

    refuse(_too_few(members))
    while True:  # A profile refused takes its part of the skew with it, so the others are fitted again.
        kept = {budget: mine for budget, mine in members.items() if budget not in refused}
        if len(kept) < 2:
            why = "; ".join(r.message for r in refused.values()) or f"the only budget is {min(members):.3g} FLOPs"
            raise FitRefused("few_budgets", f"approach 2 needs two usable profiles, got {len(kept)}: {why}")
        table = ProfileTable(kept, curve)
        if not (refuse(_downward(table)) or refuse(_without_minimum(table))):
            return table, tuple(refused[budget] for budget in sorted(refused))


def _too_few(members: Mapping[float, Sequence[Run]]) -> Iterator[tuple[float, str, str]]:
    """What can be no profile, whatever its losses: budget, reason and explanation."""
    for budget, runs in members.items():
        if len(runs) < MIN_POINTS:
            yield budget, "few_points", f"{len(runs)} runs; a profile needs at least {MIN_POINTS}"
        for quantity, name in QUANTITIES.items():
            sizes = len({getattr(run, quantity) for run in runs})
            if sizes < MIN_POINTS:
                yield budget, "same_size", f"{sizes} distinct {name}; needs {MIN_POINTS} sizes"


def _downward(table: ProfileTable) -> Iterator[tuple[float, str, str]]:
    """Profiles whose parabola through all runs opens downward."""
    weight = table.held[None].astype(float)
    bends = [parabolas(x, table.loss[None], weight, table.held).curvature[0] for x in table.x.values()]
    for budget, *curvatures in zip(table.budgets.tolist(), *bends, strict=True):
        for name, curvature in zip(QUANTITIES.values(), curvatures, strict=True):
            if not curvature > 0:
                why = f"the parabola in log {name} opens downward; add sizes on both sides or repeat noisy runs"
                yield budget, "downward", why


def _without_minimum(table: ProfileTable) -> Iterator[tuple[float, str, str]]:
    """Profiles whose curve has no minimum inside the sizes tried, or one far below every loss."""
    for m, budget in enumerate(table.budgets.tolist()):
        losses = table.loss[m, table.held[m]]
        for quantity, name in QUANTITIES.items():
            minima, tried = table.minima[quantity], np.exp(table.x[quantity][m, table.held[m]])
            low, high, lowest = tried.min(), tried.max(), minima.lowest[0, m]
            if not minima.inside[0, m]:
                side = "smaller" if np.exp(minima.log_best[0, m]) <= np.sqrt(low * high) else "larger"
                where = f"outside those tried ({low:.3g} to {high:.3g}); add runs with {side} {name}"
                yield budget, "edge", f"the minimum over {name} lies {where}"
            elif lowest < _FAR_BELOW * losses.min():
                odd = losses[np.abs(np.log(losses / np.median(losses))).argmax()]
                where = f"far below every loss; check the run of loss {odd:.4g}"
                yield budget, "far_off", f"the minimum of the curve, {lowest:.4g}, lies {where}"
