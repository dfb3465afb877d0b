"""Does a running training go wrong? A sequential test of its own curve, good at any time it is looked at.

A filter follows level and slope of ln loss over ln T and says what each logged line should be, before it is read. What
a line is above that, in standard deviations, is its surprise. The test multiplies up, from every line at which
something might have broken, the odds of the surprises under a loss that has jumped, against those under a good run, and
averages over the lines. For a good run this evidence is a martingale of mean 1: the chance that it ever reaches 1 / a,
however often it is looked at, is at most a (Ville's inequality; Shafer 2021 calls it betting). Surprises have the heavy
tails of Student's t, so one bad batch is no alarm, and the filter follows a jump only slowly. Only a loss that is too
high counts.

What is wrong from the first step on makes no jump. Beside finished runs, therefore, the loss is also compared with what
theirs had been at the same tokens (`nearby`), after 1, 2, 4, 8 lines and so on, and the few comparisons share a fifth
of the false alarms.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import scipy.special

from chinchilla_jax.scaling.answers.flight.nearby import at_size
from chinchilla_jax.scaling.answers.flight.shared_noise import log_curve
from chinchilla_jax.scaling.read.in_flight import Running
from chinchilla_jax.scaling.read.runs import Run

FALSE_ALARMS = 1.0 / 200.0  # of good runs, at most
_JUMPS = (3.0, 6.0, 12.0, 24.0, 48.0)  # of a broken run, in standard deviations; equally likely
_TAIL = 8.0  # degrees of freedom of a line's surprise
_BEND, _WANDER = 0.15, 0.02  # how far slope and level go astray, for each sqrt(ln T)
_SLOPE, _SLOPE_SPREAD = -0.2, 0.2  # of ln loss over ln T at the start
_LEVEL_SPREAD = 0.5  # of the first line
_NOISE, _NOISE_LINES = 0.03, 4.0  # of a line, expected before any, and the weight of that in lines
_FAR = 3.0  # standard deviations at which a surprise counts as no more than that for the filter
_LEAST = 4  # finished runs that were at these tokens in the first half of their training
_BESIDE = 0.2  # part of the false alarms that comparisons with finished runs may make
_COMPARISONS = 10  # after lines 1, 2, 4, ... 512
_LINE_NOISE, _LINE_SLOPE = 0.02, 0.1  # of ln loss at one line, and with a factor e of N or D, expected beforehand


@dataclasses.dataclass(frozen=True)
class Alarm:
    """What the test says of a curve: `evidence` [K] after each line, the odds that it is broken; `tokens` at the first
    line that marked it, None for a run that looks good; `excess` there in ln loss above what was expected."""

    evidence: np.ndarray
    tokens: float | None
    excess: float | None


def alarm(run: Running, finished: Sequence[Run] = (), rate: float = FALSE_ALARMS) -> Alarm:
    """The test of a run's curve, beside finished runs of its study if there are enough.

    `rate` is the share of good runs that may be marked over the whole of their training.
    """
    tokens, values = run.curve.tokens, np.log(run.curve.loss)
    beside = _beside(run, finished)
    own_rate = (1.0 - _BESIDE) * rate if beside else rate
    filtered = _Filter(float(values[0]) if len(values) else 0.0)
    wealth, saved = [0.0] * len(_JUMPS), 1.0
    evidence, before = np.empty(len(values)), 0.0
    marks: list[tuple[float, float]] = []
    for k, (at, value) in enumerate(zip(tokens.tolist(), values.tolist(), strict=True)):
        surprise, deviation = filtered.step(at, value)
        stake = min((at - before) / run.tokens, saved)
        before, saved = at, saved - stake
        wealth = [(w + stake) * _odds(surprise, jump) for w, jump in zip(wealth, _JUMPS, strict=True)]
        evidence[k] = saved + sum(wealth) / len(_JUMPS)
        if evidence[k] >= 1.0 / own_rate and not marks:
            marks.append((at, surprise * deviation))
    few = _BESIDE * rate / _COMPARISONS
    marks += [(at, excess) for at, excess, chance in beside if chance < few]
    return Alarm(evidence, *(min(marks) if marks else (None, None)))


def _odds(surprise: float, jump: float) -> float:
    """Density of a surprise of a run that has jumped over that of a good run."""
    good, broken = (1.0 + (surprise - shift) ** 2 / _TAIL for shift in (0.0, jump))
    return (good / broken) ** (0.5 * (_TAIL + 1.0))


class _Filter:
    """Kalman's filter of a level and its slope over ln T; the noise of a line is learned on the way."""

    def __init__(self, level: float):
        self.level, self.slope = level, _SLOPE
        self.p_level, self.p_both, self.p_slope = _LEVEL_SPREAD**2, 0.0, _SLOPE_SPREAD**2
        self.squares, self.lines = _NOISE_LINES * _NOISE**2, _NOISE_LINES
        self.last: float | None = None

    def step(self, tokens: float, value: float) -> tuple[float, float]:
        """(surprise in standard deviations, a standard deviation) of a line; then the filter has seen it."""
        ahead = math.log(tokens / self.last) if self.last else 0.0
        self.last = tokens
        self.level += ahead * min(self.slope, 0.0)  # a loss that climbs is no course to follow
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


def _beside(run: Running, finished: Sequence[Run]) -> list[tuple[float, float, float]]:
    """(tokens, ln loss above what was expected, chance of so much in a good run) after 1, 2, 4 and so on lines, as long
    as enough finished runs were in the first half of their training there. Lines are those of the coarser curves."""
    others = [log_curve(other) for other in finished if other.curve is not None and len(other.curve.tokens) > 1]
    if len(others) < _LEAST or not len(run.curve.tokens):
        return []
    curve = log_curve(run)
    span = max(curve.line, float(np.median([other.line for other in others])))
    rows = []
    for at in span * 2.0 ** np.arange(_COMPARISONS):
        there = [other for other in others if other.tokens[0] <= 1.01 * at and at <= 0.5 * other.total]
        if at > 1.001 * curve.tokens[-1] or len(there) < _LEAST:
            break
        low, high = max(at - span, 0.0), min(at, curve.tokens[-1])
        values = np.array([other.mean(low, high) for other in there])
        away = np.log([[other.params / run.params, other.total / run.tokens] for other in there])
        mean, scale, freedom = at_size(away, values, _LINE_NOISE, _LINE_SLOPE)
        excess = curve.mean(low, high) - mean
        line = float(curve.tokens[np.searchsorted(curve.tokens, 0.999 * at)])  # the one that ends there
        rows.append((line, excess, float(scipy.special.stdtr(freedom, -excess / scale))))
    return rows
