"""How far do runs differ that differ only in their seed, and does another learning rate change that?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import chi2

from chinchilla_jax.base.words import duration
from chinchilla_jax.scaling.read.runs import noise_of_repeats


@dataclasses.dataclass(frozen=True)
class Spread:
    """The runs of one cell at one rate: `losses` in nats per token of the seeds that did not diverge, in their order.

    `cell` is the name of the study's run, `factor` the peak learning rate over that run's, `seconds` wall time of one
    run on average (None if no run says). `deviation` and `error`, the standard deviation of a run and the standard
    error of the mean, are relative to the mean and NaN below two losses.
    """

    cell: str
    budget: float
    params: int
    tokens: int
    factor: float
    peak_lr: float
    losses: tuple[float, ...]
    diverged: int = 0
    seconds: float | None = None

    @property
    def mean(self) -> float:
        """Mean loss, nats per token; NaN without any."""
        return float(np.mean(self.losses)) if self.losses else math.nan

    @property
    def deviation(self) -> float:
        """Standard deviation of one run over the mean."""
        return float(np.std(self.losses, ddof=1)) / self.mean if len(self.losses) > 1 else math.nan

    @property
    def error(self) -> float:
        """Standard error of the mean over the mean."""
        return self.deviation / math.sqrt(len(self.losses)) if self.losses else math.nan


@dataclasses.dataclass(frozen=True)
class Rate:
    """One learning rate over all cells: `excess` of the mean loss over the cells' own means, relative, with its
    standard `error`; `deviation` of one run, pooled. Infinite where a run diverged.
    """

    factor: float
    excess: float
    error: float
    deviation: float


def pooled(spreads: Sequence[Spread]) -> tuple[float, int]:
    """(Relative standard deviation of one run, degrees of freedom), over groups of repeats; (NaN, 0) without any."""
    return noise_of_repeats(s.losses for s in spreads)


def rates(spreads: Sequence[Spread]) -> list[Rate]:
    """Every rate over the cells, the lowest first."""
    centres, result = _centres(spreads), []
    for factor in sorted({s.factor for s in spreads}):
        group = [s for s in spreads if s.factor == factor]
        if any(s.diverged or not s.losses for s in group):
            result.append(Rate(factor, math.inf, math.inf, math.inf))
            continue
        excess = float(np.mean([s.mean / centres[s.cell] - 1.0 for s in group]))
        error = math.sqrt(sum((s.error * s.mean / centres[s.cell]) ** 2 for s in group)) / len(group)
        result.append(Rate(factor, excess, error, pooled(group)[0]))
    return result


def _centres(spreads: Sequence[Spread]) -> dict[str, float]:
    """A loss by cell to hold the others against: the mean over its rates."""
    return {
        cell: float(np.mean([s.mean for s in spreads if s.cell == cell and s.losses] or [math.nan]))
        for cell in {s.cell for s in spreads}
    }


def behind(spreads: Sequence[Spread], factor: float, best: float) -> tuple[float, float]:
    """How much more the runs at one rate lose than those at another, relative, over all cells, and its standard error.

    Seed by seed: a seed that is lucky at one rate often is at the other, and that luck says nothing about the rates.
    """
    centres, losses = _centres(spreads), {(s.cell, s.factor): np.array(s.losses) for s in spreads}
    gaps = [(losses[cell, factor] - losses[cell, best]) / centre for cell, centre in centres.items()]
    errors = [gap.std(ddof=1) / math.sqrt(len(gap)) for gap in gaps]
    return float(np.mean([gap.mean() for gap in gaps])), math.sqrt(sum(e * e for e in errors)) / len(gaps)


def noise_of(spreads: Sequence[Spread]) -> tuple[float, int, float]:
    """(Noise, degrees of freedom, factor): relative standard deviation of one run at the rate nearest the recipe's."""
    factor = min({s.factor for s in spreads}, key=lambda f: abs(math.log(f)))
    return *pooled([s for s in spreads if s.factor == factor]), factor


