"""Does a running training go wrong? A sequential test of its own curve, good at any time it is looked at.

A filter follows level and slope of ln loss over ln T and says what each logged line should be, before it is read. What
a line is above that, in standard deviations, is its surprise. The test multiplies up, from every line at which
something might have broken, the odds of the surprises under a loss that has jumped, against those under a good run, and
averages over the lines. For a good run this evidence is a martingale of mean 1: the chance that it ever reaches 1 / a,
however often it is looked at, is at most a (Ville's inequality; Shafer 2021 calls it betting). Surprises have the heavy
tails of Student's t, so one bad batch is no alarm, and the filter follows a jump only slowly. Only a loss that is too
high counts.

Beside finished runs the curve is taken over their median at the same tokens, so that what has been wrong from the first
step shows as well.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from chinchilla_jax.scaling.read.runs import Curve, Run

FALSE_ALARMS = 1.0 / 200.0  # of good runs, at most
_JUMPS = (3.0, 6.0, 12.0, 24.0, 48.0)  # of a broken run, in standard deviations; equally likely
_TAIL = 8.0  # degrees of freedom of a line's surprise
_BEND, _WANDER = 0.15, 0.02  # how far slope and level go astray, for each sqrt(ln T)
_SLOPE, _SLOPE_SPREAD = -0.2, 0.2  # of ln loss over ln T at the start
_LEVEL_SPREAD, _DIFFERENCE = 0.5, 0.05  # of the first line; beside finished runs, of level and slope
_NOISE, _NOISE_LINES = 0.03, 4.0  # of a line, expected before any, and the weight of that in lines
_FAR = 3.0  # standard deviations at which a surprise counts as no more than that for the filter
_LEAST = 3  # finished runs that were at these tokens in the first half of their training


@dataclasses.dataclass(frozen=True)
class Alarm:
    """What the test says of a curve: `evidence` [K] after each line, the odds that it is broken; `tokens` at the first
    line that marked it, None for a run that looks good; `level` there in ln loss above what was expected."""

    evidence: np.ndarray
    tokens: float | None
    excess: float | None


def alarm(curve: Curve, total: float, finished: Sequence[Run] = (), rate: float = FALSE_ALARMS) -> Alarm:
    """The test of `curve`, of a run planned for `total` tokens, beside finished runs of its study.

    `rate` is the share of good runs that may be marked over the whole of their training.
    """
    tokens = curve.tokens
    values = np.log(curve.loss)
    reference = _reference(tokens, finished)
    beside = reference is not None
    filtered = _Filter(*((0.0, _DIFFERENCE, _DIFFERENCE) if beside else (_SLOPE, _SLOPE_SPREAD, _LEVEL_SPREAD)))
    if reference is not None:
        values = values - reference
    else:
        filtered.level = float(values[0]) if len(values) else 0.0
    wealth, saved = [0.0] * len(_JUMPS), 1.0
    evidence, first, excess = np.empty(len(values)), None, None
    before = 0.0
    for k, (at, value) in enumerate(zip(tokens.tolist(), values.tolist(), strict=True)):
        surprise, deviation = filtered.step(at, value)
        stake = min((at - before) / total, saved)
        before, saved = at, saved - stake
        wealth = [(w + stake) * _odds(surprise, jump) for w, jump in zip(wealth, _JUMPS, strict=True)]
        evidence[k] = saved + sum(wealth) / len(_JUMPS)
        if first is None and evidence[k] >= 1.0 / rate:
            first, excess = at, surprise * deviation
    return Alarm(evidence, first, excess)


def _odds(surprise: float, jump: float) -> float:
    """Density of a surprise of a run that has jumped over that of a good run."""
    good, broken = (1.0 + (surprise - shift) ** 2 / _TAIL for shift in (0.0, jump))
    return (good / broken) ** (0.5 * (_TAIL + 1.0))


class _Filter:
    """Kalman's filter of a level and its slope over ln T; the noise of a line is learned on the way."""

    def __init__(self, slope: float, slope_spread: float, level_spread: float):
        self.level, self.slope = 0.0, slope
        self.p_level, self.p_both, self.p_slope = level_spread**2, 0.0, slope_spread**2
        self.squares, self.lines = _NOISE_LINES * _NOISE**2, _NOISE_LINES
        self.last: float | None = None

    def step(self, tokens: float, value: float) -> tuple[float, float]:
        """(surprise in standard deviations, a standard deviation) of a line; then the filter has seen it."""
        ahead = math.log(tokens / self.last) if self.last else 0.0
        self.last = tokens
        self.level += ahead * self.slope
        self.p_level += ahead * (2.0 * self.p_both + ahead * self.p_slope + _WANDER**2) + _BEND**2 * ahead**3 / 3.0
        self.p_both += ahead * self.p_slope + _BEND**2 * ahead**2 / 2.0
        self.p_slope += _BEND**2 * ahead
        noise = self.squares / self.lines
        deviation = math.sqrt(self.p_level + noise)
        surprise = (value - self.level) / deviation
        kept = max(-_FAR, min(_FAR, surprise)) * deviation
        by_level, by_slope = self.p_level / deviation**2, self.p_both / deviation**2
        self.level += by_level * kept
        self.slope += by_slope * kept
        self.p_slope -= by_slope * self.p_both
        self.p_both -= by_level * self.p_both
        self.p_level -= by_level * self.p_level
        self.squares += kept**2 * noise / deviation**2  # the line's part of it
        self.lines += noise / deviation**2
        return surprise, deviation


def _reference(tokens: np.ndarray, finished: Sequence[Run]) -> np.ndarray | None:
    """[K]: ln loss that the finished runs had at `tokens` in the first half of their training, put together from their
    mean changes from line to line; from where there are too few of them on it stays. None if they are from the start.
    """
    curves = [run.curve for run in finished if run.curve is not None and len(run.curve.tokens) > 1]
    if len(curves) < _LEAST or not len(tokens):
        return None
    halves = np.array([0.5 * run.tokens for run in finished if run.curve is not None and len(run.curve.tokens) > 1])
    starts = np.array([curve.tokens[0] for curve in curves])
    rows = np.stack([np.interp(np.log(tokens), np.log(curve.tokens), np.log(curve.loss)) for curve in curves])
    there = (tokens >= starts[:, None]) & (tokens <= halves[:, None])
    if there[:, 0].sum() < _LEAST:
        return None
    both = there[:, 1:] & there[:, :-1]
    enough = np.logical_and.accumulate(both.sum(0) >= _LEAST)
    changes = np.where(both, np.diff(rows, axis=1), 0.0).sum(0) / np.maximum(both.sum(0), 1)
    first = float(np.median(rows[there[:, 0], 0]))
    return first + np.concatenate([[0.0], np.cumsum(np.where(enough, changes, 0.0))])
