"""Which arms are compared: studies, tables and saved fits by path, or the values of one table's column?"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.scaling.predict.saved import is_saved_fit, load_fit
from chinchilla_jax.scaling.read.load import load_runs, values_of
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns


def arms_of(words: Sequence[str], reading: Mapping[str, Any]) -> dict[str, LoadedRuns]:
    """Arms by name from words PATH or NAME=PATH; a name that is not given is that of the file or folder.

    Raises FitRefused: `arms` (two of one name), or as `load_runs`, whose options are `reading`.
    """
    arms: dict[str, LoadedRuns] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or os.sep in name:
            name, path = "", word
        name = name or files.resolved(path).stem
        if name in arms:
            raise FitRefused("arms", f"two arms are called {name}: name them, as plain={path}")
        if is_saved_fit(path) and any(reading.values()):
            raise FitRefused(
                "arms", f"{path} holds runs as they were read: --columns, --where and the like go with `fit`"
            )
        arms[name] = load_fit(path).loaded if is_saved_fit(path) else load_runs(path, **reading)
    return arms


def arms_by_value(path: str, column: str, reading: Mapping[str, Any]) -> dict[str, LoadedRuns]:
    """An arm for each value of a column of the table, or of the results, at `path`.

    Raises FitRefused: `where` (no such column, or too many values), or as `load_runs`.
    """
    where = dict(reading.get("where") or {})
    if column in where:
        raise FitRefused("where", f"--by={column} and --where={column}=...: give one of them")
    options = dict(reading) | {"where": where}
    return {
        value: load_runs(path, **options | {"where": where | {column: (value,)}})
        for value in values_of(path, column, where)
    }
