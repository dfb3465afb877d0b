"""Approach 1: which size is best at each compute, read off the training curves, and how does it grow?

Hoffmann et al. 2022 (arXiv 2203.15556) section 3.1: each size is trained for four horizons over a 16x range; the curves
are smoothed and interpolated to 1500 log-spaced FLOP values; the run with the lowest loss at each gives N and D, and
power laws go through all 1500. `PAPER` is that. The envelope so made is a staircase among the sizes trained, it prefers
runs that happen to be near their end (elsewhere the learning rate has not decayed yet), and where the sizes or
horizons run out the winner is whatever is left: on planted laws all of that moves the exponent by several times the
interval the paper's resampling gives.

`CORRECTED` keeps the envelope and changes what is put under it: only the ends of the runs, where they are on schedule,
each once; and the envelope is a smooth function of compute with the runs above it by what their size costs
(`smooth_envelope`), not a staircase through the winners. The 1500 values are then read off it, and those at which N*
is not between the sizes tried near that compute are left out.

Measured on 100 planted studies of 16 sizes and 4 horizons (`python -m tests.benchmarks.coverage`): 95% intervals of the
exponent and of N* at ten times the largest compute hold the truth

                                              no noise      0.2% from run to run, 0.5% per logged loss
    corrected, redraws of residuals           100, 100      92, 94     mean error of the exponent +0.000
    corrected, runs resampled                 100, 100      91, 93
    paper, 100 subsets of 80%                   0,  14       0,  2     mean error of the exponent -0.038
    paper, runs resampled                       1,  36       1, 30

The corrected reading needs run ends on schedule. Curves of a constant learning rate are on the law all along; cut them
into runs of their own ends first.
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
_LOSS_VALUES = 16  # stretches of C the paper reading's offset law is fitted to
_LAW_VALUES = 50
_FEWEST_SIZES = 4
_UPWARD = 2.0  # standard errors of the curvature above zero
_NEAR = np.log(4.0)  # sizes count as tried at C when a run of theirs ended within this factor of it
_NARROW = np.log(2.0)
_RANKS = 16  # runs by rank looked at for a replicate's winner; all 16 are missing once in 10^7 draws


@dataclasses.dataclass(frozen=True)
class EnvelopePreset:
    """How the envelope is read: `values` of C, the `smoothing` of curves, and the `resampling` of runs.

    `optimum` is `winner` (the run with the lowest loss at each C) or `smooth` (the envelope below the runs' ends).
    """

    name: str
    values: int
    smoothing: str
    optimum: str
    resampling: Resampling | Residuals
    differences: tuple[str, ...]


PAPER = EnvelopePreset(
    "paper",
    1500,
    "gaussian",
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
    1500,
    "local_linear",
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
    """What the laws are fitted to: N*, D* and loss at each C, and the weight of each value; all [G]."""

    flops: np.ndarray
    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    weight: np.ndarray


@dataclasses.dataclass(frozen=True)
class EnvelopeFit:
    """Approach 1: the envelope, and laws of scalars and of B bootstrap replicates.

    `params_law` N*(C) = k C^a; `tokens_law` D*(C) = k' C^b; `loss_power` and `loss_offset` the minimum loss. `boot_*`
    are the replicates, None without resampling; `kept_draws` the share of them that had an optimum. `scatter` is the
    relative noise of one run, 0 under `PAPER`, which does not estimate it. `dropped` counts the FLOP values left out.
    """

    preset: EnvelopePreset
    runs: tuple[Run, ...]
    points: EnvelopePoints
    optima: Optima
    dropped: int
    params_law: PowerLaw
    tokens_law: PowerLaw
    loss_power: PowerLaw
    loss_offset: OffsetLaw
    scatter: float
    warnings: tuple[str, ...]
    boot_params: PowerLaw | None = None
    boot_tokens: PowerLaw | None = None
    boot_loss_power: PowerLaw | None = None
    boot_loss_offset: OffsetLaw | None = None
    kept_draws: float = 1.0


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
        raise FitRefused("no_curves", "approach 1 needs training curves: a study and run directories have them, a "
                         "table needs a field `curve` or --curves")  # fmt: skip
    sizes = np.unique([run.params for run in runs])
    if len(sizes) < 2:
        raise FitRefused("one_size", f"approach 1 compares sizes; all {len(runs)} curves have N = {sizes[0]:.4g}")
    ends = [run.flops * run.curve.tokens[-1] / run.tokens for run in runs]
    log_flops = np.linspace(np.log(min(ends)), np.log(max(ends)), preset.values)
    curves = read_curves(runs, log_flops, preset.smoothing)
    points = _points(runs, log_flops, curves)
    read = _winners if preset.optimum == "winner" else _smooth
    optima, laws, boot, kept, scatter = read(runs, log_flops, curves, resampling, np.random.default_rng(seed))
    dropped = int((optima.weight == 0).sum())
    warnings = _warnings(preset, runs, points, dropped, kept)
    return EnvelopeFit(preset, runs, points, optima, dropped, *laws, scatter, warnings, *boot, kept)


def _points(runs: Sequence[Run], log_flops: np.ndarray, curves: np.ndarray) -> EnvelopePoints:
    log_n = np.log([run.params for run in runs])
    there = np.isfinite(curves)
    two = (np.where(there, log_n[:, None], -np.inf).max(0) > np.where(there, log_n[:, None], np.inf).min(0)).any()
    if not two:
        raise FitRefused("no_overlap", "nowhere do curves of two sizes reach the same compute; train sizes at equal C")
    seen = there.any(0)
    log_flops, curves, there = log_flops[seen], curves[:, seen], there[:, seen]
    run = curves.argmin(0)
    smallest = np.where(there, log_n[:, None], np.inf).min(0)
    largest = np.where(there, log_n[:, None], -np.inf).max(0)
    tokens_per_flop = np.array([r.tokens / r.flops for r in runs])
    end = np.log([r.flops * r.curve.tokens[-1] / r.tokens for r in runs])
    last_of_size = np.array([end[log_n == n].max() for n in log_n])
    step = np.append(log_flops[1:], np.inf)
    edge = np.where(step > last_of_size[run] + 1e-9, "end", "")
    edge = np.where(log_n[run] >= largest, "largest", edge)
    edge = np.where(log_n[run] <= smallest, "smallest", edge)
    flops = np.exp(log_flops)
    return EnvelopePoints(
        flops,
        np.exp(log_n[run]),
        flops * tokens_per_flop[run],
        curves.min(0),
        run,
        np.exp(log_flops - end[run]),
        edge,
    )


def _winners(runs, log_flops, curves, resampling, rng):
    """The paper's reading: the run with the lowest loss at each C."""
    log_n = np.log([run.params for run in runs])
    log_d = np.log([run.tokens / run.flops for run in runs])

    def laws(run: np.ndarray, loss: np.ndarray) -> tuple:
        return _laws(log_flops, log_n[run], log_flops + log_d[run], np.log(loss), np.isfinite(loss).astype(float))

    best = curves.argmin(0)
    if len(np.unique(log_n[best])) < 2:
        raise FitRefused("few_sizes", f"N = {np.exp(log_n[best[0]]):.4g} wins at every C; add sizes on both sides")
    flops = np.exp(log_flops)
    optima = Optima(
        flops, np.exp(log_n[best]), flops * np.exp(log_d[best]), curves.min(0), np.isfinite(curves.min(0)).astype(float)
    )
    if resampling is None:
        return optima, laws(best, curves.min(0)), (None,) * 4, 1.0, 0.0
    order = curves.argsort(0)[:_RANKS]
    ranked = np.take_along_axis(curves, order, 0)
    drawn, lost = [], []
    for present in resampling.weights(len(runs), rng) > 0:
        first = present[order].argmax(0)[None]
        loss = np.take_along_axis(np.where(present[order], ranked, np.inf), first, 0)[0]
        drawn.append(np.take_along_axis(order, first, 0)[0])
        lost.append(loss)
    return optima, laws(best, curves.min(0)), laws(np.array(drawn), np.array(lost)), 1.0, 0.0


def _smooth(runs, log_flops, curves, resampling, rng):
    """The corrected reading: the smooth envelope below the runs' ends."""
    del curves
    ends = read_ends(runs)
    sizes = len(np.unique(ends.log_params))
    if sizes < _FEWEST_SIZES or len(ends.loss) < FEWEST:
        raise FitRefused(
            "few_sizes",
            f"{len(ends.loss)} run ends of {sizes} sizes; the envelope needs {FEWEST} of {_FEWEST_SIZES} sizes or more",
        )
    envelope, boot, kept = fit_smooth_envelope(ends, resampling, rng)
    if not envelope.curvature_z > _UPWARD:
        raise FitRefused(
            "no_optimum",
            "at equal compute the loss does not curve upward in N beyond its noise "
            f"({envelope.curvature_z:.1f} standard errors); train sizes further apart on the same compute",
        )
    per_token = flops_per_token(runs)

    def tokens(params: np.ndarray, flops: np.ndarray) -> np.ndarray:
        return flops / per_token(params)

    flops = np.exp(log_flops)
    params, loss = envelope.params_law.at(flops), envelope.loss_law.at(flops)
    near = np.abs(ends.log_flops[:, None] - log_flops) < _NEAR
    low = np.where(near, ends.log_params[:, None], np.inf).min(0)
    high = np.where(near, ends.log_params[:, None], -np.inf).max(0)
    inside = (np.log(params) > low) & (np.log(params) < high)
    if not inside.any() or np.ptp(log_flops[inside]) < _NARROW:
        side = "smaller" if (np.log(params) <= low).sum() > (np.log(params) >= high).sum() else "larger"
        raise FitRefused("no_optimum", f"the best size is nearly everywhere at the edge of those tried; add {side}")
    optima = Optima(flops, params, tokens(params, flops), loss, inside.astype(float))

    def laws(found: SmoothEnvelope) -> tuple[PowerLaw, PowerLaw, PowerLaw, OffsetLaw]:
        at = np.exp(log_flops[inside][:: max(1, int(inside.sum()) // _LAW_VALUES)])
        column = SmoothEnvelope(found.log_centre, found.theta[..., None, :], found.noise)
        law = found.params_law
        n, y = column.params_law.at(at), column.loss_law.at(at)
        return law, fit_power(at, tokens(n, at)), fit_power(at, y), found.loss_law

    return optima, laws(envelope), laws(boot) if boot else (None,) * 4, kept, envelope.noise


def _laws(
    log_flops: np.ndarray, log_params: np.ndarray, log_tokens: np.ndarray, log_loss: np.ndarray, weight: np.ndarray
) -> tuple[PowerLaw, PowerLaw, PowerLaw, OffsetLaw]:
    """Laws of N*, D* and the loss (pure and with offset) through values [..., G] of weight [..., G]."""
    flops = np.exp(log_flops)
    power = [fit_power(flops, np.exp(y), weight) for y in (log_params, log_tokens, log_loss)]
    loss = np.exp(np.where(weight > 0, log_loss, 0.0))
    # A few means over stretches of C: the offset law is searched, and 1500 values per replicate would take minutes.
    parts = np.array_split(np.arange(len(flops)), _LOSS_VALUES)
    total = np.stack([weight[..., part].sum(-1) for part in parts], -1)
    mean = np.stack([(weight * loss)[..., part].sum(-1) for part in parts], -1) / np.where(total > 0, total, 1.0)
    centre = np.exp([log_flops[part].mean() for part in parts])
    return *power, fit_offset(centre, mean, total)


def _warnings(
    preset: EnvelopePreset, runs: Sequence[Run], points: EnvelopePoints, dropped: int, kept: float
) -> tuple[str, ...]:
    found = []
    count = len(points.flops)
    if preset.optimum == "winner" and points.on_schedule < 1.0:
        found.append(
            f"{1 - points.on_schedule:.0%} of the {count} envelope points lie before the last 15% of their run's "
            "training, above the law"
        )
    flagged = int((points.edge != "").sum())
    if preset.optimum == "winner" and flagged:
        parts = ", ".join(f"{number} {word}" for word, number in points.edges.items() if number)
        found.append(f"{flagged} of {count} envelope points are at an edge ({parts}) and are fitted all the same")
    if preset.optimum == "smooth" and dropped > 0.5 * preset.values:
        found.append(
            f"{dropped} of {preset.values} FLOP values were left out: the optimum is not between the sizes tried there"
        )
    if kept < 0.9:
        found.append(f"{1 - kept:.0%} of the bootstrap replicates had no optimum and were left out")
    short = sum(len(run.curve.tokens) < 20 for run in runs)
    if short:
        found.append(f"{short} curves have fewer than 20 points; log more often")
    return tuple(found)
