"""What loss does each run stand at for a given compute, and where does its schedule end?

Training losses are noisy and may be logged every step or every thousand; approach 1 reads them smoothed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chinchilla_jax.scaling.fits.approach1.ends import RunEnds
from chinchilla_jax.scaling.read.runs import Run

_MOST_POINTS = 500
_SAME_END = 0.02  # in ln C


def gaussian(loss: np.ndarray, window: int = 10) -> np.ndarray:
    """Losses [K] under a Gaussian of `window` logged points in all, standard deviation a quarter of that.

    The paper's window is 10 steps of many thousands. Where the log is coarse, 10 points would be a good part of the
    training, so the window is never more than a fiftieth of the points: below 100 points nothing is smoothed.
    """
    half = min(window, len(loss) // 50) // 2
    if half < 1:
        return loss
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / (0.5 * half)) ** 2)
    # Near the ends the window is cut, and divided by what is left of it.
    return np.convolve(loss, kernel, "same") / np.convolve(np.ones_like(loss), kernel, "same")


def local_linear(tokens: np.ndarray, loss: np.ndarray, spread: float = 0.05) -> np.ndarray:
    """Losses [K] from straight lines in ln tokens, fitted about each point with a Gaussian of `spread` in ln tokens.

    Unlike a mean, a line is not biased at the end of a falling curve, the part that matters here; and a window in ln
    tokens smooths no more than about the last tenth of the training however often losses were logged.
    """
    x = np.log(tokens)
    apart = x[None] - x[:, None]
    weight = np.exp(-0.5 * (apart / spread) ** 2)
    weight /= weight.sum(1, keepdims=True)
    mean_x, mean_y = (weight * apart).sum(1), (weight * loss).sum(1)
    spread_x = (weight * apart**2).sum(1) - mean_x**2
    slope = ((weight * apart * loss).sum(1) - mean_x * mean_y) / (spread_x + 1e-3 * spread**2)
    return mean_y - slope * mean_x


def smooth(run: Run, curve: str) -> tuple[np.ndarray, np.ndarray]:
    """ln C [K] and smoothed loss [K] along a run that has a curve.

    By `gaussian` where `curve`, of the preset, is `winner`; else by `local_linear`, for which more than 500 points are
    averaged in neighbouring groups first.
    """
    assert run.curve is not None
    tokens, loss = np.asarray(run.curve.tokens, np.float64), np.asarray(run.curve.loss, np.float64)
    if curve == "winner":
        loss = gaussian(loss)
    else:
        if len(loss) > _MOST_POINTS:
            # Counted from the end, so that the last group is full.
            from_end = np.arange(len(loss))[::-1] // -(-len(loss) // _MOST_POINTS)
            group = from_end.max() - from_end
            size = np.bincount(group)
            tokens, loss = np.bincount(group, tokens) / size, np.bincount(group, loss) / size
        loss = local_linear(tokens, loss)
    return np.log(run.flops * tokens / run.tokens), loss


def read_curves(runs: Sequence[Run], log_flops: np.ndarray, curve: str) -> np.ndarray:
    """Loss [R, G] of every run at ln C [G]; infinite where its curve does not reach."""
    loss = np.full((len(runs), len(log_flops)), np.inf)
    for row, run in zip(loss, runs, strict=True):
        x, y = smooth(run, curve)
        inside = (log_flops >= x[0]) & (log_flops <= x[-1] + 1e-9)
        row[inside] = np.interp(log_flops[inside], x, y)
    return loss


def read_ends(runs: Sequence[Run]) -> RunEnds:
    """The ends of the smoothed curves; repeats of a size and horizon count as one, the mean of their losses."""
    ends = []
    for run in runs:
        log_flops, loss = smooth(run, "smooth")
        ends.append((np.log(run.params), log_flops[-1], loss[-1]))
    groups: list[list[tuple[float, float, float]]] = []
    for end in sorted(ends):
        first = groups[-1][0] if groups else (np.nan, np.nan)
        if end[0] == first[0] and end[1] - first[1] < _SAME_END:
            groups[-1].append(end)
        else:
            groups.append([end])
    return RunEnds(*np.array([np.mean(group, axis=0) for group in groups]).T)
