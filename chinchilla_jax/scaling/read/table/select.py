"""Which rows of a table are asked for: those with these values (`--where`), or each value apart (`--by`)?

Values are compared as numbers where they are numbers (`1e18` is `1e+18`), else as text without regard to case.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence

from chinchilla_jax.config import did_you_mean
from chinchilla_jax.scaling.read.runs import FitRefused
from chinchilla_jax.scaling.read.table.cells import missing, same_value, text_of
from chinchilla_jax.scaling.read.table.formats import Table

_SHOWN = 12  # values named in a message
_MOST = 40  # values of a column that can be split by

Where = Mapping[str, Sequence[str]]


def parse_where(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`["corpus=c4,pile", "lr=1e-3"]` as values by column; quotes protect a comma in a value.

    Refuses (`where`) a text that is not COLUMN=VALUE[,VALUE], or a column that is named twice.
    """
    where: dict[str, tuple[str, ...]] = {}
    for text in texts:
        column, _, rest = (part.strip() for part in text.partition("="))
        values = tuple(value.strip() for value in next(csv.reader([rest], skipinitialspace=True), []))
        if not column or not values or not all(values):
            raise FitRefused("where", f"--where={text}: write COLUMN=VALUE or COLUMN=VALUE,VALUE")
        if column in where:
            both = ",".join(where[column] + values)
            raise FitRefused("where", f"--where: column {column} is named twice; write {column}={both}")
        where[column] = values
    return where


def select(table: Table, where: Where) -> Table:
    """The table with only the rows that have one of the values in each of the columns, and a note that says so.

    A row that cannot be read stays, to be listed, unless what is read of it says otherwise. Refuses (`where`) a column
    or a value that is not there, or conditions that leave no row.
    """
    if not where:
        return table
    kept = table.rows
    for column, values in where.items():
        present = _values_of(table, "--where", column)
        if absent := [value for value in values if same_value(value) not in present]:
            shown = list(present.values())
            more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
            there_are = f"{did_you_mean(absent[0], shown)}; there are {', '.join(shown[:_SHOWN])}{more}"
            raise table.refused("where", f"no row with {column}={absent[0]}{there_are}")
        keys = {same_value(value) for value in values}
        kept = [
            row
            for row in kept
            if (row.problem and column not in row.values) or same_value(row.values.get(column)) in keys
        ]
    condition = " and ".join(f"{column}={','.join(values)}" for column, values in where.items())
    if all(row.problem for row in kept):
        raise table.refused("where", f"no row has {condition}")
    note = f"rows with {condition}: {len(kept)} of {len(table.rows)}"
    return dataclasses.replace(table, rows=kept, notes=[*table.notes, note])


def values_to_split(table: Table, column: str) -> list[str]:
    """The values of `--by=COLUMN`; refused (`where`) if there is no such column, or no or too many values in it."""
    values = list(_values_of(table, "--by", column).values())
    if not values:
        raise table.refused("where", f"column {column} is empty: there is nothing to split by")
    if len(values) > _MOST:
        many = f"{len(values)} values ({', '.join(values[:3])} ...)"
        raise table.refused("where", f"column {column} has {many}: --by takes one of at most {_MOST}")
    return values


def _values_of(table: Table, flag: str, column: str) -> dict[str | float, str]:
    """The distinct values of a column in their order: what they are compared by, and how they are written first."""
    if column not in table.present:
        near, there_are = did_you_mean(column, table.present), ", ".join(table.present) or "none"
        raise table.refused("where", f"{flag}: no column {column!r}{near}; there are {there_are}")
    distinct: dict[str | float, str] = {}
    for raw in table.cells(column):
        if not missing(raw) and not isinstance(raw, (dict, list)):
            distinct.setdefault(same_value(raw), text_of(raw))
    return distinct
