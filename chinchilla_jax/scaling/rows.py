"""Is this row a run, is this list of points its curve, and if not, why not?

A value is either a positive finite number in a form that has one reading, or the row is listed with the reason.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from chinchilla_jax.scaling.columns import Column
from chinchilla_jax.scaling.runs import ROLES, BadRow, Curve, Run

SIX_ND = "6 * params * tokens"
_MISSING = ("", "na", "n/a", "none", "null", "-")
_YES = ("true", "yes", "1", "1.0")
_SHOWN = 5  # line numbers spelt out for one curve


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a source: `where` it stands, its `values` by column, and the `problem` that makes it unreadable."""

    where: str
    values: Mapping[str, Any]
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of a curve as it was read: `at` is tokens or what stands for them."""

    where: str
    at: Any
    loss: Any


class Unusable(ValueError):
    """A value that is no positive finite number; the message says why."""


def to_runs(
    rows: Iterable[Row], columns: Mapping[str, Column]
) -> tuple[tuple[tuple[Row, Run], ...], tuple[BadRow, ...]]:
    """The usable rows, each with its run (without curve), and the others with their reasons, in the source's order.

    C is 6 N D unless a column holds it. Two rows with the same N, D, C and loss, or of one name, are one run.
    """
    usable, bad = [], []
    seen: dict[tuple, str] = {}
    names: dict[str, str] = {}
    for row in rows:
        name = row_name(row, columns)
        label = row_label(row, columns)
        try:
            run = _to_run(row, name or row.where, columns)
        except Unusable as problem:
            bad.append(BadRow(label, str(problem)))
            continue
        key = (run.params, run.tokens, run.flops, run.loss)
        if run.name in names:
            bad.append(BadRow(label, f"duplicate name {run.name}, first in {names[run.name]}"))
        elif key in seen:
            bad.append(BadRow(label, f"duplicate of {seen[key]}: same N, D, C and loss"))
        else:
            seen[key], names[run.name] = label, row.where
            usable.append((row, run))
    return tuple(usable), tuple(bad)


def row_name(row: Row, columns: Mapping[str, Column]) -> str:
    """The run's name in this row, on one line; empty when it has none."""
    value = row.values.get(columns["name"].name) if "name" in columns else None
    return "" if value is None else " ".join(str(value).split())


def row_label(row: Row, columns: Mapping[str, Column]) -> str:
    """`line 7 (run-3)`, or only where the row is when that is all its name."""
    name = row_name(row, columns)
    return row.where if name in ("", row.where) else f"{row.where} ({name})"


def _to_run(row: Row, name: str, columns: Mapping[str, Column]) -> Run:
    if row.problem:
        raise Unusable(row.problem)
    if "diverged" in columns and str(row.values.get(columns["diverged"].name, "")).strip().lower() in _YES:
        raise Unusable("diverged")
    values = {}
    for field in ("params", "tokens", "loss", "flops", "budget"):
        column = columns.get(field)
        raw = row.values.get(column.name) if column else None
        if field == "budget" and (column is None or _missing(raw)):
            values[field] = None
        elif field == "flops" and column is None:
            values[field] = 6.0 * values["params"] * values["tokens"]
        else:
            values[field] = positive(raw, field) * column.factor
        if values[field] is not None and not 0 < values[field] < math.inf:
            raise Unusable(f"{field} is beyond what a number holds")
    role = str(row.values.get(columns["role"].name) or "").strip() if "role" in columns else ""
    if role and role not in ROLES:
        raise Unusable(f"role {role!r} is none of {', '.join(ROLES)}")
    return Run(name, role=role or "isoflop", **values)


def positive(raw: Any, field: str) -> float:
    """A positive finite number from a cell or a JSON value.

    Raises:
      Unusable: it is missing, no number, of two readings, not finite (a loss: diverged), zero or less.
    """
    if _missing(raw):
        raise Unusable(f"{field} is missing")
    value = _number(raw, field)
    if not math.isfinite(value):
        raise Unusable(f"diverged: loss is {raw}" if field == "loss" else f"{field} is not finite: {raw!r}")
    if value <= 0:
        raise Unusable(f"{field} is not above 0: {raw!r}")
    return value


def _missing(raw: Any) -> bool:
    return raw is None or (isinstance(raw, str) and raw.strip().lower() in _MISSING)


def _number(raw: Any, field: str) -> float:
    if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
        raise Unusable(f"{field} is not a number: {raw!r}")
    text = raw.strip() if isinstance(raw, str) else raw
    if isinstance(text, str) and "," in text:
        # One group of three may be a thousand or a decimal fraction; two groups, or a point behind, are thousands.
        if re.fullmatch(r"[+-]?\d{1,3}(,\d{3}){2,}(\.\d*)?|[+-]?\d{1,3}(,\d{3})+\.\d*", text):
            text = text.replace(",", "")
        elif re.fullmatch(r"[+-]?\d+,\d+([eE][+-]?\d+)?", text):
            point, none = text.replace(",", "."), text.replace(",", "")
            either = f"a comma that may stand for thousands or for a decimal point; write {none} or {point}"
            three = re.fullmatch(r"[+-]?\d{1,3},\d{3}", text)
            raise Unusable(f"{field} {text!r} has {either if three else f'a decimal comma; write {point}'}")
    try:
        return float(text)
    except OverflowError:
        return math.inf
    except ValueError:
        raise Unusable(f"{field} is not a number: {raw!r}") from None


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
