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
from chinchilla_jax.scaling.read.table.cells import holds_numbers, missing
from chinchilla_jax.scaling.read.table.headers import COUNTED, HEADERS, last_part, loss_rank, understand

RUN_FIELDS = ("name", "params", "tokens", "loss", "flops", "budget", "role", "curve", "diverged")
# How rows belong together, which of them finished, and how often the data were seen.
ROW_FIELDS = ("step", "seed", "state", "epochs")
FIELDS = (*RUN_FIELDS, *ROW_FIELDS)
CURVE_FIELDS = ("name", "tokens", "flops", "step", "loss")
NONE = "-"  # `--columns=FIELD:-`: no column serves as it
_NUMBERS = ("params", "tokens", "loss", "flops", "budget", "step", "epochs")
_COUNT_RANKS = {"params": ("active", "total", "", "non_embedding", "nominal"), "flops": ("", "6nd", *CONVENTIONS)}

Values = Callable[[str], Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Column:
    """A column `name` whose numbers are multiplied by `factor`; `count` is the named count it holds, or empty.

    `guessed` is False where it was named by hand.
    """

    name: str
    factor: float = 1.0
    count: str = ""
    guessed: bool = dataclasses.field(default=True, compare=False)
    plain: bool = dataclasses.field(default=False, compare=False)  # a factor was given by hand: nothing else is done

    def __str__(self) -> str:
        return self.name if self.factor == 1.0 else f"{self.name} x {self.factor:g}"


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
    source: str,
    present: Sequence[str],
    wanted: Mapping[str, str],
    fields: Iterable[str] = FIELDS,
    curves: bool = False,
    values: Values | None = None,
) -> tuple[dict[str, Column], tuple[str, ...]]:
    """The column of each field, as wanted or else guessed from the header, and what is worth saying about the guess.

    Args:
      source: the table, for messages.
      present: its columns.
      wanted: column by field; a field may name its count (`params_non_embedding`, `flops_table_a4`), a column its
        multiplier (`D*1e9`); `-` says that no column serves. Fields of a table of curves are written `curves.loss`.
      fields: those to look for.
      curves: whether this is a table of curves.
      values: the cells of a column by its name; one that should hold numbers and holds text is not guessed.

    Raises:
      FitRefused: `columns`, an unknown field or column, or one header twice.
    """
    chosen: dict[str, Column] = {}
    without = set()
    for key, name in wanted.items():
        _check_field(key)
        if key.startswith("curves.") != curves:
            continue
        field, count = _split_field(key.removeprefix("curves."))
        if field in chosen or field in without:
            raise FitRefused("columns", f"{source}: two columns are given for {field}: "
                             f"{chosen[field].name if field in chosen else NONE} and {name}")  # fmt: skip
        if name == NONE and name not in present:
            without.add(field)
        else:
            chosen[field] = _wanted_column(source, field, count, name, present)
    notes = []
    for field in fields:
        if field in chosen or field in without:
            continue
        found = [column for column in _candidates(field, present) if _serves(field, column.name, values)]
        if found:
            chosen[field] = found[0]
        if len(found) > 1 and field not in ("name", *ROW_FIELDS):
            others = ", ".join(column.name for column in found[1:])
            notes.append(f"{field} is read from column {found[0].name}; also there: {others} "
                         f"(--columns={field}:{found[1].name} to change)")  # fmt: skip
    for field, column in list(chosen.items()):
        if list(present).count(column.name) > 1:
            if field in ROW_FIELDS and column.guessed:
                del chosen[field]
                continue
            raise FitRefused("columns", f"{source}: column {column.name!r} is there twice; rename one")
    return chosen, tuple(notes)


def require(
    source: str,
    chosen: Mapping[str, Column],
    needed: Iterable[str],
    present: Sequence[str],
    values: Values | None = None,
) -> None:
    """Raises:
    FitRefused: `columns`, when a needed field has no column; the message names the columns that come near it.
    """
    needed = list(needed)
    missed = [field for field in needed if field not in chosen]
    if not missed:
        return
    near = []
    for field in missed:
        columns = [column.name for column in _candidates(field, present)]
        if field == "loss" and not columns:
            several = _losses(present, values)
            if len(several) > 1:
                near.append(f"several may be the loss: {', '.join(several)}")
                columns = several[:1]
        if texts := [name for name in columns if not _serves(field, name, values)]:
            example = next(value for value in values(texts[0]) if not missing(value))
            near.append(f"{texts[0]} holds no numbers: {str(example)[:30]!r}")
    example = next((name for name in _losses(present, values)), "COLUMN") if missed == ["loss"] else "COLUMN"
    raise FitRefused("columns", f"{source}: no column for {', '.join(missed)} among {', '.join(present) or 'none'}"
                     f"{''.join(f'; {line}' for line in near)}; name it: --columns={missed[0]}:{example}, or rename "
                     f"your column to {missed[0]}")  # fmt: skip


def _check_field(key: str) -> None:
    known = [*FIELDS, *(f"{field}_{count}" for field, counts in COUNTED.items() for count in counts)]
    known += [f"curves.{field}" for field in CURVE_FIELDS]
    if key not in known:
        raise FitRefused("columns", f"--columns: {key!r} is no field of a run{did_you_mean(key, known)}; "
                         f"use one of {', '.join(known)}")  # fmt: skip


def _split_field(key: str) -> tuple[str, str]:
    """`flops_table_a4` -> (`flops`, `table_a4`)."""
    for field, counts in COUNTED.items():
        if key.startswith(f"{field}_") and key.removeprefix(f"{field}_") in counts:
            return field, key.removeprefix(f"{field}_")
    return key, ""


def _wanted_column(source: str, field: str, count: str, name: str, present: Sequence[str]) -> Column:
    factor = None
    if name not in present and (match := re.fullmatch(r"(.+?)\s*\*\s*([0-9.eE+-]+)", name)):
        name, factor = match[1], _factor(match[2], name)
    if name not in present:
        raise FitRefused("columns", f"{source}: no column {name!r} for {field}{did_you_mean(name, present)}; "
                         f"there are {', '.join(present)}")  # fmt: skip
    _, understood, counted = understand(field, name)
    return Column(name, understood if factor is None else factor, count or counted, False, factor is not None)


def _factor(text: str, name: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        raise FitRefused("columns", f"--columns: {name}*{text}: {text} is no positive factor, as in {name}*1e9")
    return factor


def _serves(field: str, name: str, values: Values | None) -> bool:
    return values is None or field not in _NUMBERS or holds_numbers(values(name))


def _candidates(field: str, present: Sequence[str]) -> list[Column]:
    """The columns that may hold `field`, the best guess first."""
    counts = _COUNT_RANKS.get(field, ("",))
    found = []
    for position, name in enumerate(present):
        for rank, header in enumerate((name, last_part(name))):
            base, factor, count = understand(field, header)
            if header and base in HEADERS[field]:
                found.append(((rank, counts.index(count), HEADERS[field].index(base), position),
                              Column(name, factor, count)))  # fmt: skip
                break
    if field == "loss" and not found and len(losses := _losses(present, None)) == 1:
        return [Column(losses[0])]
    return [column for _, column in sorted(found, key=lambda pair: pair[0])]


def _losses(present: Sequence[str], values: Values | None) -> list[str]:
    """The columns under no known header that may be the loss, those of the likeliest kind."""
    ranks = {name: rank for name in present if (rank := loss_rank(name)) is not None and _serves("loss", name, values)}
    return [name for name, rank in ranks.items() if rank == min(ranks.values())]
