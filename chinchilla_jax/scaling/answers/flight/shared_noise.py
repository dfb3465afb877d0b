"""Which part of a training curve is the luck of its batches, which other runs of the study had as well?

Runs of one study and seed read the same batches in the same order, so that their logged losses go up and down together:
in the `cpu` study by 1% from line to line, while what is a run's alone is 0.2%. That part is estimated and taken away:

    ln loss of run i at T tokens = smooth in (run, T, T / D) + b(T) + noise

b(T) is the mean of what the smooth part leaves over all runs that logged at exactly T tokens, shrunk by how much of it
is noise; slow changes of what is left are a run's own. Where the runs do not share their batches the leftovers do not
agree, and b is shrunk to nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from chinchilla_jax.scaling.read.in_flight import Running
from chinchilla_jax.scaling.read.runs import Run

_KNOTS_SHARE, _KNOTS_TOKENS = 10, 10  # of the smooth part, in T / D and in ln T
_RIDGE = 1e-2  # on its coefficients, in units of one run's squared residuals
_REACH = 5  # logged lines to either side over which a run's own smooth part is averaged
_ROUNDS = 2
_FEW = 3  # runs at one T from which their agreement is judged
_OUTLIER = 6.0  # median sizes of what is left, beyond which a line counts no more
_BROKEN = 4.0  # times the median of what the smooth part leaves of a run: it went wrong and tells nothing of the others
_NORMAL = 0.455  # median of the square of a standard normal


@dataclasses.dataclass(frozen=True)
class LogCurve:
    """A training curve as it is used: `tokens` [K] at the logged lines, rising, of `total` D; `log_loss` [K], the mean
    since the line before; `params` N."""

    params: float
    total: float
    tokens: np.ndarray
    log_loss: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """[K]: tokens where the stretch of each line begins."""
        return np.concatenate([[0.0], self.tokens[:-1]])

    @property
    def line(self) -> float:
        """Tokens of a line, the median."""
        return float(np.median(self.tokens - self.starts))

    def mean(self, low: float, high: float) -> float:
        """Mean ln loss between two numbers of tokens; lines that lie partly between them count in part."""
        edges = np.concatenate([[0.0], self.tokens])
        sums = np.concatenate([[0.0], np.cumsum(self.log_loss * np.diff(edges))])
        below, above = np.interp([low, high], edges, sums)
        return float((above - below) / (high - low))


def log_curve(run: Run | Running) -> LogCurve:
    """The curve of a run that has one."""
    assert run.curve is not None
    return LogCurve(run.params, run.tokens, run.curve.tokens, np.log(run.curve.loss))


def without_shared_noise(curves: Sequence[LogCurve]) -> list[LogCurve]:
    """The curves of one study and seed without the noise that they share; shapes are kept."""
    usable = [curve for curve in curves if len(curve.tokens) > 1]
    if len(usable) >= _FEW:
        left = _Smooth(usable).left(_values(usable))
        sizes = np.array([float(np.sqrt(np.mean(part**2))) for part in left])
        usable = [curve for curve, size in zip(usable, sizes, strict=True) if size <= _BROKEN * np.median(sizes)]
    if len(usable) < _FEW:
        return list(curves)
    grid, place = np.unique(np.concatenate([curve.tokens for curve in usable]), return_inverse=True)
    shared = _shared(usable, place.ravel(), len(grid))
    return [dataclasses.replace(curve, log_loss=curve.log_loss - _at(grid, shared, curve.tokens)) for curve in curves]


def _values(curves: Sequence[LogCurve]) -> np.ndarray:
    return np.concatenate([curve.log_loss for curve in curves])


def _at(grid: np.ndarray, shared: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """b at `tokens`, 0 where no curve of two lines or more was logged."""
    place = np.minimum(np.searchsorted(grid, tokens), len(grid) - 1)
    return np.where(grid[place] == tokens, shared[place], 0.0)


class _Smooth:
    """The part of ln loss that is smooth in run, T and T / D: least squares, in which every run counts once."""

    def __init__(self, curves: Sequence[LogCurve]):
        lengths = np.array([len(curve.tokens) for curve in curves])
        self.run, self.ends = np.repeat(np.arange(len(curves)), lengths), np.cumsum(lengths)
        self.weight = 1.0 / lengths[self.run]
        self.basis = self._centred(_basis(curves, self.run))
        weighted = self.basis * self.weight[:, None]
        squares = weighted.T @ self.basis + _RIDGE * np.eye(self.basis.shape[1])
        self.solve = np.linalg.solve(squares, weighted.T)

    def left(self, values: np.ndarray) -> list[np.ndarray]:
        """What it leaves of the values of all lines, by run."""
        cleaned = self._centred(values[:, None])[:, 0]
        return np.split(cleaned - self.basis @ (self.solve @ cleaned), self.ends[:-1])

    def _centred(self, columns: np.ndarray) -> np.ndarray:
        """Columns [lines, ...] less their means by run."""
        runs = len(self.ends)
        means = np.stack([np.bincount(self.run, self.weight * column, runs) for column in columns.T], 1)
        return columns - means[self.run]


def _shared(curves: Sequence[LogCurve], place: np.ndarray, size: int) -> np.ndarray:
    """b [size] at the distinct T; `place` of each line of the curves among the T."""
    smooth, values = _Smooth(curves), _values(curves)
    count, shared = np.bincount(place, minlength=size), np.zeros(size)
    for _ in range(_ROUNDS):
        fast = np.concatenate([part - _smooth(part) for part in smooth.left(values - shared[place])])
        usual = float(np.median(np.abs(fast)))
        fast = np.clip(fast, -_OUTLIER * usual, _OUTLIER * usual) + shared[place]
        mean = np.bincount(place, fast, size) / count
        shared = mean * _trust(fast - mean[place], mean, count, place)
    return shared


def _trust(apart: np.ndarray, mean: np.ndarray, count: np.ndarray, place: np.ndarray) -> np.ndarray:
    """How much of each mean [T] is shared: its variance without that of a mean of so many runs, over its variance."""
    many = count >= _FEW
    if not many.any():
        return np.zeros(len(mean))
    of_many = many[place]
    times = count[place][of_many]
    alone = float(np.median(apart[of_many] ** 2 * times / (times - 1.0))) / _NORMAL
    together = float(np.median(mean[many] ** 2)) / _NORMAL - alone / float(np.median(count[many]))
    if together <= 0.0:
        return np.zeros(len(mean))
    return count * together / (count * together + alone)


def _basis(curves: Sequence[LogCurve], run: np.ndarray) -> np.ndarray:
    """[lines, functions]: hats in ln T and in T / D, and their products with ln N and ln D."""
    middle = np.concatenate([0.5 * (curve.tokens + curve.starts) for curve in curves])
    log_n = np.log([curve.params for curve in curves])
    log_d = np.log([curve.total for curve in curves])
    n, d = ((value - value.mean())[run, None] for value in (log_n, log_d))
    log_t = np.log(middle)
    along = _hats(log_t, np.linspace(log_t.min(), log_t.max() + 1e-9, _KNOTS_TOKENS))
    share = _hats(middle / np.exp(log_d)[run], np.linspace(0.0, 1.0, _KNOTS_SHARE))
    return np.concatenate([along, share, along * n, share * d, share * n], 1)


def _hats(values: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """[lines, knots]: the functions whose sums are straight between the knots."""
    inside = np.clip(values, knots[0], knots[-1])[:, None]
    return np.maximum(0.0, 1.0 - np.abs(inside - knots) / (knots[1] - knots[0]))


def _smooth(values: np.ndarray) -> np.ndarray:
    """A local straight line through `values` [K], over `_REACH` neighbours to either side."""
    reach = min(_REACH, len(values) - 1)
    offset = np.arange(-reach, reach + 1)
    kernel = 1.0 - (offset / (_REACH + 1.0)) ** 2

    def sums(of: np.ndarray, power: int) -> np.ndarray:
        return np.convolve(of, (kernel * offset**power)[::-1], "full")[reach : reach + len(of)]

    ones = np.ones(len(values))
    s0, s1, s2 = (sums(ones, power) for power in range(3))
    t0, t1 = (sums(values, power) for power in range(2))
    spread = s0 * s2 - s1 * s1
    flat = spread <= 1e-9 * s0 * s0
    return np.where(flat, t0 / s0, (s2 * t0 - s1 * t1) / np.where(flat, 1.0, spread))
