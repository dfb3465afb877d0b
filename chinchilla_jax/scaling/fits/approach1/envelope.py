"""Approach 1: which size is best at each compute, read off the training curves, and how does it grow?

Hoffmann et al. 2022 (arXiv 2203.15556) section 3.1: each size is trained for four horizons over a 16x range; the curves
are smoothed and interpolated to 1500 log-spaced FLOP values; the run with the lowest loss at each gives N and D, and
power laws go through all 1500. `PAPER` does that. Its envelope is a staircase among the sizes trained, it prefers runs
near their end, because elsewhere the learning rate has not decayed yet, and where the sizes or horizons run out the
winner is no optimum: on planted laws that moves the exponent by several times the paper's interval.

`CORRECTED` takes only the ends of the runs, where they are on schedule, each once. Its envelope is a smooth function of
compute, with every run above it by what its size costs (`curves`). The 1500 values are read off that function; those at
which N* is not between the sizes tried near that compute are left out. Curves of a constant learning rate follow the
law throughout; cut them into several runs first, each with its end.

How often the intervals hold a planted truth, with runs resampled as well: `python -m tests.benchmarks.coverage`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from chinchilla_jax.scaling.fits import resample
from chinchilla_jax.scaling.fits.approach1.curves import FEWEST, read_curves, read_ends
from chinchilla_jax.scaling.fits.frontier import OffsetLaw, PowerLaw, fit_offset, fit_power
from chinchilla_jax.scaling.fits.resample import Preset, Resampling, Residuals, Scheme
from chinchilla_jax.scaling.read.runs import FitRefused, Run, flops_per_token

LAST_PART = 0.15  # of training; footnote 4 of the paper
_VALUES = 1500  # of C
_LOSS_VALUES = 16  # stretches of C the paper reading's offset law is fitted to
_LAW_VALUES = 50
_FEWEST_SIZES = 4
_UPWARD = 2.0  # standard errors of the curvature above zero
_NEAR = np.log(4.0)  # sizes count as tried at C when a run of theirs ended within this factor of it
_NARROW = np.log(2.0)
_Laws = tuple[PowerLaw, PowerLaw, OffsetLaw]  # of N*, D* and the loss
# C and N* where the laws were fitted, FLOP values left out, the laws, a run's noise, replicates' share and laws.
_Reading = tuple[np.ndarray, int, _Laws, float, float, _Laws | None]
_RANKS = 16  # runs by rank looked at for a replicate's winner; all 16 are missing once in 10^7 draws

# `curve` is `winner` (the run with the lowest loss at each C) or `smooth` (the envelope below the runs' ends).
PAPER = Preset(
    "paper",
    "winner",
    resample.PAPER,
    (
        "as in Hoffmann et al. 2022, section 3.1: Gaussian smoothing over 10 logged points (never more than 2% of a "
        "curve), the winning run at each of 1500 FLOP values, all of them fitted by least squares",
        "interval from 100 subsets of 80% of the runs",
    ),
)
CORRECTED = Preset(
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
    """The envelope at G compute values: `flops`, `params`, `tokens` (seen by then), `loss` [G]; `run` [G] indexes
    `EnvelopeFit.runs`; `done` [G] the share of its training the winner had behind it; `edge` [G] is "" or why the
    winner is no free choice: `smallest` or `largest` size with a curve there, or `end` (the next value lies beyond all
    curves of its size)."""

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
class EnvelopeFit:
    """Approach 1: the envelope; `optima` [K, 2], C and N* where the laws were fitted, and how many FLOP values were
    `dropped`; the laws N*(C) = k C^a, D*(C) = k' C^b and of the minimum loss; `boot_*`, their B bootstrap replicates
    (None without resampling), and `kept_draws`, the share of them that had an optimum; `scatter`, the relative noise of
    one run, 0 under `PAPER`, which does not estimate it."""

    preset: Preset
    runs: tuple[Run, ...]
    points: EnvelopePoints
    optima: np.ndarray
    dropped: int
    params_law: PowerLaw
    tokens_law: PowerLaw
    loss_offset: OffsetLaw
    scatter: float = 0.0
    kept_draws: float = 1.0
    boot_params: PowerLaw | None = None
    boot_tokens: PowerLaw | None = None
    boot_loss_offset: OffsetLaw | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the answer doubtful, a sentence each."""
        points, count, winner = self.points, len(self.points.flops), self.preset.curve == "winner"
        edges = {word: number for word, number in points.edges.items() if number}
        parts = ", ".join(f"{number} {word}" for word, number in edges.items())
        short = sum(run.curve is not None and len(run.curve.tokens) < 20 for run in self.runs)
        doubtful = {
            f"{1 - points.on_schedule:.0%} of the {count} envelope points lie before the last 15% of their run's "
            "training, above the law": winner and points.on_schedule < 1.0,
            f"{sum(edges.values())} of {count} envelope points are at an edge ({parts}) and are fitted all the same": (
                winner and bool(edges)
            ),
            f"{self.dropped} of {_VALUES} FLOP values were left out: the optimum is not between the sizes tried "
            "there": not winner and self.dropped > 0.5 * _VALUES,
            f"{1 - self.kept_draws:.0%} of the bootstrap replicates had no optimum and were left out": (
                self.kept_draws < 0.9
            ),
            f"{short} curves have fewer than 20 points; log more often": short > 0,
        }
        return tuple(sentence for sentence, doubted in doubtful.items() if doubted)


