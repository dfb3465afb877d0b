"""How do the fits differ between the values of a column of a table (`fit --by=COLUMN`)?"""

from __future__ import annotations

import os
import pathlib
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from chinchilla_jax.base.words import table
from chinchilla_jax.scaling.fits.resample import interval
from chinchilla_jax.scaling.predict.analysis import APPROACHES, Analysis, analyse
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns, telling_left_out
from chinchilla_jax.scaling.read.table.cells import text_of
from chinchilla_jax.scaling.read.table.formats import Row, read_table, table_of
from chinchilla_jax.scaling.read.table.select import Where, select, values_to_split
from chinchilla_jax.scaling.report import summary

Found = Analysis | FitRefused


def fit_by(
    path: str | os.PathLike,
    column: str,
    *,
    where: Where | None = None,
    preset: str = "corrected",
    replicates: int = 1000,
    seed: int = 0,
    echo: Callable[[str], None] = print,
    **reading: Any,
) -> dict[str, Found]:
    """Fits the runs of each value of a column alone and prints the fits side by side; returns them by value.

    A value whose runs cannot carry a fit has its refusal instead.

    Args:
      path: a table, a study directory or run directories.
      where: rows to take, as values by column.
      reading: further arguments of `load_runs`: columns, curves, best_per_cell.

    Raises:
      FitRefused: `where` (no such column, or too many values), or not one value can be fitted.
    """
    where = dict(where or {})
    if column in where:
        raise FitRefused("where", f"--by={column} and --where={column}=...: give one of them; a fit of some values "
                         "apart is one --where at a time")  # fmt: skip
    found: dict[str, Found] = {}
    loaded: dict[str, LoadedRuns] = {}
    said: set[str] = set()
    for value in _values(path, column, where):
        try:
            loaded[value] = load_runs(path, where=where | {column: (value,)}, **reading)
            _announce(f"{column} = {value}", loaded[value], said, echo)
            with telling_left_out(loaded[value]):
                found[value] = analyse(loaded[value].runs, preset, replicates=replicates, seed=seed)
        except FitRefused as refused:
            found[value] = refused
    if not any(isinstance(fit, Analysis) for fit in found.values()):
        value, refused = next(iter(found.items()))
        raise FitRefused(refused.reason, f"no value of {column} can be fitted; {value}: {refused}")
    echo(f"preset {preset}; intervals 95%; one fit for each value of {column}:")
    for line in table([_row(column, value, fit, loaded.get(value)) for value, fit in found.items()]):
        echo(f"  {line}")
    for line in _refusals(found):
        echo(f"  {line}")
    one = shlex.quote(f"--where={column}={next(iter(found))}")
    echo(f"one of them whole: {one} instead of --by={column}")
    return found


def facts(found: Mapping[str, Found]) -> dict[str, Any]:
    """The fits for JSON, by value."""
    return {
        value: {"refused": str(fit)} if isinstance(fit, FitRefused) else summary.fit_facts(fit)
        for value, fit in found.items()
    }


def _values(path: str | os.PathLike, column: str, where: Where) -> list[str]:
    path = pathlib.Path(path)
    if path.is_dir() or not path.exists():
        details = load_runs(path, where=where).details
        return values_to_split(table_of(str(path), [Row(name, values) for name, values in details.items()]), column)
    return values_to_split(select(read_table(path), where), column)


def _announce(title: str, loaded: LoadedRuns, said: set[str], echo: Callable[[str], None]) -> None:
    """The runs of one value; of what describes them only what was not said of a value before."""
    echo(f"{title}: {len(loaded.role('isoflop'))} runs")
    for line in loaded.describe():
        if line not in said:
            echo(f"  {line}")
    said.update(loaded.describe())
    for row in loaded.bad:
        echo(f"  left out: {row.where}: {row.reason}")


def _row(column: str, value: str, found: Found, loaded: LoadedRuns | None) -> dict[str, Any]:
    row: dict[str, Any] = {column: text_of(value), "runs": str(len(loaded.role("isoflop"))) if loaded else "0"}
    if isinstance(found, FitRefused):
        return row | {"E": "refused"}
    for number, name in ((1, "envelope"), (2, "isoflop")):
        fit = getattr(found, name)
        row[f"a ({number})"] = _span(fit.params_law.exponent, fit.boot_params, "exponent") if fit else "-"
    fit = found.parametric
    for name in ("a", "E", "alpha", "beta"):
        key = "a (3)" if name == "a" else name
        row[key] = _span(getattr(fit.surface, name), fit.boot, name) if fit else "-"
    return row


def _refusals(found: Mapping[str, Found]) -> Iterator[str]:
    """What could not be fitted and why, once for all values with the same reason."""
    values: dict[str, list[str]] = {}
    for value, fit in found.items():
        if isinstance(fit, FitRefused):
            values.setdefault(f"refused: {fit}", []).append(value)
        else:
            for name, why in fit.refused.items():
                values.setdefault(f"{APPROACHES[name]} refused: {why}", []).append(value)
    for line, names in values.items():
        yield f"{', '.join(names)}: {line}"


def _span(value: Any, boot: Any, name: str) -> str:
    text = f"{float(value):.3f}"
    if boot is None:
        return text
    low, high = interval(getattr(boot, name), 0.95)
    return f"{text} ({low:.3f} to {high:.3f})"