def table(spreads: Sequence[Spread]) -> list[str]:
    """One line for each cell and rate, below a header; losses in nats per token."""
    width = max([len(s.cell) for s in spreads] + [4])
    lines = [
        f"{'cell':{width}} {'rate':>5} {'peak_lr':>8} {'seeds':>5} {'mean':>8} {'sd':>7} {'min':>8} {'max':>8} "
        f"{'worst':>7} {'time':>7}"
    ]
    for s in spreads:
        line = f"{s.cell:{width}} {s.factor:5g} {s.peak_lr:8.2g} {len(s.losses):5d}"
        if s.losses:
            low, high, time = min(s.losses), max(s.losses), "" if s.seconds is None else duration(s.seconds)
            line += f" {s.mean:8.4f} {_share(s.deviation):>7} {low:8.4f} {high:8.4f}"
            line += f" {_share(high / s.mean - 1, '+'):>7} {time:>7}"
        lines.append(line + (f"  {s.diverged} diverged" if s.diverged else ""))
    return lines


def findings(spreads: Sequence[Spread]) -> list[str]:
    """What the figures say, as lines: the noise, the best rate with its error, whether a lower one is as good."""
    noise, freedom, factor = noise_of(spreads)
    lines = []
    if freedom:
        where = "the recipe's rate" if factor == 1.0 else f"{factor:g} times the recipe's rate"
        low, high = (noise * math.sqrt(freedom / chi2.ppf(p, freedom)) for p in (0.975, 0.025))
        interval = f"95%: {low:.2%} to {high:.2%}, {freedom} degrees of freedom"
        lines.append(f"noise from run to run at {where}: {noise:.2%} of the loss ({interval})")
    tried = rates(spreads)
    if len(tried) < 2:
        return lines
    finite = [rate for rate in tried if math.isfinite(rate.excess)]
    for rate in tried:
        what = "a run diverged"
        if rate in finite:
            errors = f"standard error {_share(rate.error)}, sd of a run {_share(rate.deviation)}"
            what = f"{rate.excess:+.2%} of the cells' mean loss, {errors}"
        lines.append(f"rate {rate.factor:g}: {what}")
    if not finite:
        return lines
    best = min(finite, key=lambda rate: rate.excess)
    edge = ""
    if best in (tried[0], tried[-1]):
        edge = f", the {'lowest' if best is tried[0] else 'highest'} tried: --rates may go further"
    lines.append(f"best on the mean: rate {best.factor:g} (standard error {_share(best.error)}){edge}")
    return lines + _lower(spreads, finite, best)


def _lower(spreads: Sequence[Spread], finite: Sequence[Rate], best: Rate) -> list[str]:
    """Whether a rate below the best is as good within one standard error of the difference, and calmer."""
    lower = [rate for rate in finite if rate.factor < best.factor]
    if not lower or math.isnan(best.error):
        return []
    lost = {rate: behind(spreads, rate.factor, best.factor) for rate in lower}
    as_good = [rate for rate, (loss, error) in lost.items() if loss <= error]
    if not as_good:
        loss, error = lost[lower[-1]]
        return [f"no lower rate is as good within the error: {lower[-1].factor:g} loses {loss:.2%} +- {error:.2%}"]
    calm = min(as_good, key=lambda rate: rate.deviation)
    loss, error = lost[calm]
    line = f"rate {calm.factor:g} is as good within the error ({loss:+.2%} +- {error:.2%})"
    scatter = f"{calm.deviation:.2%} against {best.deviation:.2%}"
    if calm.deviation < best.deviation:
        return [f"{line} and scatters less, {scatter}: take it"]
    return [f"{line}, but scatters no less, {scatter}"]


def facts(spreads: Sequence[Spread]) -> dict[str, Any]:
    """The same for JSON; figures that are not finite are None."""
    noise, freedom, factor = noise_of(spreads)
    cells = [dataclasses.asdict(s) | {"mean": s.mean, "deviation": s.deviation, "error": s.error} for s in spreads]
    by_rate = [dataclasses.asdict(rate) for rate in rates(spreads)]
    summary = {"noise": noise, "freedom": freedom, "factor": factor, "cells": cells, "rates": by_rate}
    return _finite(summary | {"findings": findings(spreads)})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _share(value: float, sign: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:{sign}.2%}"