def fit_envelope(
    runs: Sequence[Run], *, preset: Preset = CORRECTED, resampling: Scheme | None | str = "preset", seed: int = 0
) -> EnvelopeFit:
    """Approach 1 on the runs with role `isoflop` that have a training curve.

    `resampling` overrides the preset's; None for no intervals. `Residuals` belongs to `CORRECTED` only.

    Raises:
      FitRefused: `no_curves`, `one_size`, `no_overlap` (nowhere do curves of two sizes reach the same C), `few_sizes`
        (one size wins throughout, or for `CORRECTED` fewer than ten run ends or four sizes), `no_optimum` (loss against
        N does not curve upward beyond its noise, or the best size is at the edge almost everywhere), `resampling`.
    """
    scheme = preset.resampling if isinstance(resampling, str) else resampling
    if preset.curve == "winner" and isinstance(scheme, Residuals):
        raise FitRefused("resampling", "the paper's envelope has no residuals to draw from; resample runs")
    if not isinstance(scheme, Resampling | Residuals | None):
        raise FitRefused("resampling", f"an envelope draws from runs or from residuals, not {scheme}")
    runs = tuple(run for run in runs if run.role == "isoflop" and run.curve is not None and len(run.curve.tokens) > 1)
    if not runs:
        why = "a study and run directories have them, a table needs a field `curve` or --curves"
        raise FitRefused("no_curves", f"approach 1 needs training curves: {why}")
    sizes = np.unique([run.params for run in runs])
    if len(sizes) < 2:
        raise FitRefused("one_size", f"approach 1 compares sizes; all {len(runs)} curves have N = {sizes[0]:.4g}")
    ends = [run.flops * run.curve.tokens[-1] / run.tokens for run in runs if run.curve]
    log_flops = np.linspace(np.log(min(ends)), np.log(max(ends)), _VALUES)
    curves = read_curves(runs, log_flops, preset.curve)
    points = _points(runs, np.log(ends), log_flops, curves)
    rng = np.random.default_rng(seed)
    read = _winners if preset.curve == "winner" else _smooth
    optima, dropped, laws, scatter, kept, boot = read(runs, log_flops, curves, scheme, rng)
    return EnvelopeFit(preset, runs, points, optima, dropped, *laws, scatter, kept, *(boot or (None, None, None)))


def _points(runs: Sequence[Run], ends: np.ndarray, log_flops: np.ndarray, curves: np.ndarray) -> EnvelopePoints:
    """The lowest of the curves [R, G] of runs that end at ln C `ends` [R]."""
    log_n = np.log([run.params for run in runs])
    reached = np.isfinite(curves).any(0)
    log_flops, curves = log_flops[reached], curves[:, reached]
    smallest, largest = _range(log_n, np.isfinite(curves))
    if not (largest > smallest).any():
        raise FitRefused("no_overlap", "nowhere do curves of two sizes reach the same compute; train sizes at equal C")
    run = curves.argmin(0)
    tokens_per_flop = np.array([r.tokens / r.flops for r in runs])
    last_of_size = np.array([ends[log_n == n].max() for n in log_n])
    step = np.append(log_flops[1:], np.inf)
    edge = np.where(step > last_of_size[run] + 1e-9, "end", "")
    edge = np.where(log_n[run] >= largest, "largest", edge)
    edge = np.where(log_n[run] <= smallest, "smallest", edge)
    flops, tokens = np.exp(log_flops), np.exp(log_flops) * tokens_per_flop[run]
    return EnvelopePoints(flops, np.exp(log_n[run]), tokens, curves.min(0), run, np.exp(log_flops - ends[run]), edge)


