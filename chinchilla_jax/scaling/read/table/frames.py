"""Which rows does a table in memory hold: a DataFrame (pandas, polars, pyarrow) or plain columns?

DataFrames come by the Arrow stream that they offer, else by the interchange protocol, so that no such library is
needed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chinchilla_jax.scaling.read.runs import FitRefused
from chinchilla_jax.scaling.read.table.formats import Row, Table

NAME = "the table"  # stands for a file's name


def is_frame(value: Any) -> bool:
    """Whether `table_of_frame` reads it."""
    return isinstance(value, Mapping) or hasattr(value, "__arrow_c_stream__") or hasattr(value, "__dataframe__")


def table_of_frame(frame: Any) -> Table:
    """The rows of a DataFrame, or of a mapping of column -> values of one length. Refused as `columns`."""
    columns = _columns(frame)
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        sizes = ", ".join(f"{name} {len(values)}" for name, values in columns.items())
        raise FitRefused("columns", f"{NAME}: columns of different lengths: {sizes}")
    lines = zip(*columns.values(), strict=True)
    rows = [Row(f"row {place}", dict(zip(columns, line, strict=True))) for place, line in enumerate(lines)]
    return Table(NAME, rows, list(columns))


def _columns(frame: Any) -> dict[str, list[Any]]:
    if isinstance(frame, Mapping):
        return {str(name): [_plain(value) for value in values] for name, values in frame.items()}
    import pyarrow  # not needed for a mapping, and slow to import

    try:
        if hasattr(frame, "__arrow_c_stream__"):
            table = pyarrow.table(frame)
        else:
            from pyarrow import interchange

            table = interchange.from_dataframe(frame)
    except (pyarrow.ArrowException, TypeError, ValueError, RuntimeError) as error:
        words = " ".join(str(error).split())[:120]
        why = f"a DataFrame that cannot be read ({words}); give a dict of columns"
        raise FitRefused("columns", f"{NAME}: {why}") from None
    return {name: column.to_pylist() for name, column in zip(table.column_names, table.columns, strict=True)}


def _plain(value: Any) -> Any:
    """A number of numpy as one of Python."""
    return value.item() if hasattr(value, "item") and not hasattr(value, "__len__") else value
