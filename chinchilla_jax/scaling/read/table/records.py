"""Which numbers does a row of a table hold, and is it a run by itself, or why not?

A value is either a positive finite number in a form that has one reading, or the reason stands in its place.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from chinchilla_jax.scaling.read.runs import ROLES, BadRow, Run
from chinchilla_jax.scaling.read.table.cells import Missing, Unusable, as_number, certain, in_range, text_of
from chinchilla_jax.scaling.read.table.formats import Row, Table

_NUMBERS = ("params", "tokens", "loss", "flops", "budget", "step", "epochs")
# States that trackers give to runs that did not reach their end.
_UNFINISHED = frozenset(
    """crashed failed running killed preempting preempted pending queued aborted cancelled canceled diverged
    error""".split()
)
_YES = ("true", "yes", "1", "1.0")


@dataclasses.dataclass(eq=False)
class Record:
    """A row with its cells converted.

    `position` in the table; `name` in the table, which several rows may share; `label` says where the row is; `numbers`
    holds the fields that have a column, each a number or why there is none; `outcome` is the run that the row makes, or
    why it makes none.
    """

    position: int
    row: Row
    name: str
    label: str
    seed: str
    numbers: Mapping[str, float | Unusable]
    outcome: Run | Unusable

    @property
    def run(self) -> Run:
        """The run that the row makes; the reason why it makes none is raised."""
        if isinstance(self.outcome, Unusable):
            raise self.outcome
        return self.outcome

    def change(self, **changes: Any) -> None:
        """Gives the run another name, seed or curve."""
        self.outcome = dataclasses.replace(self.run, **changes)

    def left_out(self, reason: str = "") -> BadRow:
        """The row in the list of those that are left out."""
        return BadRow(self.label, reason or str(self.outcome))


def read_records(table: Table) -> list[Record]:
    """The rows as runs without curves, or with their problems. C is 6 N D unless a column holds it."""
    records = []
    for position, row in enumerate(table.rows):
        name = row_name(row, table)
        label = row.where if name in ("", row.where) else f"{row.where} ({name})"
        numbers = {field: table.columns[field].number(row, field) for field in _NUMBERS if field in table.columns}
        seed = _text(row, "seed", table)
        if (number := as_number(seed)) is not None and math.isfinite(number) and number == round(number):
            seed = f"{number:.0f}"
        outcome: Run | Unusable
        try:
            outcome = _run(row, name or row.where, seed, numbers, table)
        except Unusable as reason:
            outcome = reason
        records.append(Record(position, row, name, label, seed, numbers, outcome))
    return records


def row_name(row: Row, table: Table) -> str:
    """The run's name in this row, on one line; empty when it has none."""
    value = table.columns["name"].cell(row) if "name" in table.columns else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a workbook has no whole numbers
    return "" if value is None else " ".join(str(value).split())


def _text(row: Row, field: str, table: Table) -> str:
    return text_of(table.columns[field].cell(row)) if field in table.columns else ""


def _run(row: Row, name: str, seed: str, numbers: Mapping[str, float | Unusable], table: Table) -> Run:
    """The run of a row.

    Raises:
      Unusable: it is none; says why.
    """
    if row.problem:
        raise Unusable(row.problem)
    if _text(row, "diverged", table).lower() in _YES:
        raise Unusable("diverged")
    if (state := _text(row, "state", table)).lower() in _UNFINISHED:
        raise Unusable(f"{table.columns['state'].name} is {state}")
    params, tokens, loss = (certain(numbers[field]) for field in ("params", "tokens", "loss"))
    flops = certain(numbers["flops"] if "flops" in numbers else in_range(6.0 * params * tokens, "flops"))
    budget = numbers.get("budget")
    budget = None if budget is None or isinstance(budget, Missing) else certain(budget)
    role = str(table.columns["role"].cell(row) or "").strip() if "role" in table.columns else ""
    if role and role not in ROLES:
        raise Unusable(f"role {role!r} is none of {', '.join(ROLES)}")
    epochs = numbers.get("epochs", 1.0)
    unique = None if isinstance(epochs, Unusable) or epochs <= 1.0 else tokens / epochs
    return Run(name, params, tokens, flops, loss, budget, role or "isoflop", seed=seed, unique_tokens=unique)
