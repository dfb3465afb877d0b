"""How do the fits differ between the values of a column of a table (`fit --by=COLUMN`)?"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from chinchilla_jax.base.words import Echo, table
from chinchilla_jax.scaling.predict.analysis import APPROACHES, analyse
from chinchilla_jax.scaling.read.load import load_runs, values_of
from chinchilla_jax.scaling.read.runs import FitRefused, telling_left_out
from chinchilla_jax.scaling.read.table.cells import text_of
from chinchilla_jax.scaling.report.facts import facts_of
from chinchilla_jax.scaling.report.sections import Facts, exponents


def fit_by(
    path: str | os.PathLike, column: str, reading: dict[str, Any], fits: Mapping[str, Any], echo: Echo
) -> dict[str, Facts]:
    """Fits the runs of each value of a column alone and prints the fits side by side; returns the facts by value.

    The facts are `{"refused": reason}` where the runs of a value cannot carry a fit. `path` and `reading` are for
    `load_runs`, `fits` for `analyse`.

    Raises:
      FitRefused: `where` (no such column, or too many values), or not one value can be fitted.
    """
    where = dict(reading["where"] or {})
    if column in where:
        why = "give one of them; a fit of some values apart is one --where at a time"
        raise FitRefused("where", f"--by={column} and --where={column}=...: {why}")
    by_value: dict[str, Facts] = {}
    rows, told, refusals = [], set[str](), []
    for value in values_of(path, column, where):
        row = {column: text_of(value), "runs": "0"}
        try:
            loaded = load_runs(path, **reading | {"where": where | {column: (value,)}})
            row["runs"] = str(len(loaded.role("isoflop")))
            # A line that describes the runs is printed once, not for every value.
            lines = [line for line in loaded.describe() if line not in told]
            lines += [f"left out: {bad.where}: {bad.reason}" for bad in loaded.bad]
            for line in (f"{column} = {value}: {row['runs']} runs", *(f"  {line}" for line in lines)):
                echo(line)
            told.update(loaded.describe())
            with telling_left_out(loaded):
                by_value[value] = facts_of(loaded, analyse(loaded.runs, **fits))
            rows.append(row | _cells(by_value[value]))
        except FitRefused as refused:
            refusals.append(refused)
            by_value[value] = {"refused": str(refused)}
            rows.append(row | {"E": "refused"})
    first = next(iter(by_value))
    if len(refusals) == len(by_value):
        raise FitRefused(refusals[0].reason, f"no value of {column} can be fitted; {first}: {refusals[0]}")
    echo(f"preset {fits['preset']}; intervals 95%; one fit for each value of {column}:")
    for line in (*table(rows), *_refusals(by_value)):
        echo(f"  {line}")
    echo(f"one of them whole: {shlex.quote(f'--where={column}={first}')} instead of --by={column}")
    return by_value


def _cells(facts: Facts) -> dict[str, str]:
    """The exponent a of each approach and the constants of approach 3, each with its 95% interval."""
    found = {
        f"a ({number})": exponents(facts, name).get("a") if facts[name] else None
        for number, name in enumerate(APPROACHES, 1)
    }
    fit = facts["parametric"]
    for name in ("E", "alpha", "beta"):
        found[name] = (fit["values"][name], fit["intervals"].get(name, {})) if fit and not fit["known"]["why"] else None
    cells = {}
    for name, pair in found.items():
        span = " ({:.3f} to {:.3f})".format(*pair[1]["95%"]) if pair and pair[1] else ""
        cells[name] = f"{pair[0]:.3f}{span}" if pair else "-"
    return cells


def _refusals(by_value: Mapping[str, Facts]) -> Iterator[str]:
    """What could not be fitted and why, once for all values with the same reason."""
    values: dict[str, list[str]] = {}
    for value, facts in by_value.items():
        refused = facts["refused"]
        if isinstance(refused, str):
            lines = [f"refused: {refused}"]
        else:
            lines = [f"{APPROACHES[name].split(':')[0]} refused: {why}" for name, why in refused.items()]
        for line in lines:
            values.setdefault(line, []).append(value)
    for line, names in values.items():
        yield f"{', '.join(names)}: {line}"
