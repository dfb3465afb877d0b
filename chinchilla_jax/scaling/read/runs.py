"""Which finished runs is a scaling law fitted to, how were they counted, and which rows were left out and why?

A row that cannot be used is listed with its reason; nothing is dropped in silence. Then what a set of runs says of
itself: which models were held out, how far runs differ by their seed, which budget it is asked about, and how many
training FLOPs one token of a model costs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from chinchilla_jax.base.errors import ExplainedError
from chinchilla_jax.config import StudyConfig

_ROUNDING = 0.01  # of C against 6 N D
SECONDS = ("seconds", "train_seconds", "wall_seconds", "elapsed_seconds", "wall_clock_seconds")  # that a run took
ROLES = ("isoflop", "predicted", "half", "double")


class FitRefused(ExplainedError, ValueError):
    """The data cannot carry the fit asked for. `reason` is one word to test for; the message says what to do.

    Words of the loaders: `not_found`, `columns`, `curves`, `manifest`, `conventions`, `where`, `no_runs`, and `floor`:
    every loss is zero or less. A fitter whose irreducible loss is given says `floor` as well when a loss lies below it.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Curve:
    """The training loss on the way: `tokens` [K] seen, rising; `loss` [K] nats per token, unsmoothed."""

    tokens: np.ndarray
    loss: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished training.

    `params` N; `tokens` D; `flops` C, both counted as the table or study states; `loss` in nats per token; `budget`
    the nominal FLOPs of its IsoFLOP profile, or None; `role` is `isoflop` for runs that laws are fitted to, otherwise
    the place of a held-out run: `predicted`, `half` or `double` the predicted size. `curve` is there where the source
    has one; C at a point of it is `flops * curve.tokens / tokens`. `seed` in words, where the source has one;
    `unique_tokens` where D is stated to repeat them, else None.
    """

    name: str
    params: float
    tokens: float
    flops: float
    loss: float
    budget: float | None = None
    role: str = "isoflop"
    curve: Curve | None = dataclasses.field(default=None, compare=False, repr=False)
    seed: str = ""
    unique_tokens: float | None = None


@dataclasses.dataclass(frozen=True)
class BadRow:
    """A row, or a curve, left out: `where` is `line K`, `line K (NAME)` or a run's name, `reason` what is wrong."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class LoadedRuns:
    """What a path held.

    `columns` echoes which column served as what; `convention` says how C was counted, `params_count` which parameters
    N counts, `loss_unit` the unit of the loss, each in words; `notes` is what else a reader should know of the reading;
    `details` maps a run's name to everything else its `result.json` or row said (seconds, bits per byte ...); `planned`
    to its manifest line, finished or not; `header` is the manifest's own (the study's config among it); `validation`
    has the settings that decide which rows a loss was measured on, where they are known.
    """

    source: str
    runs: tuple[Run, ...]
    bad: tuple[BadRow, ...]
    columns: Mapping[str, str]
    convention: str
    details: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    planned: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    header: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    params_count: str = "not stated"
    loss_unit: str = "nats per token"
    notes: tuple[str, ...] = ()
    validation: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __fspath__(self) -> str:
        """Where the runs came from, so that what was loaded can stand for its path."""
        return self.source

    def __str__(self) -> str:
        return self.source

    @property
    def flops_counted(self) -> str:
        """The convention that C follows, `6nd` also where that was computed or only seen; else as `convention` says."""
        is_6nd = self.convention.startswith("6nd, computed") or self.convention.endswith("but equal to 6 N D")
        return "6nd" if is_6nd else self.convention

    @property
    def loss_is_converted(self) -> bool:
        """Whether losses were made of a column in another unit, in which errors beside it are stated."""
        return "from bits" in self.loss_unit or "perplexity" in self.loss_unit

    @property
    def counts_non_embedding(self) -> bool:
        """Whether N leaves out the embeddings."""
        return self.params_count.startswith("non-embedding") or self.params_count == "non_embedding"

    def role(self, *roles: str) -> tuple[Run, ...]:
        """The runs with one of these roles, in their order."""
        return tuple(run for run in self.runs if run.role in roles)

    def describe(self) -> list[str]:
        """Units and conventions of N, D, C, loss and curves, one line each, for every place that prints results."""
        column = self.columns
        lines = [
            f"N: parameters, {self.params_count}; from {column['params']}",
            f"D: training tokens; from {column['tokens']}",
            f"C: training FLOPs, convention {self.convention}; from {column['flops']}",
            f"loss: {self.loss_unit}; from {column['loss']}",
        ]
        if any(run.budget for run in self.runs):
            lines.append(f"budget: nominal training FLOPs of an IsoFLOP profile; from {column['budget']}")
        curves = sum(run.curve is not None for run in self.runs)
        if curves:
            unit = "bits per byte" if self.loss_unit.startswith("bits per byte") else "nats per token"
            lines.append(f"curves: training loss in {unit}, of {curves} of {len(self.runs)} runs")
        return lines + list(self.notes)


def stated_number(values: Mapping[str, Any], names: Iterable[str]) -> float | None:
    """The first of these entries of a row or result that is a positive number, perhaps as text."""
    for name in names:
        try:
            value = float(values[name])
        except (KeyError, TypeError, ValueError):
            continue
        if 0.0 < value < math.inf:
            return value
    return None


