"""Which column of a table, or which formula over columns, holds N, D, C and the loss, and in which unit?

Headers are understood as `headers.py` says. What was made of one is always echoed, and `--columns` overrides it.

Where no column holds D it is steps x batch x length, tokens per parameter x N, or C / 6N. The loss is in nats per token
where that can be had: ln of a perplexity, bits x ln 2, bits per byte x ln 2 x bytes per token. What is computed is
echoed as a column whose name is the formula.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Collection, Iterable, Mapping

from chinchilla_jax.config import CONVENTIONS, did_you_mean
from chinchilla_jax.scaling.read.runs import FitRefused
from chinchilla_jax.scaling.read.table.cells import Unusable, Zero, as_number, certain, holds_numbers, missing
from chinchilla_jax.scaling.read.table.formats import Column, Row, Table
from chinchilla_jax.scaling.read.table.headers import COUNTED, HEADERS, is_header, loss_rank, readings, understand

RUN_FIELDS = ("name", "params", "tokens", "loss", "flops", "budget", "role", "curve", "diverged")
# How rows belong together, which of them finished, and how often the data were seen.
_ROW_FIELDS = ("step", "seed", "state", "epochs")
_FIELDS = (*RUN_FIELDS, *_ROW_FIELDS)
CURVE_FIELDS = ("name", "tokens", "flops", "step", "loss")
NONE = "-"  # `--columns=FIELD:-`: no column serves as it
_WORDS = ("name", "role", "curve", "diverged", "seed", "state")  # fields that need not be numbers
_COUNT_RANKS = {"params": ("active", "total", "", "non_embedding", "nominal"), "flops": ("", "6nd", *CONVENTIONS)}
TAKEN_AS_NATS = "taken as nats per token: the numbers cannot tell it from bits, or from a loss per byte"
_UNITS = ("perplexity", "loss_bits", "bits_per_byte")


def parse_columns(text: str) -> dict[str, str]:
    """`params:N,tokens:D*1e9` as `{"params": "N", "tokens": "D*1e9"}`; quotes protect a comma in a column's name.

    Refuses (`columns`) a part without a colon, an unknown field, or one that is named twice.
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
) -> None:
    """Gives each field its column, by hand or else guessed from the header; notes what is worth saying of a guess.

    A column that should hold numbers and holds text is not guessed. Refuses (`columns`) an unknown field or column, or
    a header that is there twice.

    Args:
      by_hand: column by field; a field may name its count (`params_non_embedding`, `flops_table_a4`), a column its
        multiplier (`D*1e9`); `-` says that no column serves. Fields of a table of curves are written `curves.loss`.
      fields: those to guess.
      curves: whether this is a table of curves.
    """
    named = _columns_by_hand(table, by_hand, curves)
    table.columns |= {field: column for field, column in named.items() if column is not None}
    for field in fields:
        if field in named:
            continue
        candidates = _serving(field, table)
        if candidates and not (field in _ROW_FIELDS and table.present.count(candidates[0].name) > 1):
            table.columns[field] = candidates[0]
        if len(candidates) > 1 and field not in ("name", *_ROW_FIELDS):
            first, *others = (column.name for column in candidates)
            change = f"(--columns={field}:{others[0]} to change)"
            table.notes.append(f"{field} is read from column {first}; also there: {', '.join(others)} {change}")
    for column in table.columns.values():
        if table.present.count(column.name) > 1:
            raise table.refused("columns", f"column {column.name!r} is there twice; rename one")


def guess_column(field: str, table: Table) -> Column | None:
    """The column under a header of this field that holds numbers, the most specific one first."""
    return next(iter(_serving(field, table)), None)


def require(table: Table, *needed: str) -> None:
    """Refuses (`columns`) a table in which a needed field has no column, and names the columns that come near it."""
    absent = [field for field in needed if field not in table.columns]
    if not absent:
        return
    near = []
    losses = _losses(name for name in table.present if _serves("loss", name, table))
    for field in absent:
        names = [column.name for column in _candidates(field, table)]
        if field == "loss" and not names and len(losses) > 1:
            near.append(f"several may be the loss: {', '.join(losses)}")
            names = losses[:1]
        if texts := [name for name in names if not _serves(field, name, table)]:
            example = next(value for value in table.cells(texts[0]) if not missing(value))
            near.append(f"{texts[0]} holds no numbers: {str(example)[:30]!r}")
    name = losses[0] if losses and absent == ["loss"] else "COLUMN"
    problem = f"no column for {', '.join(absent)} among {', '.join(table.present) or 'none'}"
    fix = f"name it: --columns={absent[0]}:{name}, or rename your column to {absent[0]}"
    raise table.refused("columns", "; ".join([problem, *near, fix]))


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
            other = named[field]
            both = f"{other.name if other else NONE} and {name}"
            raise table.refused("columns", f"two columns are given for {field}: {both}")
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
        raise table.refused("columns", f"no column {name!r} for {field}{near}; there are {there_are}")
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


