"""Which finished runs is a scaling law fitted to, how were they counted, and which rows were left out and why?

Three sources: a study directory, run directories (`directories.py`), or a table in CSV or JSON lines from anywhere
(`tables.py`). A row that cannot be used is listed with its reason; nothing is dropped in silence.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

ROLES = ("isoflop", "predicted", "half", "double")


class FitRefused(ValueError):
    """The data cannot carry the fit asked for. `reason` is one word to test for; the message says what to do.

    Words of the loaders: `not_found`, `columns`, `curves`, `manifest`, `conventions`, `no_runs`, and `floor`: every
    loss is zero or less. A fitter whose irreducible loss is given says `floor` as well when a loss lies below it.
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
    has one; C at a point of it is `flops * curve.tokens / tokens`. `seed` tells runs apart that are otherwise
    the same; None where the source does not say.
    """

    name: str
    params: float
    tokens: float
    flops: float
    loss: float
    budget: float | None = None
    role: str = "isoflop"
    curve: Curve | None = dataclasses.field(default=None, compare=False, repr=False)
    seed: int | None = None


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
            lines.append(f"curves: training loss in nats per token, of {curves} of {len(self.runs)} runs")
        return lines + list(self.notes)


def load_runs(
    path: str | os.PathLike | LoadedRuns,
    columns: Mapping[str, str] | None = None,
    curves: str | os.PathLike | None = None,
) -> LoadedRuns:
    """Runs of a study directory, of run directories, of a CSV or of a JSON-lines file.

    Args:
      path: where they are; what is loaded already is returned as it is.
      columns: overrides the guess, e.g. `{"flops": "flops_table_a4", "tokens": "D*1e9"}`; keys are fields of `Run`, or
        `params_total`, `params_non_embedding`, `flops_6nd` ... to say what a column counts. For directories the columns
        are the keys of `result.json`, with its FLOPs by convention as `flops_6nd` ...
      curves: for tables, a second table with the training curves: run, tokens (or step, or flops), loss.

    Raises:
      FitRefused: `not_found`, `columns` (a needed column is missing), `curves` (they cannot be told to runs),
        `manifest`, `conventions` (FLOPs counted in several ways), `floor` (no loss is positive) or `no_runs` (not one
        usable row).
    """
    if isinstance(path, LoadedRuns):
        return path
    # Both import the classes above.
    from chinchilla_jax.scaling.directories import load_directory
    from chinchilla_jax.scaling.tables import load_table

    path = pathlib.Path(path)
    if not path.exists():
        raise FitRefused("not_found", f"{path}: no such file or directory")
    if path.is_dir():
        if curves is not None:
            raise FitRefused("curves", f"{path}: run directories have their curves in metrics.jsonl; --curves goes "
                             "with a table")  # fmt: skip
        loaded = load_directory(path, columns or {})
    else:
        loaded = load_table(path, columns or {}, None if curves is None else pathlib.Path(curves))
    if not loaded.runs and not any("not finished" in row.reason for row in loaded.bad):
        below = [row for row in loaded.bad if row.reason.startswith("loss is not above 0")]
        if below and len(below) == len(loaded.bad):
            raise FitRefused("floor", f"{path}: no loss is above 0, the floor of a loss in nats per token; the first: "
                             f"{below[0].where}: {below[0].reason}")  # fmt: skip
        first = f"; the first: {loaded.bad[0].where}: {loaded.bad[0].reason}" if loaded.bad else ""
        raise FitRefused("no_runs", f"{path}: no usable run among {len(loaded.bad)} rows{first}")
    return loaded
