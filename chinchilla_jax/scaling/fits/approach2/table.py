"""The runs of several IsoFLOP profiles as arrays, their curves, and which of them cannot be one.

A budget is refused, with the reason and what to do, when it has too few runs or sizes, when its parabola opens
downward, or when its minimum lies outside the sizes tried or far below every loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from chinchilla_jax.scaling.fits.approach2.curve import Minima, akima, parabolas
from chinchilla_jax.scaling.fits.approach2.near_minimum import NearFit, fit_near
from chinchilla_jax.scaling.read.runs import FitRefused, Run

WORDS = ("params", "tokens")
MIN_POINTS = 4
_FAR_BELOW = 0.8  # of the lowest loss: no profile dips so far between its runs


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A budget left out. `reason` is `few_points`, `downward`, `edge`, `same_size` or `far_off`."""

    budget: float
    reason: str
    message: str


class ProfileTable:
    """The runs of M profiles as padded arrays [M, n]: ln N, ln D, loss, and which entries are runs."""

    def __init__(self, members: dict[float, tuple[Run, ...]]):
        longest = max(len(runs) for runs in members.values())
        shape = (len(members), longest)
        self.budgets = np.array(list(members))
        self.held = np.zeros(shape, bool)
        self.params, self.tokens, self.loss = np.zeros(shape), np.zeros(shape), np.ones(shape)
        for m, runs in enumerate(members.values()):
            n = len(runs)
            self.held[m, :n] = True
            self.params[m, :n] = np.log([run.params for run in runs])
            self.tokens[m, :n] = np.log([run.tokens for run in runs])
            self.loss[m, :n] = [run.loss for run in runs]
            # Padding stands on a real size, so that no basis is spoilt by it.
            for values in (self.params, self.tokens, self.loss):
                values[m, n:] = values[m, 0]

    def near(self, word: str) -> NearFit:
        """Profiles by the runs near their minima, against ln N (`params`) or ln D (`tokens`)."""
        return fit_near(getattr(self, word), self.loss, self.held, np.log(self.budgets))

    def range(self, word: str) -> tuple[np.ndarray, np.ndarray]:
        """The smallest and the largest ln N or ln D tried at each budget."""
        x = getattr(self, word)
        return x.min(1), x.max(1)

    def minima(
        self, curve: str, word: str, near: NearFit, loss: np.ndarray | None = None, weight: np.ndarray | None = None
    ) -> Minima:
        """Curves in ln N (`params`) or ln D (`tokens`) for losses or weights [B, M, n]; by default the data, B = 1.

        Args:
          curve: `near`, of the data only, `parabola` or `akima`.
        """
        x, held = getattr(self, word), self.held
        if curve == "near":
            low, high = self.range(word)
            lowest = np.exp(near.log_lowest)
            inside = (near.log_best > low) & (near.log_best < high)
            rows = near.log_best, lowest, near.curvature * lowest, inside
            return Minima(*(values[None] for values in rows), np.array([near.skew]), near.fitted[None])
        loss = self.loss[None] if loss is None else loss
        weight = held[None].astype(float) if weight is None else weight
        return (parabolas if curve == "parabola" else akima)(x, loss, weight, held)


def check(budget: float, runs: Sequence[Run]) -> None:
    """Refuses what can be no profile, whatever its losses.

    Raises:
      FitRefused: `few_points` or `same_size`.
    """
    label = f"budget {budget:.3g} FLOPs"
    if len(runs) < MIN_POINTS:
        raise FitRefused("few_points", f"{label}: {len(runs)} runs; a profile needs at least {MIN_POINTS}")
    for word, values in (("parameters", {r.params for r in runs}), ("tokens", {r.tokens for r in runs})):
        if len(values) < MIN_POINTS:
            raise FitRefused("same_size", f"{label}: {len(values)} distinct {word}; needs {MIN_POINTS} sizes")


def downward(budget: float, m: int, table: ProfileTable) -> Refusal | None:
    """The refusal of profile m if its parabola through all runs opens downward."""
    for word, name in zip(WORDS, ("parameters", "tokens"), strict=True):
        x = getattr(table, word)
        if not parabolas(x, table.loss[None], table.held[None].astype(float), table.held).curvature[0, m] > 0:
            why = f"the parabola in log {name} opens downward; add sizes on both sides or repeat noisy runs"
            return Refusal(budget, "downward", f"budget {budget:.3g} FLOPs: {why}")
    return None


def without_minimum(budget: float, m: int, minima: Mapping[str, Minima], table: ProfileTable) -> Refusal | None:
    """The refusal of profile m if its curve has no minimum inside the sizes tried, or one far below every loss."""
    label = f"budget {budget:.3g} FLOPs"
    for word, found in minima.items():
        name = "parameters" if word == "params" else "tokens"
        x = getattr(table, word)[None]
        if not found.inside[0, m]:
            tried = np.exp(x[0, m][table.held[m]])
            side = "smaller" if np.exp(found.log_best[0, m]) <= np.sqrt(tried.min() * tried.max()) else "larger"
            return Refusal(
                budget,
                "edge",
                f"{label}: the minimum over {name} lies outside those tried "
                f"({tried.min():.3g} to {tried.max():.3g}); add runs with {side} {name}",
            )
        losses = table.loss[m][table.held[m]]
        if found.lowest[0, m] < _FAR_BELOW * losses.min():
            odd = losses[np.abs(np.log(losses / np.median(losses))).argmax()]
            return Refusal(
                budget,
                "far_off",
                f"{label}: the minimum of the curve, {found.lowest[0, m]:.4g}, lies far below every loss; check the "
                f"run of loss {odd:.4g}",
            )
    return None
