"""Approach 1: which size is best at each compute, read off the training curves, and how does it grow?

Hoffmann et al. 2022 (arXiv 2203.15556) section 3.1: each size is trained for four horizons over a 16x range; the curves
are smoothed and interpolated to 1500 log-spaced FLOP values; the run with the lowest loss at each gives N and D, and
power laws go through all 1500. `PAPER` does that. Its envelope is a staircase among the sizes trained. It prefers runs
that are near their end, because elsewhere the learning rate has not decayed yet. Where the sizes or horizons run out,
the winner is no optimum. On planted laws all of that moves the exponent by several times the interval that the paper's
resampling gives.

`CORRECTED` takes only the ends of the runs, where they are on schedule, each once. Its envelope is a smooth function of
compute, with every run above it by what its size costs (`ends`). The 1500 values are read off that function; those at
which N* is not between the sizes tried near that compute are left out.

Measured on 100 planted studies of 16 sizes and 4 horizons (`python -m tests.benchmarks.coverage`): 95% intervals of the
exponent and of N* at ten times the largest compute hold the truth

                                              no noise      0.2% from run to run, 0.5% per logged loss
    corrected, redraws of residuals           100, 100      92, 94     mean error of the exponent +0.000
    corrected, runs resampled                 100, 100      91, 93
    paper, 100 subsets of 80%                   0,  14       0,  2     mean error of the exponent -0.038
    paper, runs resampled                       1,  36       1, 30

The corrected reading needs run ends on schedule. Curves of a constant learning rate follow the law throughout; cut them
into several runs first, each with its end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from chinchilla_jax.scaling.fits.approach1.curves import read_curves, read_ends
from chinchilla_jax.scaling.fits.approach1.ends import FEWEST, SmoothEnvelope, fit_smooth_envelope
from chinchilla_jax.scaling.fits.frontier import OffsetLaw, PowerLaw, fit_offset, fit_power
from chinchilla_jax.scaling.fits.resample import PAPER as PAPER_RESAMPLING
from chinchilla_jax.scaling.fits.resample import Resampling, Residuals
from chinchilla_jax.scaling.read.flops import flops_per_token
from chinchilla_jax.scaling.read.runs import FitRefused, Run

LAST_PART = 0.15  # of training; footnote 4 of the paper
_VALUES = 1500  # of C
_LOSS_VALUES = 16  # stretches of C the paper reading's offset law is fitted to
_LAW_VALUES = 50
_FEWEST_SIZES = 4
_UPWARD = 2.0  # standard errors of the curvature above zero
_NEAR = np.log(4.0)  # sizes count as tried at C when a run of theirs ended within this factor of it
_NARROW = np.log(2.0)
# The laws of N*, D* and the loss.
_Laws = tuple[PowerLaw | None, PowerLaw | None, OffsetLaw | None]
_NO_LAWS = (None, None, None)
_RANKS = 16  # runs by rank looked at for a replicate's winner; all 16 are missing once in 10^7 draws


@dataclasses.dataclass(frozen=True)
class EnvelopePreset:
    """How the envelope is read, and the `resampling` of runs.

    `optimum` is `winner` (the run with the lowest loss at each C) or `smooth` (the envelope below the runs' ends).
    """

    name: str
    optimum: str
    resampling: Resampling | Residuals
    differences: tuple[str, ...]

    @property
    def smoothing(self) -> str:
        """How curves are smoothed."""
        return "gaussian" if self.optimum == "winner" else "local_linear"


PAPER = EnvelopePreset(
    "paper",
    "winner",
    PAPER_RESAMPLING,
    (
        "as in Hoffmann et al. 2022, section 3.1: Gaussian smoothing over 10 logged points (never more than 2% of a "
        "curve), the winning run at each of 1500 FLOP values, all of them fitted by least squares",
        "interval from 100 subsets of 80% of the runs",
    ),
)
CORRECTED = EnvelopePreset(
    "corrected",
    "smooth",
    Residuals(),
    (
        "losses are taken at the ends of the runs only: earlier points of a curve lie above the law because the "
        "learning rate has not decayed",
        "each run counts once: 1500 values interpolated between a few runs are not 1500 observations",
        "the envelope is a smooth function with the other sizes above it by a skewed parabola in ln N: the winning "
        "size moves in steps, follows noise, and at the edge of the sizes tried is no optimum",
        "FLOP values whose optimum is not between the sizes tried near them are left out",
        "curves are smoothed by local lines, which do not lag behind at the end of a falling curve",
        "the interval comes from redraws of the runs' residuals: 80% subsets give half the width at best",
    ),
)


@dataclasses.dataclass(frozen=True)
class EnvelopePoints:
    """The envelope at G compute values: who wins, and is that a choice?

    `flops`, `params`, `tokens` (seen by then), `loss` [G]; `run` [G] indexes `EnvelopeFit.runs`; `done` [G] the share
    of its training the winner had behind it; `edge` [G] is "" or why the winner is no free choice: `smallest` or
    `largest` size with a curve there, or `end` (the next value lies beyond all curves of its size).
    """

    flops: np.ndarray
    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    run: np.ndarray
    done: np.ndarray
    edge: np.ndarray

    @property
    def on_schedule(self) -> float:
        """Share of the points within the last 15% of their run's training; all of them in the paper."""
        return float((self.done >= 1.0 - LAST_PART - 1e-9).mean())

    @property
    def edges(self) -> dict[str, int]:
        """How many points are flagged, by reason."""
        return {word: int((self.edge == word).sum()) for word in ("smallest", "largest", "end")}


@dataclasses.dataclass(frozen=True)
class Optima:
    """What the laws are fitted to: N* at each C, and the weight (0 or 1) of each value; all [G]."""

    flops: np.ndarray
    params: np.ndarray
    weight: np.ndarray


@dataclasses.dataclass(frozen=True)
class EnvelopeFit:
    """Approach 1: the envelope, and laws of scalars and of B bootstrap replicates.

    `params_law` N*(C) = k C^a; `tokens_law` D*(C) = k' C^b; `loss_offset` the minimum loss. `boot_*` are the
    replicates, None without resampling; `kept_draws` the share of them that had an optimum. `scatter` is the relative
    noise of one run, 0 under `PAPER`, which does not estimate it.
    """

    preset: EnvelopePreset
    runs: tuple[Run, ...]
    points: EnvelopePoints
    optima: Optima
    params_law: PowerLaw
    tokens_law: PowerLaw
    loss_offset: OffsetLaw
    scatter: float = 0.0
    boot_params: PowerLaw | None = None
    boot_tokens: PowerLaw | None = None
    boot_loss_offset: OffsetLaw | None = None
    kept_draws: float = 1.0

    @property
    def dropped(self) -> int:
        """How many FLOP values were left out."""
        return int((self.optima.weight == 0).sum())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the answer doubtful, a sentence each."""
        sentences, points, count = [], self.points, len(self.points.flops)
        flagged = sum(points.edges.values())
        if self.preset.optimum == "winner" and points.on_schedule < 1.0:
            early = f"{1 - points.on_schedule:.0%} of the {count} envelope points lie before the last 15% of their"
            sentences.append(f"{early} run's training, above the law")
        if self.preset.optimum == "winner" and flagged:
            parts = ", ".join(f"{number} {word}" for word, number in points.edges.items() if number)
            sentences.append(
                f"{flagged} of {count} envelope points are at an edge ({parts}) and are fitted all the same"
            )
        if self.preset.optimum == "smooth" and self.dropped > 0.5 * _VALUES:
            why = "the optimum is not between the sizes tried there"
            sentences.append(f"{self.dropped} of {_VALUES} FLOP values were left out: {why}")
        if self.kept_draws < 0.9:
            lost = 1 - self.kept_draws
            sentences.append(f"{lost:.0%} of the bootstrap replicates had no optimum and were left out")
        short = sum(len(run.curve.tokens) < 20 for run in self.runs)
        if short:
            sentences.append(f"{short} curves have fewer than 20 points; log more often")
        return tuple(sentences)


def fit_envelope(
    runs: Sequence[Run],
    *,
    preset: EnvelopePreset = CORRECTED,
    resampling: Resampling | Residuals | None | str = "preset",
    seed: int = 0,
) -> EnvelopeFit:
    """Approach 1 on the runs with role `isoflop` that have a training curve.

    Args:
      resampling: overrides the preset's; None for no intervals. `Residuals` belongs to `CORRECTED` only.

    Raises:
      FitRefused: `no_curves`, `one_size`, `no_overlap` (nowhere do curves of two sizes reach the same C), `few_sizes`
        (one size wins throughout, or for `CORRECTED` fewer than ten run ends or four sizes), `no_optimum` (loss against
        N does not curve upward beyond its noise, or the best size is at the edge almost everywhere), `resampling`.
    """
    resampling = preset.resampling if isinstance(resampling, str) else resampling
    if preset.optimum == "winner" and isinstance(resampling, Residuals):
        raise FitRefused("resampling", "the paper's envelope has no residuals to draw from; resample runs")
    runs = tuple(run for run in runs if run.role == "isoflop" and run.curve is not None and len(run.curve.tokens) > 1)
    if not runs:
        why = "a study and run directories have them, a table needs a field `curve` or --curves"
        raise FitRefused("no_curves", f"approach 1 needs training curves: {why}")
    sizes = np.unique([run.params for run in runs])
    if len(sizes) < 2:
        raise FitRefused("one_size", f"approach 1 compares sizes; all {len(runs)} curves have N = {sizes[0]:.4g}")
    ends = _ends(runs)
    log_flops = np.linspace(np.log(min(ends)), np.log(max(ends)), _VALUES)
    curves = read_curves(runs, log_flops, preset.smoothing)
    points = _points(runs, log_flops, curves)
    rng = np.random.default_rng(seed)
    if preset.optimum == "winner":
        optima, laws, boot = _winners(runs, log_flops, curves, resampling, rng)
        return EnvelopeFit(preset, runs, points, optima, *laws, 0.0, *boot)
    optima, laws, boot, kept, scatter = _smooth(runs, log_flops, resampling, rng)
    return EnvelopeFit(preset, runs, points, optima, *laws, scatter, *boot, kept)


def _ends(runs: Sequence[Run]) -> list[float]:
    """C at the end of each curve."""
    return [run.flops * run.curve.tokens[-1] / run.tokens for run in runs]


def _points(runs: Sequence[Run], log_flops: np.ndarray, curves: np.ndarray) -> EnvelopePoints:
    log_n = np.log([run.params for run in runs])
    reached = np.isfinite(curves).any(0)
    log_flops, curves = log_flops[reached], curves[:, reached]
    smallest, largest = _range(log_n, np.isfinite(curves))
    if not (largest > smallest).any():
        raise FitRefused("no_overlap", "nowhere do curves of two sizes reach the same compute; train sizes at equal C")
    run = curves.argmin(0)
    tokens_per_flop = np.array([r.tokens / r.flops for r in runs])
    end = np.log(_ends(runs))
    last_of_size = np.array([end[log_n == n].max() for n in log_n])
    step = np.append(log_flops[1:], np.inf)
    edge = np.where(step > last_of_size[run] + 1e-9, "end", "")
    edge = np.where(log_n[run] >= largest, "largest", edge)
    edge = np.where(log_n[run] <= smallest, "smallest", edge)
    flops, tokens = np.exp(log_flops), np.exp(log_flops) * tokens_per_flop[run]
    return EnvelopePoints(flops, np.exp(log_n[run]), tokens, curves.min(0), run, np.exp(log_flops - end[run]), edge)


def _range(log_n: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest ln N [G] of the runs [R] that are `present` [R, G]; infinite where none is."""
    column = log_n[:, None]
    return np.where(present, column, np.inf).min(0), np.where(present, column, -np.inf).max(0)


def _winners(
    runs: Sequence[Run],
    log_flops: np.ndarray,
    curves: np.ndarray,
    resampling: Resampling | None,
    rng: np.random.Generator,
) -> tuple[Optima, _Laws, _Laws]:
    """The paper's reading: the run with the lowest loss at each C. Optima, the laws, and their replicates."""
    log_n = np.log([run.params for run in runs])
    log_d = np.log([run.tokens / run.flops for run in runs])

    def laws(run: np.ndarray, loss: np.ndarray) -> _Laws:
        return _laws_through(log_flops, log_n[run], log_flops + log_d[run], loss)

    best, lowest = curves.argmin(0), curves.min(0)
    if len(np.unique(log_n[best])) < 2:
        raise FitRefused("few_sizes", f"N = {np.exp(log_n[best[0]]):.4g} wins at every C; add sizes on both sides")
    optima = Optima(np.exp(log_flops), np.exp(log_n[best]), np.isfinite(lowest).astype(float))
    if resampling is None:
        return optima, laws(best, lowest), _NO_LAWS
    order = curves.argsort(0)[:_RANKS]
    ranked = np.take_along_axis(curves, order, 0)
    winner, loss = [], []
    for present in resampling.weights(len(runs), rng) > 0:
        first = present[order].argmax(0)[None]
        loss.append(np.take_along_axis(np.where(present[order], ranked, np.inf), first, 0)[0])
        winner.append(np.take_along_axis(order, first, 0)[0])
    return optima, laws(best, lowest), laws(np.array(winner), np.array(loss))


def _smooth(
    runs: Sequence[Run], log_flops: np.ndarray, resampling: Resampling | Residuals | None, rng: np.random.Generator
) -> tuple[Optima, _Laws, _Laws, float, float]:
    """The corrected reading: the smooth envelope below the runs' ends. As `_winners`; also the share of replicates with
    an optimum, and a run's relative noise."""
    ends = read_ends(runs)
    sizes = len(np.unique(ends.log_params))
    if sizes < _FEWEST_SIZES or len(ends.loss) < FEWEST:
        needs = f"the envelope needs {FEWEST} of {_FEWEST_SIZES} sizes or more"
        raise FitRefused("few_sizes", f"{len(ends.loss)} run ends of {sizes} sizes; {needs}")
    envelope, boot, kept = fit_smooth_envelope(ends, resampling, rng)
    if not envelope.curvature_z > _UPWARD:
        raise FitRefused(
            "no_optimum",
            "at equal compute the loss does not curve upward in N beyond its noise "
            f"({envelope.curvature_z:.1f} standard errors); train sizes further apart on the same compute",
        )
    per_token = flops_per_token(runs)
    flops = np.exp(log_flops)
    params = envelope.params_law.at(flops)
    low, high = _range(ends.log_params, np.abs(ends.log_flops[:, None] - log_flops) < _NEAR)
    inside = (np.log(params) > low) & (np.log(params) < high)
    if not inside.any() or np.ptp(log_flops[inside]) < _NARROW:
        side = "smaller" if (np.log(params) <= low).sum() > (np.log(params) >= high).sum() else "larger"
        raise FitRefused("no_optimum", f"the best size is nearly everywhere at the edge of those tried; add {side}")
    at = flops[inside][:: max(1, int(inside.sum()) // _LAW_VALUES)]

    def laws(smooth: SmoothEnvelope) -> _Laws:
        law = smooth.params_law
        column = PowerLaw(law.log_centre, law.log_value[..., None], law.exponent[..., None])
        return law, fit_power(at, at / per_token(column.at(at))), smooth.loss_law

    optima = Optima(flops, params, inside.astype(float))
    return optima, laws(envelope), laws(boot) if boot else _NO_LAWS, kept, envelope.noise


def _laws_through(log_flops: np.ndarray, log_params: np.ndarray, log_tokens: np.ndarray, loss: np.ndarray) -> _Laws:
    """Laws of N*, D* and the loss through values [..., G]; a value whose loss is infinite does not count."""
    flops, weight = np.exp(log_flops), np.isfinite(loss).astype(float)
    power = [fit_power(flops, np.exp(y), weight) for y in (log_params, log_tokens)]
    loss = np.where(weight > 0, loss, 1.0)
    # A few means over stretches of C: the offset law is searched, and 1500 values per replicate would take minutes.
    parts = np.array_split(np.arange(len(flops)), _LOSS_VALUES)
    total = np.stack([weight[..., part].sum(-1) for part in parts], -1)
    mean = np.stack([(weight * loss)[..., part].sum(-1) for part in parts], -1) / np.where(total > 0, total, 1.0)
    centre = np.exp([log_flops[part].mean() for part in parts])
    return *power, fit_offset(centre, mean, total)