def derive_tokens(table: Table) -> None:
    """Gives D a formula, and says so, where no column holds it and the table has what it takes."""
    columns = table.columns
    if "tokens" in columns:
        return
    step, params = columns.get("step"), columns.get("params")
    batch, length = guess_column("batch", table), guess_column("length", table)
    batch_tokens, ratio = guess_column("batch_tokens", table), guess_column("tokens_per_param", table)
    cost = columns.get("flops") or columns.get("budget")
    source = ""
    if step and batch_tokens:
        tokens = _product((step, "step"), (batch_tokens, "batch in tokens"))
    elif step and batch and length:
        tokens = _product((step, "step"), (batch, "batch size"), (length, "sequence length"))
    elif ratio and params:
        tokens = _product((ratio, "tokens per parameter"), (params, "params"))
    elif cost and params:
        tokens = Column(
            f"{cost} / (6 x {params})",
            formula=lambda row: _or_zero(cost.number(row, "flops")) / (6.0 * certain(params.number(row, "params"))),
        )
        nominal = " (nominal: name the column of C, if there is one, with --columns=flops:COLUMN)"
        source = f"C / 6N, from {cost}{'' if 'flops' in columns else nominal}"
    else:
        return
    columns["tokens"] = tokens
    table.notes.append(f"no column holds tokens: D is {source or tokens}")


def derive_loss(table: Table, without: Collection[str] = ()) -> str:
    """The unit of the loss, which is given a formula, and a note, where it can be had in nats per token.

    A loss column whose header names a perplexity or bits is converted as well, unless a factor was given by hand. No
    column may be guessed for the fields `without`.
    """
    kind, column = _column_in_other_unit(table, without)
    if column is None:
        return TAKEN_AS_NATS
    name, size = column.name, guess_column("bytes_per_token", table)

    def nats(row: Row) -> float:
        return certain(column.number(row, "loss")) * math.log(2.0)

    if kind == "perplexity":
        loss = Column(f"ln {name}", formula=lambda row: _log_perplexity(row, column))
        unit = "nats per token, the logarithm of a perplexity"
        words = f"{loss}: {name} is taken as a perplexity, e to the loss in nats per token"
    elif kind == "loss_bits":
        loss = Column(f"{name} x ln 2", formula=nats)
        unit, words = "nats per token, from bits", f"{loss}: {name} is taken as bits per token"
    elif size:
        loss = Column(
            f"{name} x ln 2 x {size.name}",
            formula=lambda row: nats(row) * certain(size.number(row, "bytes per token")),
        )
        unit, words = "nats per token, from bits per byte", str(loss)
    else:
        loss, unit = Column(name), "bits per byte, as it stands"
        words = (
            f"{loss} as it stands, in bits per byte: exponents, N* and D* do not depend on the unit "
            "but E, A, B and predicted losses are in bits per byte; with a column bytes_per_token it would be in nats "
            "per token"
        )
    table.columns["loss"] = loss
    table.notes.append(f"the loss is {words}")
    return unit


def _column_in_other_unit(table: Table, without: Collection[str]) -> tuple[str, Column | None]:
    """(the unit, the column) of a loss that is to be converted; no column where there is nothing to do."""
    if column := table.columns.get("loss"):
        headers = readings(column.name)
        kind = next((kind for kind in _UNITS if any(is_header(kind, header) for header in headers)), "")
        return kind, column if kind and not column.plain else None
    candidates = ((kind, guess_column(kind, table)) for kind in _UNITS if "loss" not in without)
    return next((found for found in candidates if found[1]), ("", None))


def _product(*factors: tuple[Column, str]) -> Column:
    """The product of columns, each with the word for what it holds."""
    return Column(
        " x ".join(str(column) for column, _ in factors),
        formula=lambda row: math.prod(_or_zero(column.number(row, word)) for column, word in factors),
    )


def _or_zero(value: float | Unusable) -> float:
    """The number; it may be 0, since a history may begin at step 0, before any token."""
    return 0.0 if isinstance(value, Zero) else certain(value)


def _log_perplexity(row: Row, column: Column) -> float:
    loss = math.log(certain(column.number(row, "perplexity")))
    if loss <= 0.0:
        raise Unusable(f"{column.name} is not above 1, the perplexity of a loss of 0")
    return loss
