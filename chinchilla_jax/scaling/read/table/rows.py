"""Is this row a run, is this list of points its curve, and if not, why not?

A value is either a positive finite number in a form that has one reading, or the row is listed with the reason.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chinchilla_jax.scaling.read.runs import ROLES, BadRow, Curve, Run
from chinchilla_jax.scaling.read.table.cells import Unusable, as_number, missing, positive, scaled, text_of
from chinchilla_jax.scaling.read.table.columns import Column
from chinchilla_jax.scaling.read.table.formats import Row

SIX_ND = "6 * params * tokens"
# States that trackers give to runs that did not reach their end.
_UNFINISHED = ("crashed", "failed", "running", "killed", "preempting", "preempted", "pending", "queued", "aborted",
               "cancelled", "canceled", "diverged", "error")  # fmt: skip
_YES = ("true", "yes", "1", "1.0")
_SHOWN = 5  # line numbers spelt out for one curve


@dataclasses.dataclass(frozen=True)
class Parsed:
    """A row with the run it makes by itself, or None and the `problem`; `seed` in words."""

    row: Row
    name: str
    label: str
    seed: str = ""
    run: Run | None = None
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of a curve as it was read: `at` is tokens or what stands for them."""

    where: str
    at: Any
    loss: Any


def parse(row: Row, columns: Mapping[str, Column]) -> Parsed:
    """The row as a run without curve. C is 6 N D unless a column holds it."""
    name, label, seed = row_name(row, columns), row_label(row, columns), _seed(row, columns)
    try:
        return Parsed(row, name, label, seed, _to_run(row, name or row.where, seed, columns))
    except Unusable as problem:
        return Parsed(row, name, label, seed, problem=str(problem))


def row_name(row: Row, columns: Mapping[str, Column]) -> str:
    """The run's name in this row, on one line; empty when it has none."""
    value = row.values.get(columns["name"].name) if "name" in columns else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a workbook has no whole numbers
    return "" if value is None else " ".join(str(value).split())


def row_label(row: Row, columns: Mapping[str, Column]) -> str:
    """`line 7 (run-3)`, or only where the row is when that is all its name."""
    name = row_name(row, columns)
    return row.where if name in ("", row.where) else f"{row.where} ({name})"


def value_of(row: Row, field: str, columns: Mapping[str, Column]) -> float | None:
    """The number of a field in this row, or None where it is none."""
    try:
        return scaled(row.values.get(columns[field].name), field, columns[field].factor) if field in columns else None
    except Unusable:
        return None


def _seed(row: Row, columns: Mapping[str, Column]) -> str:
    text = text_of(row.values.get(columns["seed"].name)) if "seed" in columns else ""
    number = as_number(text) if text else None
    return f"{number:.0f}" if number is not None and math.isfinite(number) and number == round(number) else text


def _to_run(row: Row, name: str, seed: str, columns: Mapping[str, Column]) -> Run:
    if row.problem:
        raise Unusable(row.problem)
    if "diverged" in columns and str(row.values.get(columns["diverged"].name, "")).strip().lower() in _YES:
        raise Unusable("diverged")
    if "state" in columns and text_of(row.values.get(columns["state"].name)).lower() in _UNFINISHED:
        raise Unusable(f"{columns['state'].name} is {text_of(row.values[columns['state'].name])}")
    values = {}
    for field in ("params", "tokens", "loss", "flops", "budget"):
        column = columns.get(field)
        raw = row.values.get(column.name) if column else None
        if field == "budget" and (column is None or missing(raw)):
            values[field] = None
        elif field == "flops" and column is None:
            values[field] = 6.0 * values["params"] * values["tokens"]
        else:
            values[field] = scaled(raw, field, column.factor)
        if values[field] is not None and not 0 < values[field] < math.inf:
            raise Unusable(f"{field} is beyond what a number holds")
    role = str(row.values.get(columns["role"].name) or "").strip() if "role" in columns else ""
    if role and role not in ROLES:
        raise Unusable(f"role {role!r} is none of {', '.join(ROLES)}")
    epochs = value_of(row, "epochs", columns)
    unique = values["tokens"] / epochs if epochs is not None and epochs > 1.0 else None
    return Run(name, role=role or "isoflop", seed=seed, unique_tokens=unique, **values)


def to_curve(points: Sequence[Point], run: Run, label: str) -> tuple[Curve | None, list[BadRow]]:
    """The curve of `run`, or None and why it was left out: one bad point spoils it, since nothing fills the gap.

    Args:
      points: in the order they were read, `at` in tokens. A point at 0 tokens comes before any training: no curve
        begins there, and it is passed over.
      label: the run's name for bad rows, unless the points say it.
    """
    tokens, losses = [], []
    problems: dict[str, list[str]] = {}
    before = 0.0
    for point in points:
        try:
            if _is_zero(point.at) and not tokens:
                continue
            at, loss = positive(point.at, "tokens"), positive(point.loss, "loss")
            if at <= before:
                raise Unusable(f"tokens do not rise: {at:.6g} after {before:.6g}")
            before = at
            tokens.append(at)
            losses.append(loss)
        except Unusable as problem:
            problems.setdefault(str(problem).partition(":")[0], []).append(f"{point.where}|{problem}")
    if not problems and tokens and tokens[-1] > 1.01 * run.tokens:
        beyond = f"it goes on to {tokens[-1]:.6g} tokens, the run has D = {run.tokens:.6g}"
        problems["past"] = [f"{points[-1].where}|{beyond}"]
    if problems:
        return None, [_bad_points(found, label) for found in problems.values()]
    return (Curve(np.array(tokens), np.array(losses)) if tokens else None), []


def _is_zero(raw: Any) -> bool:
    try:
        return float(raw) == 0.0
    except (TypeError, ValueError, OverflowError):
        return False


def _bad_points(found: list[str], label: str) -> BadRow:
    """One entry for the points of a curve that share a problem: their lines, and the first one's words."""
    places = [entry.partition("|")[0] for entry in found]
    kind = places[0].rpartition(" ")[0]
    numbers = [place.rpartition(" ")[2] for place in places]
    lines = f"{kind}{'s' if len(found) > 1 else ''} {', '.join(numbers[:_SHOWN])}"
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    run = f" ({label})" if label else ""
    return BadRow(f"{lines}{more}{run}", f"curve left out: {found[0].partition('|')[2]}")
