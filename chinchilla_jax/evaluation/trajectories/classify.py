"""Which tokens are still being learned, which are forgotten, and which were learned already?

By the rule of Xia et al. 2023 (arXiv 2212.09803, section 3.1, equation 1): the perplexities of a token from the first
checkpoint after a share of the training on, over that first one, on a line in the number of the checkpoint. The number
and not the step: kept checkpoints are equally far apart in the logarithm of the tokens, so that is what the line is in.
The authors' released script regresses on something else; this follows their text.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.evaluation.trajectories.series import Series, Trajectories

CLASSES = ("upward", "downward", "stagnated", "other")
UPWARD, DOWNWARD, STAGNATED, OTHER = range(4)
SHARES = (0.1, 0.4, 0.7)  # of the training, after which the paper takes trends
SIGNIFICANT = 0.05
NEAR = 0.05  # how far first and last perplexity of a stagnated token may be from the mean one, relatively
LEAST = 3  # checkpoints: with two every line is exact


class Trend(NamedTuple):
    """A line for each of T tokens, by ordinary least squares: its slope, and the two-sided p-value of a slope of 0."""

    slope: np.ndarray
    p_value: np.ndarray


def trend(nats_PxT: np.ndarray) -> Trend:
    """The trend of each token's perplexity over P >= 3 checkpoints, relative to the first; float64 `[T]`."""
    y_PxT = np.exp(nats_PxT.astype(np.float64) - nats_PxT[0])
    x_P = np.arange(len(y_PxT)) - (len(y_PxT) - 1) / 2.0
    from_mean_PxT = y_PxT - y_PxT.mean(0)
    spread, degrees = float(x_P @ x_P), len(x_P) - 2
    slope = x_P @ from_mean_PxT / spread
    error = np.sqrt(((from_mean_PxT - np.outer(x_P, slope)) ** 2).sum(0) / degrees / spread)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(slope == 0.0, 0.0, slope / error)  # a line without any misfit is certain
    return Trend(slope, 2.0 * special.stdtr(degrees, -np.abs(t)))


def classify(nats_PxT: np.ndarray) -> np.ndarray:
    """The class of each token's way over P >= 3 checkpoints, int8 `[T]`: a number of `CLASSES`."""
    slope, p_value = trend(nats_PxT)
    ends_2xT = nats_PxT[[0, -1]].astype(np.float64) - nats_PxT.mean(0, dtype=np.float64)
    flat = (np.abs(np.exp(ends_2xT) - 1.0) <= NEAR).all(0)
    significant = p_value < SIGNIFICANT
    upward, downward = significant & (slope > 0), significant & (slope < 0)
    return np.select([upward, downward, flat], [UPWARD, DOWNWARD, STAGNATED], OTHER).astype(np.int8)


def after(run: Series, share: float, until: float = 1.0) -> np.ndarray:
    """The checkpoints from a share of the run's tokens to another, as numbers.

    Raises UsageError if they are too few for a trend.
    """
    end = run.tokens[-1]
    found = np.flatnonzero((run.tokens >= share * end) & (run.tokens <= until * end))
    if len(found) < LEAST:
        stretch = f"after {share:.0%}" if until == 1.0 else f"between {share:.0%} and {until:.0%}"
        told = f"{run.name} has {len(found)} checkpoints {stretch} of its tokens, and a trend needs {LEAST}"
        raise UsageError(f"{told}: train it with a larger train.keep_checkpoints")
    return found


def double_descent(run: Series, first: float = SHARES[0], turn: float = SHARES[1]) -> np.ndarray:
    """Which tokens get worse from one share of the training to another, and better after it; bool `[T]`.

    Both by the rule for trends, on stretches that do not depend on the tokens: of noise 1 token in 1600 is one. The
    paper (section 3.2, figure 4) shows such ways as means over tokens that are upward in a smaller model, and has no
    rule for single ones. Raises UsageError of too few checkpoints.
    """
    rises = classify(run.nats[after(run, first, turn)]) == UPWARD
    return rises & (classify(run.nats[after(run, turn)]) == DOWNWARD)


def shares(trajectories: Trajectories, from_shares: Sequence[float] = SHARES) -> list[dict[str, Any]]:
    """A row for each run and share of its training: how many tokens follow each trend from there on.

    A run with too few checkpoints after a share has no row for it. Raises UsageError if there is no row at all.
    """
    rows, problem = [], None
    for run in trajectories.runs:
        for share in from_shares:
            try:
                classes = classify(run.nats[chosen := after(run, share)])
            except UsageError as error:
                problem = error
                continue
            parts = np.bincount(classes, minlength=len(CLASSES)) / len(classes)
            row = {"run": run.name, "params": run.params, "after": share, "checkpoints": len(chosen)}
            rows.append(row | {name: float(part) for name, part in zip(CLASSES, parts, strict=True)})
    if not rows and problem:
        raise problem
    return rows


def across(trajectories: Trajectories, share: float = SHARES[0]) -> list[dict[str, Any]]:
    """A row for each run and the next larger one: what becomes of the smaller one's tokens in the larger one.

    `stagnated too` is the share of its stagnated tokens that are so in the larger one, `stagnated before` the reverse;
    `double descent` that of the larger one among the tokens that are upward in the smaller, `among all` among all; both
    None if the larger one has too few checkpoints to tell. Raises UsageError of too few checkpoints for a trend.
    """
    runs, rows = trajectories.runs, []
    classes = [classify(run.nats[after(run, share)]) for run in runs]
    for (small, of_small), (large, of_large) in itertools.pairwise(zip(runs, classes, strict=True)):
        both = float(((of_small == STAGNATED) & (of_large == STAGNATED)).sum())
        rows.append(
            {
                "smaller": small.name,
                "larger": large.name,
                "stagnated too": both / max(int((of_small == STAGNATED).sum()), 1),
                "stagnated before": both / max(int((of_large == STAGNATED).sum()), 1),
                **_descents(large, of_small == UPWARD),
            }
        )
    return rows


def _descents(run: Series, chosen: np.ndarray) -> dict[str, float | None]:
    try:
        descends = double_descent(run)
    except UsageError:
        return {"double descent": None, "among all": None}
    of_chosen = float(descends[chosen].mean()) if chosen.any() else None
    return {"double descent": of_chosen, "among all": float(descends.mean())}
