"""From which other columns can D and the loss be computed, and in which unit is the loss then?

Tokens: steps x batch x length, tokens per parameter x N, or C / 6N. Loss in nats per token: ln of a perplexity, bits
x ln 2, bits per byte x ln 2 x bytes per token. What is computed is echoed as a column whose name is the formula.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from chinchilla_jax.scaling.read.table.cells import Unusable, Zero
from chinchilla_jax.scaling.read.table.columns import Column, Columns, guess_column
from chinchilla_jax.scaling.read.table.formats import Row, Table
from chinchilla_jax.scaling.read.table.headers import is_header, readings

TAKEN_AS_NATS = "taken as nats per token: the numbers cannot tell it from bits, or from a loss per byte"
_UNITS = ("perplexity", "loss_bits", "bits_per_byte")


def derive_tokens(table: Table, columns: Columns) -> tuple[Columns, tuple[str, ...]]:
    """(columns, what to say), with a formula for D where no column holds it and the table has what it takes."""
    if "tokens" in columns:
        return columns, ()
    step, params = columns.get("step"), columns.get("params")
    batch, length = guess_column("batch", table), guess_column("length", table)
    batch_tokens, ratio = guess_column("batch_tokens", table), guess_column("tokens_per_param", table)
    cost = columns.get("flops") or columns.get("budget")
    if step and batch_tokens:
        tokens = _product((step, "step"), (batch_tokens, "batch in tokens"))
    elif step and batch and length:
        tokens = _product((step, "step"), (batch, "batch size"), (length, "sequence length"))
    elif ratio and params:
        tokens = _product((ratio, "tokens per parameter"), (params, "params"))
    elif cost and params:
        tokens = Column(
            f"{cost} / (6 x {params})",
            formula=lambda row: _value(row, cost, "flops", from_zero=True) / (6.0 * _value(row, params, "params")),
        )
        nominal = (
            ""
            if "flops" in columns
            else (" (nominal: name the column of C, if there is one, with --columns=flops:COLUMN)")
        )
        return {**columns, "tokens": tokens}, (f"no column holds tokens: D is C / 6N, from {cost}{nominal}",)
    else:
        return columns, ()
    return {**columns, "tokens": tokens}, (f"no column holds tokens: D is {tokens}",)


def derive_loss(table: Table, columns: Columns, without: Collection[str] = ()) -> tuple[Columns, str, tuple[str, ...]]:
    """(columns, the unit of the loss, what to say), with the loss in nats per token where that can be had.

    A loss column whose header names a perplexity or bits is converted as well, unless a factor was given by hand.

    Args:
      without: fields that no column may be guessed for.
    """
    kind, column = _column_in_other_unit(table, columns, without)
    if column is None:
        return columns, TAKEN_AS_NATS, ()
    if kind == "perplexity":
        loss = Column(f"ln {column.name}", formula=lambda row: _log_perplexity(row, column))
        unit = "nats per token, the logarithm of a perplexity"
        note = f"the loss is {loss}: {column.name} is taken as a perplexity, e to the loss in nats per token"
    elif kind == "loss_bits":
        loss = Column(f"{column.name} x ln 2", formula=lambda row: _value(row, column, "loss") * math.log(2.0))
        unit, note = "nats per token, from bits", f"the loss is {loss}: {column.name} is taken as bits per token"
    elif size := guess_column("bytes_per_token", table):
        loss = Column(
            f"{column.name} x ln 2 x {size.name}",
            formula=lambda row: _value(row, column, "loss") * math.log(2.0) * _value(row, size, "bytes per token"),
        )
        unit, note = "nats per token, from bits per byte", f"the loss is {loss}"
    else:
        loss, unit = Column(column.name), "bits per byte, as it stands"
        note = (
            f"the loss is {loss} as it stands, in bits per byte: exponents, N* and D* do not depend on the unit "
            "but E, A, B and predicted losses are in bits per byte; with a column bytes_per_token it would be in nats "
            "per token"
        )
    return {**columns, "loss": loss}, unit, (note,)


def _column_in_other_unit(table: Table, columns: Columns, without: Collection[str]) -> tuple[str, Column | None]:
    """(the unit, the column) of a loss that is to be converted; no column where there is nothing to do."""
    if column := columns.get("loss"):
        headers = readings(column.name)
        kind = next((kind for kind in _UNITS if any(is_header(kind, header) for header in headers)), "")
        return kind, column if kind and not column.plain else None
    if "loss" not in without:
        for kind in _UNITS:
            if column := guess_column(kind, table):
                return kind, column
    return "", None


def _product(*factors: tuple[Column, str]) -> Column:
    """The product of columns, each with the word for what it holds."""
    return Column(
        " x ".join(str(column) for column, _ in factors),
        formula=lambda row: math.prod(_value(row, column, word, from_zero=True) for column, word in factors),
    )


def _value(row: Row, column: Column, word: str, from_zero: bool = False) -> float:
    """The number of a cell; units and multipliers as the word's field may have them.

    A history may begin at step 0, before any token: 0 is a number with `from_zero`.
    """
    value = column.number(row, word)
    if from_zero and isinstance(value, Zero):
        return 0.0
    if isinstance(value, Unusable):
        raise value
    return value


def _log_perplexity(row: Row, column: Column) -> float:
    loss = math.log(_value(row, column, "perplexity"))
    if loss <= 0.0:
        raise Unusable(f"{column.name} is not above 1, the perplexity of a loss of 0")
    return loss