@contextlib.contextmanager
def telling_left_out(loaded: LoadedRuns) -> Iterator[None]:
    """Within it a refusal also says how many rows were left out and why the first was: that may be what is missing."""
    try:
        yield
    except FitRefused as refused:
        if not loaded.bad:
            raise
        count, source = len(loaded.bad), loaded.source
        were = f"1 row of {source} was" if count == 1 else f"{count} rows of {source} were"
        raise FitRefused(refused.reason, f"{refused}; {were} left out, the first: {loaded.bad[0]}") from None


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """One held-out size. `runs` are its trainings, in their order; `loss` is their mean, nats per token."""

    role: str
    params: float
    tokens: float
    flops: float
    loss: float
    runs: tuple[Run, ...]

    def __str__(self) -> str:
        """`2.5102`, or `2.5102 (mean of 2 seeds: 2.5037, 2.5167)`."""
        if len(self.runs) == 1:
            return f"{self.loss:.4f}"
        seeds = ", ".join(f"{run.loss:.4f}" for run in self.runs)
        return f"{self.loss:.4f} (mean of {len(self.runs)} seeds: {seeds})"


def held_out(runs: Sequence[Run], budget: float | None = None) -> tuple[HeldOut, ...]:
    """The held-out models among `runs` in the order of their first trainings; with a `budget` only those of it."""
    models: dict[tuple[str, float, float, float], list[Run]] = {}
    for run in runs:
        if run.role != "isoflop" and (budget is None or run.budget in (None, budget)):
            models.setdefault((run.role, run.params, run.tokens, run.flops), []).append(run)
    return tuple(HeldOut(*key, sum(run.loss for run in same) / len(same), tuple(same)) for key, same in models.items())


def noise_of_repeats(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Relative standard deviation of one run, and its degrees of freedom; (NaN, 0) where no run is repeated.

    Pooled over `groups` of the losses of runs that differ only in their seed; single runs say nothing.
    """
    squares, freedom = 0.0, 0
    for losses in groups:
        mean = sum(losses) / max(1, len(losses))
        squares += sum((loss / mean - 1.0) ** 2 for loss in losses)
        freedom += max(0, len(losses) - 1)
    return (math.sqrt(squares / freedom), freedom) if freedom else (math.nan, 0)


def target_budget(loaded: LoadedRuns) -> float | None:
    """FLOPs of the held-out runs, planned or done, else `StudyConfig.holdout_factor` times the largest budget, or None.

    A half-finished study is asked about the budget its config holds out, not a multiple of what is there.
    """
    held = [run.budget for run in loaded.runs if run.role != "isoflop" and run.budget]
    held += [
        row["budget"]
        for row in loaded.planned.values()
        if row.get("role", "isoflop") not in ("isoflop", "trunk") and isinstance(row.get("budget"), (int, float))
    ]
    if held:
        return float(max(held))
    study = ((loaded.header.get("config") or {}).get("study")) or {}
    factor = study.get("holdout_factor", StudyConfig().holdout_factor)
    # Runs that were added later at larger budgets do not move the target.
    planned = list(study.get("budgets", ())) or [row["budget"] for row in loaded.planned.values() if row.get("budget")]
    fitted = [run.budget or run.flops for run in loaded.role("isoflop")]
    return float(factor * max(planned or fitted)) if planned or fitted else None


def flops_per_token(runs: Sequence[Run]) -> Callable[[np.ndarray], np.ndarray]:
    """c(N) = C / D as a function of N [...], through every size among the runs.

    6 N holds for large models only: at the sizes of a laptop study attention and the logits add tens of percent, and
    which of them are counted is the convention's choice. The runs' own N, D and C carry it whatever the convention.

    ln(c / 6N) is interpolated (`interpolated`), so that C = 6 N D comes back exactly.
    """
    ratio = interpolated([run.params for run in runs], [run.flops / (6.0 * run.params * run.tokens) for run in runs])
    return lambda params: 6.0 * np.asarray(params) * ratio(params)


def interpolated(params: Sequence[float], values: Sequence[float]) -> Callable[[np.ndarray], np.ndarray]:
    """A positive quantity as a function of N [...]: linear in the logarithms between the sizes, each of which counts by
    its mean, and beyond them along the straight line through the outer third."""
    knots, inverse = np.unique(np.log(params), return_inverse=True)
    means = np.bincount(inverse.ravel(), np.log(values)) / np.bincount(inverse.ravel())
    outer = max(2, len(knots) // 3)
    slopes = [_slope(knots[part], means[part]) for part in (slice(None, outer), slice(-outer, None))]

    def at(params: np.ndarray) -> np.ndarray:
        x = np.log(params)
        beyond = slopes[0] * np.minimum(x - knots[0], 0.0) + slopes[1] * np.maximum(x - knots[-1], 0.0)
        return np.exp(np.interp(x, knots, means) + beyond)

    return at


def flops_of(runs: Sequence[Run]) -> float | Callable[[np.ndarray], np.ndarray]:
    """6 where every run has C = 6 N D within 1%, else `flops_per_token`."""
    if not runs or all(abs(run.flops / (6.0 * run.params * run.tokens) - 1.0) < _ROUNDING for run in runs):
        return 6.0
    return flops_per_token(runs)


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    centred = x - x.mean()
    return float((centred * y).sum() / (centred * centred).sum()) if len(x) > 1 else 0.0
