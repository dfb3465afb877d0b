"""Which runs, and how many FLOPs, do the flags of a verb name? What `predict`, `fit` and their like read off them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from absl import flags

from chinchilla_jax.base.errors import UsageError

if TYPE_CHECKING:
    from chinchilla_jax.scaling.predict.analysis import Analysis
    from chinchilla_jax.scaling.read.runs import LoadedRuns

INPUT = ("study", "runs", "columns", "curves", "where", "by", "best_per_cell")
BUDGET = ("budget", "chip", "chips", "days", "utilisation")

echo = functools.partial(print, flush=True)


def load_fitted(values: flags.FlagValues) -> tuple[LoadedRuns, Analysis | dict[str, Any]]:
    """The runs, and the fits of --fit or how to make them."""
    if not values.fit:
        return load(values), fits(values) if "preset" in values else {}
    from chinchilla_jax.scaling.predict.saved import load_fit

    for flag in (*INPUT, "preset", "replicates", "seed"):
        if flag in values and values[flag].present:
            raise UsageError(f"--fit={values.fit} holds runs and fits as they were made: --{flag} goes with `fit`")
    saved = load_fit(values.fit)
    return saved.loaded, saved.fits


def load(values: flags.FlagValues) -> LoadedRuns:
    """The runs of --study or --runs, read as --columns, --curves, --where and --best_per_cell say."""
    from chinchilla_jax.scaling.read.load import load_runs

    if values.by:
        raise UsageError(f"--by goes with fit; here ask about one value at a time: --where={values.by}=VALUE")
    path, how = reading(values)
    return load_runs(path, **how)


def reading(values: flags.FlagValues) -> tuple[str, dict[str, Any]]:
    """(Where the runs are, how `load_runs` is to read them)."""
    if bool(values.study) == bool(values.runs):
        raise UsageError("give either --study=DIR or --runs=PATH")
    return values.study or values.runs, how_to_read(values) | {"curves": values.curves}


def how_to_read(values: flags.FlagValues) -> dict[str, Any]:
    """What --columns, --where and --best_per_cell say, as options of `load_runs`."""
    from chinchilla_jax.scaling.read.table.columns import parse_columns
    from chinchilla_jax.scaling.read.table.select import parse_where

    how = {"columns": parse_columns(values.columns or ""), "where": parse_where(values.where or ())}
    return how | {"best_per_cell": "best_per_cell" in values and values.best_per_cell}


def fits(values: flags.FlagValues) -> dict[str, Any]:
    """How the fits are made, as `analyse` takes it."""
    return {"preset": values.preset, "replicates": values.replicates, "seed": values.seed}


def budget(values: flags.FlagValues) -> float | None:
    """FLOPs of --budget, or of --chip, --chips, --days and --utilisation; None if none of them is given."""
    parts = {name: values[name].value for name in ("chip", "chips", "days")}
    serves = "experts" in values and values.experts and not (parts["chips"] or parts["days"])
    if serves or not any(parts.values()):
        return values.budget
    if values.budget:
        raise UsageError("give either --budget or --chip, --chips and --days")
    missing = [f"--{name}" for name, value in parts.items() if not value]
    if missing:
        raise UsageError(f"{', '.join(missing)} is missing: a budget in chip-days is --chip=v4 --chips=1024 --days=30")
    from chinchilla_jax.base.chips import chip_days

    flops = chip_days(**parts, utilisation=values.utilisation)
    chips = f"{parts['chips']:g} {parts['chip']} chips for {parts['days']:g} days"
    echo(f"{chips} at {values.utilisation:.0%} of their peak: C = {flops:.4g} FLOPs")
    return flops


def pairs(flag: str, text: str | None, example: str) -> dict[str, float]:
    """`granularity:8,sparsity:0.9` as a mapping."""
    read = {}
    for part in filter(None, (text or "").split(",")):
        name, _, value = part.partition(":")
        try:
            read[name.strip()] = float(value)
        except ValueError:
            raise UsageError(f"--{flag}={text}: {part!r} should read NAME:VALUE, e.g. {example}") from None
    return read


def numbers(flag: str, text: str, between: str, kind: type, count: int | None = None) -> list[Any]:
    """`1,4,8` as numbers; as many as `count`, where that is given."""
    try:
        read = [kind(part) for part in text.split(between)]
    except ValueError:
        read = []
    if not read or (count is not None and len(read) != count):
        many = "" if count is None else f"{count} "
        raise UsageError(f"--{flag}={text}: expected {many}numbers, with {between!r} between them")
    return read
