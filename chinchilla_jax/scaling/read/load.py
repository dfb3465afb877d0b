"""Which runs are at a path: a study, run directories, or a table? The way of a table is told here, step by step."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.scaling.read.directories import load_directory
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns, Run
from chinchilla_jax.scaling.read.table.columns import NONE, choose_columns, derive_loss, derive_tokens, require
from chinchilla_jax.scaling.read.table.curves import points_of_chart, read_curves_in_cells, read_curves_of_table
from chinchilla_jax.scaling.read.table.formats import Row, Table, read_table, table_of
from chinchilla_jax.scaling.read.table.frames import is_frame, table_of_frame
from chinchilla_jax.scaling.read.table.records import to_runs
from chinchilla_jax.scaling.read.table.select import Where, select, values_to_split
from chinchilla_jax.scaling.read.table.settings import best_per_cell as keep_best
from chinchilla_jax.scaling.read.table.settings import remark


def load_runs(
    path: str | os.PathLike | LoadedRuns | Any,
    columns: Mapping[str, str] | None = None,
    curves: str | os.PathLike | None = None,
    where: Mapping[str, Sequence[str]] | None = None,
    best_per_cell: bool = False,
) -> LoadedRuns:
    """Runs of a study directory, of run directories, of a table (CSV, JSON lines, Parquet, .xlsx), or of a DataFrame.

    Args:
      path: where they are, or a table in memory (`table.frames`); what is loaded already is returned as it is.
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
    if is_frame(path):
        frame = table_of_frame(path)
        loaded = _load_table(files.path(frame.source), columns or {}, curves, where or {}, best_per_cell, frame)
        _check_usable(loaded)
        return loaded
    path = files.path(path)
    if not files.exists(path):
        raise FitRefused("not_found", f"{path}: no such file or directory")
    if not files.is_folder(path):
        loaded = _load_table(path, columns or {}, curves, where or {}, best_per_cell)
    elif curves is None:
        loaded = load_directory(path, columns or {}, where or {}, best_per_cell)
    else:
        words = "run directories have their curves in metrics.jsonl; --curves goes with a table"
        raise FitRefused("curves", f"{path}: {words}")
    _check_usable(loaded)
    return loaded


def values_of(path: str | os.PathLike, column: str, where: Where) -> list[str]:
    """The values of a column of a table, or of a key of the results in a folder, of the rows that `where` takes.

    Raises FitRefused: `where` (no such column, or too many values to split by), or as `load_runs`.
    """
    path = files.path(path)
    if files.exists(path) and not files.is_folder(path):
        return values_to_split(select(read_table(path), where), column)
    details = load_runs(path, where=where).details
    return values_to_split(table_of(str(path), [Row(name, values) for name, values in details.items()]), column)


def _load_table(
    path: pathlib.Path,
    by_hand: Mapping[str, str],
    curves: str | os.PathLike | None,
    where: Where,
    best: bool,
    table: Table | None = None,
) -> LoadedRuns:
    # 1. The file becomes rows of text; what is not asked for goes.
    table = table or read_table(path)
    if not table.rows:
        raise table.refused("no_runs", "no rows below the header")
    table = select(table, where)

    # 2. Every field gets a column, or a formula over columns.
    choose_columns(table, by_hand)
    derive_tokens(table)
    unit = derive_loss(table, without=[field for field in by_hand if by_hand[field] == NONE])
    _check_columns(table, by_hand, curves)

    # 3. Cells become numbers, and rows runs, or the reason why not.
    usable, bad_rows = to_runs(table, histories=by_hand["step"] != NONE if "step" in by_hand else None)

    # 4. Of a sweep the best setting, if asked for; then what a reader should know of how the runs differ.
    if best:
        usable = keep_best(usable, table)
    remark(usable, table)

    # 5. Training curves: of a second table, of a column, or of a history.
    if curves is None:
        bad_curves = read_curves_in_cells(usable, table)
    else:
        bad_curves = read_curves_of_table(usable, table, files.path(curves), by_hand)
    runs = tuple(record.run for record in usable)
    return LoadedRuns(
        source=str(path),
        runs=runs,
        bad=(*bad_rows, *bad_curves),
        columns={"flops": "6 * params * tokens"} | {field: str(column) for field, column in table.columns.items()},
        convention=_convention(path, table, runs),
        details={record.run.name: record.row.values for record in usable},
        params_count=table.columns["params"].count or f"not stated by {path.name} (with embeddings, or without?)",
        loss_unit=unit,
        notes=tuple(table.notes),
    )


def _check_columns(table: Table, by_hand: Mapping[str, str], curves: str | os.PathLike | None) -> None:
    """Refuses a table that lacks a column it needs, by itself or for its curves."""
    if not {"params", "tokens"} <= table.columns.keys() and (chart := points_of_chart(table)):
        fix = "give a table with a row for each run (name, params, tokens, loss) as --runs, and this one as --curves"
        raise table.refused("columns", f"the export of a chart: {chart[0]}; N and D of the runs are missing: {fix}")
    require(table, "params", "tokens", "loss")
    if curves is None and any(key.startswith("curves.") for key in by_hand):
        raise FitRefused("columns", "--columns: curves.FIELD names a column of --curves=TABLE, which is missing")
    if curves is not None and "name" not in table.columns:
        words = "--curves needs names to join by; add a column name, or give --columns=name:COLUMN"
        raise table.refused("curves", words)


def _convention(path: pathlib.Path, table: Table, runs: Sequence[Run]) -> str:
    """How C was counted, in words."""
    if "flops" not in table.columns:
        count = table.columns["params"].count.replace("_", "-")
        return "6nd, computed" if count in ("", "total") else f"6nd, computed with the {count} N"
    if count := table.columns["flops"].count:
        return count
    equal = runs and all(abs(run.flops / (6.0 * run.params * run.tokens) - 1.0) < 1e-3 for run in runs)
    return f"not stated by {path.name}{', but equal to 6 N D' if equal else ''}"


def _check_usable(loaded: LoadedRuns) -> None:
    """Refuses what holds no run, unless some are not finished yet."""
    if loaded.runs or any("not finished" in row.reason for row in loaded.bad):
        return
    first = f"; the first: {loaded.bad[0]}" if loaded.bad else ""
    if first and all(row.reason.startswith("loss is not above 0") for row in loaded.bad):
        words = "no loss is above 0, the floor of a loss in nats per token"
        raise FitRefused("floor", f"{loaded.source}: {words}{first}")
    raise FitRefused("no_runs", f"{loaded.source}: no usable run among {len(loaded.bad)} rows{first}")
