"""Which losses does a study or a table have besides the one that is read as its loss?

Of a study: each domain of its mixture (`validation_loss/DOMAIN` in the results) and bits per byte. Of a table: every
column that can be a loss. Each is a set of runs of its own, alike but for the loss; the macro average of those in one
unit is one more, computed run by run, so that what their noise shares stays in it.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns, Run
from chinchilla_jax.scaling.read.table.cells import holds_numbers
from chinchilla_jax.scaling.read.table.formats import read_table
from chinchilla_jax.scaling.read.table.headers import HEADERS, loss_rank, readings, split_words, understand
from chinchilla_jax.scaling.read.table.select import select

MACRO = "macro average"
_DOMAIN = "validation_loss/"
_OF_LOSS = ("loss", "perplexity", "loss_bits", "bits_per_byte")
_TRAINING = 2  # rank of a training loss


def load_losses(
    path: str | os.PathLike, names: Sequence[str] = (), reading: Mapping[str, Any] | None = None
) -> dict[str, LoadedRuns]:
    """By name, the runs with each of their losses; by default all of them. With two or more in one unit, `MACRO` too.

    `reading` are options of `load_runs`. Raises FitRefused: `columns` (no such loss, or only one), or as `load_runs`.
    """
    path, reading = files.path(path), dict(reading or {})
    if files.is_folder(path):
        losses = domains_of(load_runs(path, **reading), names)
    else:
        columns = dict(reading.pop("columns", None) or {})
        columns.pop("loss", None)
        chosen = list(names) or _columns(path, reading.get("where") or {})
        losses = {name: load_runs(path, columns=columns | {"loss": name}, **reading) for name in chosen}
        losses |= _macro(losses)
    if len(losses) < 2:
        there = ", ".join(losses) or "none"
        raise FitRefused("columns", f"{path}: {there} is the only loss; name others with --losses=COLUMN,COLUMN")
    return losses


def domains_of(loaded: LoadedRuns, names: Sequence[str] = ()) -> dict[str, LoadedRuns]:
    """The runs of a study with the loss of each domain of its validation data, bits per byte of all, and `MACRO`."""
    values = {run.name: _validation(loaded.details.get(run.name, {})) for run in loaded.runs}
    every = list(dict.fromkeys(name for of_run in values.values() for name in of_run))
    for name in names:
        if name not in every:
            raise FitRefused("columns", f"{loaded.source}: no loss {name!r}; there are {', '.join(every) or 'none'}")
    losses = {}
    for name in names or every:
        runs = tuple(
            dataclasses.replace(run, loss=values[run.name][name], curve=None)
            for run in loaded.runs
            if name in values[run.name]
        )
        unit = "bits per byte, on held-out text" if name == "bits_per_byte" else loaded.loss_unit
        losses[name] = dataclasses.replace(loaded, runs=runs, loss_unit=unit)
    return losses | _macro(losses)


def _validation(details: Mapping[str, Any]) -> dict[str, float]:
    """A run's losses by domain, and its bits per byte."""
    validation = details.get("validation")
    values = validation if isinstance(validation, dict) else {}
    domains = {key.removeprefix(_DOMAIN): value for key, value in values.items() if key.startswith(_DOMAIN)}
    domains |= {"bits_per_byte": values.get("bits_per_byte", details.get("bits_per_byte"))}
    return {key: float(value) for key, value in domains.items() if isinstance(value, (int, float)) and value > 0}


def _columns(path: pathlib.Path, where: Mapping[str, Sequence[str]]) -> list[str]:
    """The columns of a table that can be a loss, but those of training."""
    table = select(read_table(path), where)
    return [name for name in table.present if _is_loss(name) and holds_numbers(table.cells(name))]


def _is_loss(name: str) -> bool:
    listed = any(understand(kind, header)[0] in HEADERS[kind] for kind in _OF_LOSS for header in readings(name))
    rank = loss_rank(name)
    of_corpus = any(loss_rank(_before(name, words)) == 0 for words in (1, 2))  # val_loss_code
    return (listed or of_corpus or rank is not None) and rank != _TRAINING


def _before(header: str, count: int) -> str:
    """The header without its last words."""
    return "_".join(split_words(header)[:-count])


def _macro(losses: Mapping[str, LoadedRuns]) -> dict[str, LoadedRuns]:
    """The mean over the losses in the unit that most of them have, of the runs that have them all; {} without two."""
    units: dict[str, list[str]] = {}
    for name, loaded in losses.items():
        units.setdefault(loaded.loss_unit.split(":")[0], []).append(name)
    names = max(units.values(), key=len, default=[])
    if len(names) < 2:
        return {}
    first = losses[names[0]]
    by_place = [{_place(run, i): run.loss for i, run in enumerate(losses[name].runs)} for name in names]
    runs = tuple(
        dataclasses.replace(run, loss=sum(values[_place(run, i)] for values in by_place) / len(names), curve=None)
        for i, run in enumerate(first.runs)
        if all(_place(run, i) in values for values in by_place)
    )
    note = f"the macro average is the mean of {', '.join(names)}, run by run"
    return {MACRO: dataclasses.replace(first, runs=runs, notes=(*first.notes, note))}


def _place(run: Run, number: int) -> tuple[str, float, float, str]:
    return run.name, run.params, run.tokens, run.seed
