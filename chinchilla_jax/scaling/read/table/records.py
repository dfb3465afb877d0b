"""Which numbers does a row of a table hold, and is it a run by itself, or why not?

A value is either a positive finite number in a form that has one reading, or the reason stands in its place.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

from chinchilla_jax.scaling.read.runs import ROLES, Run
from chinchilla_jax.scaling.read.table.cells import Missing, Unusable, as_number, in_range, text_of
from chinchilla_jax.scaling.read.table.columns import Columns
from chinchilla_jax.scaling.read.table.formats import Row

SIX_ND = "6 * params * tokens"
_RUN_NUMBERS = ("params", "tokens", "loss", "flops", "budget")
_NUMBERS = (*_RUN_NUMBERS, "step", "epochs")
# States that trackers give to runs that did not reach their end.
_UNFINISHED = frozenset(
    """crashed failed running killed preempting preempted pending queued aborted cancelled canceled diverged
    error""".split()
)
_YES = ("true", "yes", "1", "1.0")


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """A row with its cells converted.

    `position` in the table; `name` in the table, which several rows may share; `label` says where the row is; `numbers`
    holds the fields that have a column, each a number or why there is none; `run` is the run that the row makes by
    itself, without a curve, or None, and then `problem` says why.
    """

    position: int
    row: Row
    name: str
    label: str
    seed: str
    numbers: Mapping[str, float | Unusable]
    run: Run | None = None
    problem: str = ""

    def value(self, field: str) -> float | None:
        """The number of a field, or None where there is none."""
        value = self.numbers.get(field)
        return None if isinstance(value, Unusable) else value

    def changed(self, **changes) -> Record:
        """The record with another name, seed or curve of its run."""
        return dataclasses.replace(self, run=dataclasses.replace(self.run, **changes))


def read_records(rows: Iterable[Row], columns: Columns) -> list[Record]:
    """The rows as runs without curves, or with their problems. C is 6 N D unless a column holds it."""
    records = []
    for position, row in enumerate(rows):
        name = row_name(row, columns)
        label = row.where if name in ("", row.where) else f"{row.where} ({name})"
        numbers = {field: columns[field].number(row, field) for field in _NUMBERS if field in columns}
        record = Record(position, row, name, label, _seed(row, columns), numbers)
        try:
            record = dataclasses.replace(record, run=_run(record, columns))
        except Unusable as problem:
            record = dataclasses.replace(record, problem=str(problem))
        records.append(record)
    return records


def row_name(row: Row, columns: Columns) -> str:
    """The run's name in this row, on one line; empty when it has none."""
    value = columns["name"].cell(row) if "name" in columns else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a workbook has no whole numbers
    return "" if value is None else " ".join(str(value).split())


def _seed(row: Row, columns: Columns) -> str:
    text = _text(row, "seed", columns)
    number = as_number(text) if text else None
    return f"{number:.0f}" if number is not None and math.isfinite(number) and number == round(number) else text


def _text(row: Row, field: str, columns: Columns) -> str:
    return text_of(columns[field].cell(row)) if field in columns else ""


def _run(record: Record, columns: Columns) -> Run:
    """The run of a row.

    Raises:
      Unusable: it is none; says why.
    """
    row = record.row
    if row.problem:
        raise Unusable(row.problem)
    if _text(row, "diverged", columns).lower() in _YES:
        raise Unusable("diverged")
    if (state := _text(row, "state", columns)).lower() in _UNFINISHED:
        raise Unusable(f"{columns['state'].name} is {state}")
    values: dict[str, float | None] = {}
    for field in _RUN_NUMBERS:
        value = record.numbers.get(field)
        if field == "flops" and value is None:
            value = in_range(6.0 * values["params"] * values["tokens"], "flops")
        if field == "budget" and isinstance(value, Missing):
            value = None
        if isinstance(value, Unusable):
            raise value
        values[field] = value
    role = str(columns["role"].cell(row) or "").strip() if "role" in columns else ""
    if role and role not in ROLES:
        raise Unusable(f"role {role!r} is none of {', '.join(ROLES)}")
    epochs = record.value("epochs") or 1.0
    unique = values["tokens"] / epochs if epochs > 1.0 else None
    name = record.name or row.where
    return Run(name, role=role or "isoflop", seed=record.seed, unique_tokens=unique, **values)
