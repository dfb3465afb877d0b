"""Which runs are at a path: a study, run directories, or a table?"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence

from chinchilla_jax.scaling.read.directories import load_directory
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns
from chinchilla_jax.scaling.read.table.tables import load_table


def load_runs(
    path: str | os.PathLike | LoadedRuns,
    columns: Mapping[str, str] | None = None,
    curves: str | os.PathLike | None = None,
    where: Mapping[str, Sequence[str]] | None = None,
    best_per_cell: bool = False,
) -> LoadedRuns:
    """Runs of a study directory, of run directories, or of a table (CSV, JSON lines, Parquet, .xlsx).

    Args:
      path: where they are; what is loaded already is returned as it is.
      columns: overrides the guess, e.g. `{"flops": "flops_table_a4", "tokens": "D*1e9"}`; keys are fields of `Run`, or
        `params_total`, `params_non_embedding`, `flops_6nd` ... to say what a column counts; `-` is no column. For
        directories the columns are the keys of `result.json`, with its FLOPs by convention as `flops_6nd` ...
      curves: for tables, a second table with the training curves: run, tokens (or step, or flops), loss.
      where: rows to take, as values by column (for directories, by key of `result.json`).
      best_per_cell: keep the best setting alone where several were tried for one N and D.

    Raises:
      FitRefused: `not_found`, `columns` (a needed column is missing), `curves` (they cannot be told to runs),
        `manifest`, `conventions` (FLOPs counted in several ways), `where` (no such column or value), `floor` (no loss
        is positive) or `no_runs` (not one usable row).
    """
    if isinstance(path, LoadedRuns):
        return path
    path = pathlib.Path(path)
    if not path.exists():
        raise FitRefused("not_found", f"{path}: no such file or directory")
    if path.is_dir():
        if curves is not None:
            raise FitRefused("curves", f"{path}: run directories have their curves in metrics.jsonl; --curves goes "
                             "with a table")  # fmt: skip
        loaded = load_directory(path, columns or {}, where, best_per_cell)
    else:
        loaded = load_table(path, columns or {}, None if curves is None else pathlib.Path(curves), where, best_per_cell)
    if not loaded.runs and not any("not finished" in row.reason for row in loaded.bad):
        below = [row for row in loaded.bad if row.reason.startswith("loss is not above 0")]
        if below and len(below) == len(loaded.bad):
            raise FitRefused("floor", f"{path}: no loss is above 0, the floor of a loss in nats per token; the first: "
                             f"{below[0].where}: {below[0].reason}")  # fmt: skip
        first = f"; the first: {loaded.bad[0].where}: {loaded.bad[0].reason}" if loaded.bad else ""
        raise FitRefused("no_runs", f"{path}: no usable run among {len(loaded.bad)} rows{first}")
    return loaded