def _range(log_n: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest ln N [G] of the runs [R] that are `present` [R, G]; infinite where none is."""
    column = log_n[:, None]
    return np.where(present, column, np.inf).min(0), np.where(present, column, -np.inf).max(0)


def _winners(
    runs: Sequence[Run], log_flops: np.ndarray, curves: np.ndarray, scheme: Scheme | None, rng: np.random.Generator
) -> _Reading:
    """The paper's reading: the run with the lowest loss at each C."""
    log_n = np.log([run.params for run in runs])
    log_d = np.log([run.tokens / run.flops for run in runs])
    flops = np.exp(log_flops)

    def laws(run: np.ndarray, loss: np.ndarray) -> _Laws:
        """Through the runs [..., G]; a value whose loss is infinite does not count."""
        weight = np.isfinite(loss).astype(float)
        params, tokens = (fit_power(flops, np.exp(y), weight) for y in (log_n[run], log_flops + log_d[run]))
        loss = np.where(weight > 0, loss, 1.0)
        # A few means over stretches of C: the offset law is searched, and 1500 values per replicate would take minutes.
        parts = np.array_split(np.arange(len(flops)), _LOSS_VALUES)
        total = np.stack([weight[..., part].sum(-1) for part in parts], -1)
        mean = np.stack([(weight * loss)[..., part].sum(-1) for part in parts], -1) / np.where(total > 0, total, 1.0)
        centre = np.exp([log_flops[part].mean() for part in parts])
        return params, tokens, fit_offset(centre, mean, total)

    best, lowest = curves.argmin(0), curves.min(0)
    if len(np.unique(log_n[best])) < 2:
        raise FitRefused("few_sizes", f"N = {np.exp(log_n[best[0]]):.4g} wins at every C; add sizes on both sides")
    used = np.isfinite(lowest)
    optima = np.stack([flops, np.exp(log_n[best])], 1)[used]
    if not isinstance(scheme, Resampling):
        return optima, int((~used).sum()), laws(best, lowest), 0.0, 1.0, None
    order = curves.argsort(0)[:_RANKS]
    ranked = np.take_along_axis(curves, order, 0)
    winner, loss = [], []
    for present in scheme.weights(len(runs), rng) > 0:
        first = present[order].argmax(0)[None]
        loss.append(np.take_along_axis(np.where(present[order], ranked, np.inf), first, 0)[0])
        winner.append(np.take_along_axis(order, first, 0)[0])
    return optima, int((~used).sum()), laws(best, lowest), 0.0, 1.0, laws(np.array(winner), np.array(loss))


def _smooth(
    runs: Sequence[Run], log_flops: np.ndarray, curves: np.ndarray, scheme: Scheme | None, rng: np.random.Generator
) -> _Reading:
    """The corrected reading: the smooth envelope below the runs' ends."""
    ends = read_ends(runs)
    sizes = len(np.unique(ends.log_params))
    if sizes < _FEWEST_SIZES or len(ends.loss) < FEWEST:
        needs = f"the envelope needs {FEWEST} of {_FEWEST_SIZES} sizes or more"
        raise FitRefused("few_sizes", f"{len(ends.loss)} run ends of {sizes} sizes; {needs}")
    envelope = ends.fit(scheme, rng)
    if not envelope.curvature_z > _UPWARD:
        raise FitRefused(
            "no_optimum",
            "at equal compute the loss does not curve upward in N beyond its noise "
            f"({envelope.curvature_z:.1f} standard errors); train sizes further apart on the same compute",
        )
    per_token = flops_per_token(runs)
    flops = np.exp(log_flops)
    params = envelope.laws[0].at(flops)
    low, high = _range(ends.log_params, np.abs(ends.log_flops[:, None] - log_flops) < _NEAR)
    inside = (np.log(params) > low) & (np.log(params) < high)
    if not inside.any() or np.ptp(log_flops[inside]) < _NARROW:
        side = "smaller" if (np.log(params) <= low).sum() > (np.log(params) >= high).sum() else "larger"
        raise FitRefused("no_optimum", f"the best size is nearly everywhere at the edge of those tried; add {side}")
    at = flops[inside][:: max(1, int(inside.sum()) // _LAW_VALUES)]

    def laws(size: PowerLaw, loss: OffsetLaw) -> _Laws:
        column = PowerLaw(size.log_centre, size.log_value[..., None], size.exponent[..., None])
        return size, fit_power(at, at / per_token(column.at(at))), loss

    optima = np.stack([flops, params], 1)[inside]
    boot = laws(*envelope.boot) if envelope.boot else None
    return optima, int((~inside).sum()), laws(*envelope.laws), envelope.noise, envelope.kept, boot
