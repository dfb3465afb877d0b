"""How do the fits differ between the values of a column of a table (`fit --by=COLUMN`)?"""

from __future__ import annotations

import os
import pathlib
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from chinchilla_jax.base.words import table
from chinchilla_jax.scaling.predict.analysis import APPROACHES, analyse
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns, telling_left_out
from chinchilla_jax.scaling.read.table.cells import text_of
from chinchilla_jax.scaling.read.table.formats import Row, read_table, table_of
from chinchilla_jax.scaling.read.table.select import Where, select, values_to_split
from chinchilla_jax.scaling.report.facts import facts_of
from chinchilla_jax.scaling.report.sections import Facts, exponents


def fit_by(
    path: str | os.PathLike, column: str, reading: Mapping[str, Any], fits: Mapping[str, Any], echo: Callable
) -> dict[str, Facts]:
    """Fits the runs of each value of a column alone and prints the fits side by side; returns the facts by value.

    Of a value whose runs cannot carry a fit the facts are `{"refused": reason}`.

    Args:
      path: a table, a study directory or run directories.
      reading: further arguments of `load_runs`: where, columns, curves, best_per_cell.
      fits: preset, replicates and seed, as for `analyse`.

    Raises:
      FitRefused: `where` (no such column, or too many values), or not one value can be fitted.
    """
    where = dict(reading["where"] or {})
    if column in where:
        raise FitRefused(
            "where",
            f"--by={column} and --where={column}=...: give one of them; a fit of some values apart is one --where at "
            "a time",
        )
    by_value: dict[str, Facts] = {}
    rows, told, refusals = [], set(), []
    for value in _values(path, column, where):
        row = {column: text_of(value), "runs": "0"}
        try:
            loaded = load_runs(path, **reading | {"where": where | {column: (value,)}})
            row["runs"] = str(len(loaded.role("isoflop")))
            _announce(f"{column} = {value}", loaded, told, echo)
            with telling_left_out(loaded):
                by_value[value] = facts_of(loaded, analyse(loaded.runs, **fits))
            rows.append(row | _cells(by_value[value]))
        except FitRefused as refused:
            refusals.append(refused)
            by_value[value] = {"refused": str(refused)}
            rows.append(row | {"E": "refused"})
    if len(refusals) == len(by_value):
        value, facts = next(iter(by_value.items()))
        raise FitRefused(refusals[0].reason, f"no value of {column} can be fitted; {value}: {facts['refused']}")
    echo(f"preset {fits['preset']}; intervals 95%; one fit for each value of {column}:")
    for line in (*table(rows), *_refusals(by_value)):
        echo(f"  {line}")
    one = shlex.quote(f"--where={column}={next(iter(by_value))}")
    echo(f"one of them whole: {one} instead of --by={column}")
    return by_value


def _values(path: str | os.PathLike, column: str, where: Where) -> list[str]:
    path = pathlib.Path(path)
    if path.is_dir() or not path.exists():
        details = load_runs(path, where=where).details
        return values_to_split(table_of(str(path), [Row(name, values) for name, values in details.items()]), column)
    return values_to_split(select(read_table(path), where), column)


def _announce(title: str, loaded: LoadedRuns, told: set[str], echo: Callable[[str], None]) -> None:
    """The runs of one value; of what describes them only what was not told of a value before."""
    echo(f"{title}: {len(loaded.role('isoflop'))} runs")
    for line in loaded.describe():
        if line not in told:
            echo(f"  {line}")
    told.update(loaded.describe())
    for row in loaded.bad:
        echo(f"  left out: {row.where}: {row.reason}")


def _cells(facts: Facts) -> dict[str, str]:
    """The exponent a of each approach and the constants of approach 3, each with its 95% interval."""
    cells = {}
    for number, name in enumerate(APPROACHES, 1):
        cells[f"a ({number})"] = _with_interval(*exponents(facts, name)["a"]) if facts[name] else "-"
    fit = facts["parametric"]
    for name in ("E", "alpha", "beta"):
        cells[name] = _with_interval(fit["values"][name], fit["intervals"].get(name, {})) if fit else "-"
    return cells


def _with_interval(value: float, intervals: Mapping[str, Sequence[float]]) -> str:
    span = " ({:.3f} to {:.3f})".format(*intervals["95%"]) if intervals else ""
    return f"{value:.3f}{span}"


def _refusals(by_value: Mapping[str, Facts]) -> Iterator[str]:
    """What could not be fitted and why, once for all values with the same reason."""
    values: dict[str, list[str]] = {}
    for value, facts in by_value.items():
        refused = facts["refused"]
        reasons = (
            {"refused": refused}
            if isinstance(refused, str)
            else {f"{APPROACHES[name].split(':')[0]} refused": why for name, why in refused.items()}
        )
        for title, why in reasons.items():
            values.setdefault(f"{title}: {why}", []).append(value)
    for line, names in values.items():
        yield f"{', '.join(names)}: {line}"
