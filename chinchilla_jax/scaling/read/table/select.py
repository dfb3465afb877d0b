"""Which rows of a table are asked for: those with these values (`--where`), or each value apart (`--by`)?

Values are compared as numbers where they are numbers (`1e18` is `1e+18`), else as text without regard to case.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence

from chinchilla_jax.config import did_you_mean
from chinchilla_jax.scaling.read.runs import FitRefused
from chinchilla_jax.scaling.read.table.cells import missing, same_value, text_of
from chinchilla_jax.scaling.read.table.formats import Row

_SHOWN = 12  # values named in a message
_MOST = 40  # values of a column that can be split by

Where = Mapping[str, Sequence[str]]


def parse_where(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`["corpus=c4,pile", "lr=1e-3"]` as values by column; quotes protect a comma in a value.

    Raises:
      FitRefused: `where`, a text that is not COLUMN=VALUE[,VALUE], or a column that is named twice.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        column, equals, rest = (part.strip() for part in text.partition("="))
        values = tuple(value.strip() for value in next(csv.reader([rest], skipinitialspace=True), []))
        if not column or not equals or not all(values) or not values:
            raise FitRefused("where", f"--where={text}: write COLUMN=VALUE or COLUMN=VALUE,VALUE")
        if column in found:
            raise FitRefused("where", f"--where: column {column} is named twice; write {column}="
                             f"{','.join(found[column] + values)}")  # fmt: skip
        found[column] = values
    return found


def select(
    source: str, rows: Sequence[Row], present: Sequence[str], where: Where
) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """The rows with one of the values in each of the columns, and what to say.

    A row that cannot be read stays, to be listed, unless what is read of it says otherwise.

    Args:
      source: the table, for messages.
      present: its columns.

    Raises:
      FitRefused: `where`, a column or a value that is not there, or no row is left.
    """
    kept, notes = tuple(rows), []
    for column, wanted in where.items():
        check_column(source, "--where", column, present)
        there = values_of(rows, column)
        for value in wanted:
            if same_value(value) not in there:
                shown = list(there.values())
                more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
                raise FitRefused("where", f"{source}: no row with {column}={value}{did_you_mean(value, shown)}; there "
                                 f"are {', '.join(shown[:_SHOWN])}{more}")  # fmt: skip
        keys = {same_value(value) for value in wanted}
        kept = tuple(
            row for row in kept
            if (row.problem and column not in row.values) or same_value(row.values.get(column)) in keys
        )  # fmt: skip
    if where:
        said = " and ".join(f"{column}={','.join(values)}" for column, values in where.items())
        if not any(not row.problem for row in kept):
            raise FitRefused("where", f"{source}: no row has {said}")
        notes.append(f"rows with {said}: {len(kept)} of {len(rows)}")
    return kept, tuple(notes)


def values_of(rows: Sequence[Row], column: str) -> dict[str | float, str]:
    """The distinct values of a column in their order: what they are compared by, and how they are written first."""
    found: dict[str | float, str] = {}
    for row in rows:
        raw = row.values.get(column)
        if not missing(raw) and not isinstance(raw, (dict, list)):
            found.setdefault(same_value(raw), text_of(raw))
    return found


def values_to_split(source: str, rows: Sequence[Row], present: Sequence[str], column: str) -> list[str]:
    """The values of `--by=COLUMN`.

    Raises:
      FitRefused: `where`, no such column; it has no values, or too many to split by.
    """
    check_column(source, "--by", column, present)
    values = list(values_of(rows, column).values())
    if not values:
        raise FitRefused("where", f"{source}: column {column} is empty: there is nothing to split by")
    if len(values) > _MOST:
        raise FitRefused("where", f"{source}: column {column} has {len(values)} values ({', '.join(values[:3])} ...): "
                         f"--by takes one of at most {_MOST}")  # fmt: skip
    return values


def check_column(source: str, flag: str, column: str, present: Sequence[str]) -> None:
    """Raises:
    FitRefused: `where`, when the table has no such column.
    """
    if column not in present:
        raise FitRefused("where", f"{source}: {flag}: no column {column!r}{did_you_mean(column, present)}; there are "
                         f"{', '.join(present) or 'none'}")  # fmt: skip
