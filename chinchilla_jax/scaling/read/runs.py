"""Which finished runs is a scaling law fitted to, how were they counted, and which rows were left out and why?

A row that cannot be used is listed with its reason; nothing is dropped in silence.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from chinchilla_jax.base.errors import ExplainedError

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


@dataclasses.dataclass(frozen=True)
class LoadedRuns:
    """What a path held.

    `columns` echoes which column served as what; `convention` says how C was counted, `params_count` which parameters
    N counts, `loss_unit` the unit of the loss, each in words; `notes` is what else a reader should know of the reading;
    `details` maps a run's name to everything else its `result.json` said (seconds, bits per byte ...); `planned` to its
    manifest line, finished or not; `header` is the manifest's own (the study's config among it).
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

    def __fspath__(self) -> str:
        """Where the runs came from, so that what was loaded can stand for its path."""
        return self.source

    def __str__(self) -> str:
        return self.source

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


@contextlib.contextmanager
def telling_left_out(loaded: LoadedRuns) -> Iterator[None]:
    """Within it a refusal also says how many rows were left out and why the first was: that may be what is missing."""
    try:
        yield
    except FitRefused as refused:
        if not loaded.bad:
            raise
        rows = "1 row" if len(loaded.bad) == 1 else f"{len(loaded.bad)} rows"
        were = "was" if len(loaded.bad) == 1 else "were"
        first = f"the first: {loaded.bad[0].where}: {loaded.bad[0].reason}"
        raise FitRefused(refused.reason, f"{refused}; {rows} of {loaded.source} {were} left out, {first}") from None
