"""From which other columns can D and the loss be computed, and in which unit is the loss then?

Tokens: steps x batch x length, tokens per parameter x N, or C / 6N. Loss in nats per token: ln of a perplexity, bits
x ln 2, bits per byte x ln 2 x bytes per token. What is computed becomes a column whose name is the formula.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from chinchilla_jax.scaling.read.table.cells import Unusable, holds_numbers, same_value, scaled
from chinchilla_jax.scaling.read.table.columns import Column, Values
from chinchilla_jax.scaling.read.table.formats import Row
from chinchilla_jax.scaling.read.table.headers import INGREDIENTS, is_header, last_part, understand

TAKEN_AS_NATS = "taken as nats per token: the numbers cannot tell it from bits, or from a loss per byte"
BITS_PER_BYTE = "bits per byte, as it stands"
_UNITS = ("perplexity", "loss_bits", "bits_per_byte")


def derive_tokens(
    rows: Sequence[Row], columns: Mapping[str, Column], present: Sequence[str], values: Values
) -> tuple[tuple[Row, ...], dict[str, Column], tuple[str, ...]]:
    """(rows, columns, what to say), with D computed where no column holds it and the table has what it takes.

    Args:
      values: the cells of a column by its name.
    """
    if "tokens" in columns or not (found := _tokens(columns, present, values)):
        return tuple(rows), dict(columns), ()
    name, compute, said = found
    return _with(rows, name, compute), dict(columns) | {"tokens": Column(name)}, (f"no column holds tokens: {said}",)


def derive_loss(
    rows: Sequence[Row],
    columns: Mapping[str, Column],
    present: Sequence[str],
    values: Values,
    without: Sequence[str] = (),
) -> tuple[tuple[Row, ...], dict[str, Column], str, tuple[str, ...]]:
    """(rows, columns, the unit of the loss, what to say), with the loss in nats per token where that can be had.

    A loss column whose header names a perplexity or bits is converted as well, unless a factor was given by hand.

    Args:
      without: fields that no column may be guessed for.
    """
    kind, column = _loss_unit(columns, present, values, without)
    if column is None:
        return tuple(rows), dict(columns), TAKEN_AS_NATS, ()
    name, compute, unit, said = _loss(kind, column, present, values)
    rows = _with(rows, name, compute) if compute else tuple(rows)
    return rows, dict(columns) | {"loss": Column(name)}, unit, said


def ingredient(kind: str, present: Sequence[str], values: Values) -> Column | None:
    """The column under a header of this kind that holds numbers, the most specific one first."""
    found = []
    for name in present:
        for rank, header in enumerate((name, last_part(name))):
            if header and is_header(kind, header) and holds_numbers(values(name)):
                base, factor, _ = understand(kind, header)
                found.append((rank, INGREDIENTS[kind].index(base), Column(name, factor)))
                break
    return min(found, key=lambda entry: entry[:2])[2] if found else None


Compute = Callable[[Mapping], object]


def _tokens(
    columns: Mapping[str, Column], present: Sequence[str], values: Values
) -> tuple[str, Compute, str] | None:
    """(the formula, how it is computed from a row's values, what to say)."""
    step, params = columns.get("step"), columns.get("params")
    batch, length = ingredient("batch", present, values), ingredient("length", present, values)
    batch_tokens = ingredient("batch_tokens", present, values)
    ratio = ingredient("tokens_per_param", present, values)
    if step and batch_tokens:
        parts = {step: "step", batch_tokens: "batch in tokens"}
    elif step and batch and length:
        parts = {step: "step", batch: "batch size", length: "sequence length"}
    elif ratio and params:
        parts = {ratio: "tokens per parameter", params: "params"}
    else:
        cost = next((columns[field] for field in ("flops", "budget") if field in columns), None)
        if not (cost and params):
            return None
        name = f"{cost} / (6 x {params})"
        nominal = " (nominal: name the column of C, if there is one, with --columns=flops:COLUMN)" * (
            "flops" not in columns)  # fmt: skip
        return name, lambda row: _from_zero(row, cost, "flops") / (6.0 * _read(row, params, "params")), (
            f"D is C / 6N, from {cost}{nominal}")  # fmt: skip
    name = " x ".join(str(column) for column in parts)
    return name, lambda row: math.prod(_from_zero(row, column, word) for column, word in parts.items()), f"D is {name}"


def _loss_unit(
    columns: Mapping[str, Column], present: Sequence[str], values: Values, without: Sequence[str]
) -> tuple[str, Column | None]:
    """(the unit, the column) of a loss that is to be converted; no column where there is nothing to do."""
    column = columns.get("loss")
    if column is not None:
        headers = [header for header in (column.name, last_part(column.name)) if header]
        kind = next((kind for kind in _UNITS if any(is_header(kind, header) for header in headers)), "")
        return kind, column if kind and not column.plain else None
    if "loss" in without:
        return "", None
    return next(((kind, found) for kind in _UNITS if (found := ingredient(kind, present, values))), ("", None))


def _loss(
    kind: str, column: Column, present: Sequence[str], values: Values
) -> tuple[str, Compute | None, str, tuple[str, ...]]:
    """(the formula, how it is computed or None where the column serves as it is, the unit, what to say)."""
    if kind == "perplexity":
        name = f"ln {column.name}"
        said = f"the loss is {name}: {column.name} is taken as a perplexity, e to the loss in nats per token"
        return name, lambda row: _above_zero(math.log(_read(row, column, "perplexity")), column), (
            "nats per token, the logarithm of a perplexity"), (said,)  # fmt: skip
    if kind == "loss_bits":
        name = f"{column.name} x ln 2"
        said = f"the loss is {name}: {column.name} is taken as bits per token"
        return name, lambda row: _read(row, column, "loss") * math.log(2.0), "nats per token, from bits", (said,)
    size = ingredient("bytes_per_token", present, values)
    if size is not None:
        name = f"{column.name} x ln 2 x {size.name}"
        return name, lambda row: _read(row, column, "loss") * math.log(2.0) * _read(row, size, "bytes per token"), (
            "nats per token, from bits per byte"), (f"the loss is {name}",)  # fmt: skip
    said = (f"the loss is {column.name} as it stands, in bits per byte: exponents, N* and D* do not depend on the unit "
            "but E, A, B and predicted losses are in bits per byte; with a column bytes_per_token it would be in nats "
            "per token")  # fmt: skip
    return column.name, None, BITS_PER_BYTE, (said,)


def _above_zero(loss: float, column: Column) -> float:
    if loss <= 0.0:
        raise Unusable(f"{column.name} is not above 1, the perplexity of a loss of 0")
    return loss


def _with(rows: Sequence[Row], name: str, compute: Compute) -> tuple[Row, ...]:
    """The rows with one more column; a row that lacks an ingredient holds the reason in its place."""
    return tuple(dataclasses.replace(row, values=dict(row.values) | {name: _attempt(compute, row)}) for row in rows)


def _attempt(compute: Compute, row: Row) -> object:
    try:
        return compute(row.values)
    except Unusable as problem:
        return problem


def _from_zero(values: Mapping, column: Column, word: str) -> float:
    """As `_read`, but a history may begin at step 0, before any token."""
    return 0.0 if same_value(values.get(column.name)) == 0.0 else _read(values, column, word)


def _read(values: Mapping, column: Column, word: str) -> float:
    """The number of a cell; units and multipliers as the word's field may have them."""
    return scaled(values.get(column.name), word, column.factor)
