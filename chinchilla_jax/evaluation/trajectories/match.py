"""Do models of two sizes predict alike when they are equally good, or when as much was spent on them?

Xia et al. 2023 (arXiv 2212.09803, section 3.2 and appendix B.5) plot the ways of many sizes over each other: against
the validation perplexity they overlap, against FLOPs they do not. Here that is a number. At every checkpoint of the
larger run the smaller one is looked up where it has the same validation loss, where it had as many FLOPs, and as many
tokens. The distance is the mean over tokens of |ln perplexity here - ln perplexity there|, in nats. Only checkpoints
count at which all three are there: another part of the training would be another question. And the nearest checkpoint
is taken as it is: a mean of two would be less noisy than one, so that what happens to fall between checkpoints would
win.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.evaluation.trajectories.series import Series, Trajectories

AXES = ("loss", "flops", "tokens")


class Match(NamedTuple):
    """Two runs at K checkpoints of the larger, the smaller matched by each of `AXES`.

    Attributes:
      at: int `[K]`, which checkpoints of the larger one.
      distance: float64 `[K]` by axis, the mean over tokens of the difference in nats, without its sign.
      correlation: float64 `[K]` by axis, Spearman's, of the tokens' losses.
    """

    smaller: Series
    larger: Series
    at: np.ndarray
    distance: dict[str, np.ndarray]
    correlation: dict[str, np.ndarray]


def match(smaller: Series, larger: Series) -> Match:
    """Raises UsageError if the runs have no stretch in common by loss, FLOPs and tokens."""
    nearest = {axis: _nearest(smaller, larger, axis) for axis in AXES}
    at = np.flatnonzero(np.all([found >= 0 for found in nearest.values()], axis=0))
    if not len(at):
        told = f"{larger.name} has no checkpoint whose loss, FLOPs and tokens {smaller.name} had too"
        raise UsageError(f"{told}: match runs of about one budget")
    distance, correlation = {axis: np.empty(len(at)) for axis in AXES}, {axis: np.empty(len(at)) for axis in AXES}
    for axis, (k, j) in itertools.product(AXES, enumerate(at)):
        here, there = smaller.nats[nearest[axis][j]], larger.nats[j]
        distance[axis][k] = np.abs(here - there).mean(dtype=np.float64)
        correlation[axis][k] = stats.spearmanr(here, there).statistic
    return Match(smaller, larger, at, distance, correlation)


def _nearest(smaller: Series, larger: Series, axis: str) -> np.ndarray:
    """For each checkpoint of the larger run the nearest of the smaller; -1 where that never was so far, or always.

    FLOPs and tokens are near by their logarithm. Of a loss that goes up again the first time counts.
    """
    here, there = getattr(smaller, axis), getattr(larger, axis)
    x, wanted = (-here, -there) if axis == "loss" else (np.log(here), np.log(there))
    risen = np.flatnonzero(x > np.maximum.accumulate(np.concatenate([[-np.inf], x[:-1]])))
    closest = risen[np.abs(x[risen] - wanted[:, None]).argmin(1)]
    return np.where((wanted >= x[risen[0]]) & (wanted <= x[risen[-1]]), closest, -1)


def matches(trajectories: Trajectories) -> list[Match]:
    """Of every two runs of different sizes. Raises UsageError if there are none, or as `match` does."""
    found = [(a, b) for a, b in itertools.combinations(trajectories.runs, 2) if a.params < b.params]
    if not found:
        raise UsageError("match needs runs of two sizes at least: collect more of them")
    return [match(smaller, larger) for smaller, larger in found]


def rows(found: list[Match]) -> list[dict[str, Any]]:
    """A row for each two runs: the means over their checkpoints of distance and correlation by axis."""
    return [
        {"smaller": m.smaller.name, "larger": m.larger.name, "checkpoints": len(m.at)}
        | {f"equal {axis}": float(m.distance[axis].mean()) for axis in AXES}
        | {f"rank, {axis}": float(m.correlation[axis].mean()) for axis in AXES}
        for m in found
    ]
