"""Which rows of a table are trainings under way, and what are their curves so far?

A row whose `state` is running; in a table without states a row without a loss, and a run whose curve ends before its D.
D is what the row plans: of a row that holds the tokens so far it is not known where it will end.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import BadRow, FitRefused, LoadedRuns, Run
from chinchilla_jax.scaling.read.table import columns as columns_of
from chinchilla_jax.scaling.read.table.cells import Missing, Unusable, certain, text_of
from chinchilla_jax.scaling.read.table.curves import read_curves_in_cells, read_curves_of_table
from chinchilla_jax.scaling.read.table.formats import Table, read_table
from chinchilla_jax.scaling.read.table.records import Record, read_records
from chinchilla_jax.scaling.read.table.select import select

_LINES = 1.5  # a curve that ends more than so many of its lines before D is not at its end
_AT_ITS_END = 0.999  # share of D from which a running row's D is taken for the tokens so far


def unfinished_of_table(path: pathlib.Path, reading: Mapping[str, Any]) -> tuple[list[Run], LoadedRuns, list[BadRow]]:
    """(runs under way, with curves, whose loss is NaN; the finished runs; what is under way and cannot be forecast).

    `reading` is as for `load_runs`. Refused as `load_runs`, but not for want of a finished run.
    """
    loaded = _finished(path, reading)
    has_state = "state" in loaded.columns
    cut_off = [] if has_state else [run for run in loaded.runs if is_cut_off(run)]
    rest = tuple(run for run in loaded.runs if run not in cut_off)
    running, bad = _marked_rows(path, reading)
    return running + cut_off, dataclasses.replace(loaded, runs=rest), bad


def is_cut_off(run: Run) -> bool:
    """Whether the curve of a run ends well before its D: the loss beside it is then not that of its end."""
    if run.curve is None or len(run.curve.tokens) < 2:
        return False
    line = float(run.curve.tokens[-1] - run.curve.tokens[-2])
    return float(run.curve.tokens[-1]) + _LINES * line < run.tokens


def _finished(path: pathlib.Path, reading: Mapping[str, Any]) -> LoadedRuns:
    try:
        return load_runs(path, **reading)
    except FitRefused as refused:
        if refused.reason != "no_runs":
            raise
        return LoadedRuns(str(path), (), (), {}, "6nd, computed")


def _marked_rows(path: pathlib.Path, reading: Mapping[str, Any]) -> tuple[list[Run], list[BadRow]]:
    """The rows that say that they are under way, by their state or for want of a loss."""
    by_hand, curves = reading.get("columns") or {}, reading.get("curves")
    table = select(read_table(path), reading.get("where") or {})
    columns_of.choose_columns(table, by_hand)
    columns_of.derive_tokens(table)
    columns_of.derive_loss(table)
    records, bad = [], []
    for record in read_records(table):
        if not _is_under_way(record, table):
            continue
        try:
            record.outcome = _planned(record)
            records.append(record)
        except Unusable as reason:
            bad.append(BadRow(record.label, str(reason)))
    if curves is None:
        bad += read_curves_in_cells(records, table)
    elif records:
        others = [record for record in read_records(table) if isinstance(record.outcome, Run)]
        problems = read_curves_of_table(records + others, table, files.path(curves), by_hand)
        labels = tuple(f"({record.run.name})" for record in records)
        bad += [row for row in problems if row.where.endswith(labels)]
    running = []
    for run in (record.run for record in records):
        if run.curve is None:
            bad += [] if any(run.name in row.where for row in bad) else [BadRow(run.name, "it has no curve")]
        elif run.curve.tokens[-1] >= _AT_ITS_END * run.tokens:
            bad.append(BadRow(run.name, "its row holds the tokens so far, not those planned: where it ends is unknown"))
        else:
            running.append(run)
    return running, bad


def _is_under_way(record: Record, table: Table) -> bool:
    state = text_of(table.cell(record.row, "state")).lower() if "state" in table.columns else ""
    return not record.row.problem and (
        state == "running" or (not state and isinstance(record.numbers.get("loss"), Missing))
    )


def _planned(record: Record) -> Run:
    """The run of such a row, with a loss of NaN; raises `Unusable`."""
    params, tokens = (certain(record.numbers[field]) for field in ("params", "tokens"))
    flops = certain(record.numbers["flops"]) if "flops" in record.numbers else 6.0 * params * tokens
    return Run(record.name or record.row.where, params, tokens, flops, math.nan, seed=record.seed)
