"""Which column of a table holds N, D, C and the loss?

Headers are understood as `headers.py` says. What was made of one is always echoed, and `--columns` overrides it.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from chinchilla_jax.config import CONVENTIONS, did_you_mean
from chinchilla_jax.scaling.read.runs import FitRefused
from chinchilla_jax.scaling.read.table.cells import Unusable, as_number, holds_numbers, missing, number
from chinchilla_jax.scaling.read.table.formats import Row, Table
from chinchilla_jax.scaling.read.table.headers import COUNTED, HEADERS, loss_rank, readings, understand

RUN_FIELDS = ("name", "params", "tokens", "loss", "flops", "budget", "role", "curve", "diverged")
# How rows belong together, which of them finished, and how often the data were seen.
_ROW_FIELDS = ("step", "seed", "state", "epochs")
_FIELDS = (*RUN_FIELDS, *_ROW_FIELDS)
CURVE_FIELDS = ("name", "tokens", "flops", "step", "loss")
NONE = "-"  # `--columns=FIELD:-`: no column serves as it
_WORDS = ("name", "role", "curve", "diverged", "seed", "state")  # fields that need not be numbers
_COUNT_RANKS = {"params": ("active", "total", "", "non_embedding", "nominal"), "flops": ("", "6nd", *CONVENTIONS)}


@dataclasses.dataclass(frozen=True)
class Column:
    """Where a field comes from: a column `name` whose numbers are multiplied by `factor`, or a formula of that name.

    `count` is the named count it holds, or empty; `plain` says that the factor was given by hand: nothing else is
    done. `formula` computes the value from a row and raises `Unusable` where an ingredient is.
    """

    name: str
    factor: float = 1.0
    count: str = ""
    plain: bool = dataclasses.field(default=False, compare=False)
    formula: Callable[[Row], float] | None = dataclasses.field(default=None, compare=False)

    def __str__(self) -> str:
        return self.name if self.factor == 1.0 else f"{self.name} x {self.factor:g}"

    def cell(self, row: Row) -> Any:
        """What the row holds, before the factor; an `Unusable` where the formula has no value."""
        if self.formula is None:
            return row.values.get(self.name)
        try:
            return self.formula(row)
        except Unusable as reason:
            return reason

    def number(self, row: Row, field: str) -> float | Unusable:
        """The positive number that the row holds as `field`, or why there is none."""
        return number(self.cell(row), field, self.factor)


Columns = Mapping[str, Column]


def parse_columns(text: str) -> dict[str, str]:
    """`params:N,tokens:D*1e9` as `{"params": "N", "tokens": "D*1e9"}`; quotes protect a comma in a column's name.

    Raises:
      FitRefused: `columns`, a part without a colon, an unknown field, or one that is named twice.
    """
    mapping: dict[str, str] = {}
    for part in next(csv.reader([text], skipinitialspace=True), []):
        field, colon, column = (piece.strip() for piece in part.partition(":"))
        if not colon or not field or not column:
            raise FitRefused("columns", f"--columns: {part!r} is not FIELD:COLUMN, as in params:N,loss:val_loss")
        if field in mapping:
            raise FitRefused("columns", f"--columns: {field} is mapped twice, to {mapping[field]} and to {column}")
        _check_field(field)
        mapping[field] = column
    return mapping


def choose_columns(
    table: Table, by_hand: Mapping[str, str], fields: Iterable[str] = _FIELDS, curves: bool = False
) -> tuple[dict[str, Column], tuple[str, ...]]:
    """The column of each field, by hand or else guessed from the header, and what is worth saying about the guess.

    A column that should hold numbers and holds text is not guessed.

    Args:
      by_hand: column by field; a field may name its count (`params_non_embedding`, `flops_table_a4`), a column its
        multiplier (`D*1e9`); `-` says that no column serves. Fields of a table of curves are written `curves.loss`.
      fields: those to guess.
      curves: whether this is a table of curves.

    Raises:
      FitRefused: `columns`, an unknown field or column, or one header twice.
    """
    named = _columns_by_hand(table, by_hand, curves)
    chosen = {field: column for field, column in named.items() if column is not None}
    notes = []
    for field in fields:
        if field in named:
            continue
        candidates = _serving(field, table)
        if candidates and not (field in _ROW_FIELDS and table.present.count(candidates[0].name) > 1):
            chosen[field] = candidates[0]
        if len(candidates) > 1 and field not in ("name", *_ROW_FIELDS):
            first, *others = (column.name for column in candidates)
            change = f"(--columns={field}:{others[0]} to change)"
            notes.append(f"{field} is read from column {first}; also there: {', '.join(others)} {change}")
    for column in chosen.values():
        if table.present.count(column.name) > 1:
            raise FitRefused("columns", f"{table.source}: column {column.name!r} is there twice; rename one")
    return chosen, tuple(notes)


def guess_column(field: str, table: Table) -> Column | None:
    """The column under a header of this field that holds numbers, the most specific one first."""
    return next(iter(_serving(field, table)), None)


def require(table: Table, chosen: Columns, needed: Sequence[str]) -> None:
    """Refuses a table in which a needed field has no column.

    Raises:
      FitRefused: `columns`; the message names the columns that come near it.
    """
    absent = [field for field in needed if field not in chosen]
    if not absent:
        return
    near = []
    losses = _losses(name for name in table.present if _serves("loss", name, table))
    for field in absent:
        columns = [column.name for column in _candidates(field, table)]
        if field == "loss" and not columns and len(losses) > 1:
            near.append(f"several may be the loss: {', '.join(losses)}")
            columns = losses[:1]
        if texts := [name for name in columns if not _serves(field, name, table)]:
            example = next(value for value in table.cells(texts[0]) if not missing(value))
            near.append(f"{texts[0]} holds no numbers: {str(example)[:30]!r}")
    name = losses[0] if losses and absent == ["loss"] else "COLUMN"
    problem = f"{table.source}: no column for {', '.join(absent)} among {', '.join(table.present) or 'none'}"
    fix = f"name it: --columns={absent[0]}:{name}, or rename your column to {absent[0]}"
    raise FitRefused("columns", "; ".join([problem, *near, fix]))


def _check_field(key: str) -> None:
    known = [*_FIELDS, *(f"{field}_{count}" for field, counts in COUNTED.items() for count in counts)]
    known += [f"curves.{field}" for field in CURVE_FIELDS]
    if key not in known:
        near = did_you_mean(key, known)
        raise FitRefused("columns", f"--columns: {key!r} is no field of a run{near}; use one of {', '.join(known)}")


def _columns_by_hand(table: Table, by_hand: Mapping[str, str], curves: bool) -> dict[str, Column | None]:
    """The columns that are named by hand, by field; None for a field that no column is to serve."""
    named: dict[str, Column | None] = {}
    for key, name in by_hand.items():
        _check_field(key)
        if key.startswith("curves.") != curves:
            continue
        field, count = key.removeprefix("curves."), ""
        if (parts := field.partition("_"))[2] in COUNTED.get(parts[0], ()):  # flops_table_a4
            field, _, count = parts
        if field in named:
            other = named[field].name if named[field] else NONE
            raise FitRefused("columns", f"{table.source}: two columns are given for {field}: {other} and {name}")
        nothing = name == NONE and name not in table.present
        named[field] = None if nothing else _column_by_hand(table, field, count, name)
    return named


def _column_by_hand(table: Table, field: str, count: str, name: str) -> Column:
    factor = None
    if name not in table.present and (match := re.fullmatch(r"(.+?)\s*\*\s*([0-9.eE+-]+)", name)):
        name, factor = match[1], as_number(match[2])
        if factor is None or not 0 < factor < math.inf:
            words = f"{match[2]} is no positive factor, as in {name}*1e9"
            raise FitRefused("columns", f"--columns: {name}*{match[2]}: {words}")
    if name not in table.present:
        near, there_are = did_you_mean(name, table.present), ", ".join(table.present)
        raise FitRefused("columns", f"{table.source}: no column {name!r} for {field}{near}; there are {there_are}")
    _, understood, counted = understand(field, name)
    return Column(name, understood if factor is None else factor, count or counted, plain=factor is not None)


def _serving(field: str, table: Table) -> list[Column]:
    """The candidates that hold numbers, where the field is a number."""
    return [column for column in _candidates(field, table) if _serves(field, column.name, table)]


def _serves(field: str, name: str, table: Table) -> bool:
    return field in _WORDS or holds_numbers(table.cells(name))


def _candidates(field: str, table: Table) -> list[Column]:
    """The columns that may hold `field`, the best guess first."""
    counts = _COUNT_RANKS.get(field, ("",))
    ranked = []
    for position, name in enumerate(table.present):
        for rank, header in enumerate(readings(name)):
            base, factor, count = understand(field, header)
            if base in HEADERS[field]:
                key = (rank, counts.index(count), HEADERS[field].index(base), position)
                ranked.append((key, Column(name, factor, count)))
                break
    if field == "loss" and not ranked:
        losses = _losses(table.present)
        return [Column(losses[0])] if len(losses) == 1 else []
    return [column for _, column in sorted(ranked, key=lambda pair: pair[0])]


def _losses(names: Iterable[str]) -> list[str]:
    """The columns under no known header that may be the loss, those of the likeliest kind."""
    ranks = {name: rank for name in names if (rank := loss_rank(name)) is not None}
    return [name for name, rank in ranks.items() if rank == min(ranks.values())]
