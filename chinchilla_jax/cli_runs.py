"""Which finished runs do the flags name, and how are they to be read?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from absl import flags

from chinchilla_jax.config_flag import UsageError

if TYPE_CHECKING:
    from chinchilla_jax.scaling.runs import LoadedRuns


def load(values: flags.FlagValues) -> LoadedRuns:
    """The runs of --study or --runs, read as --columns, --curves, --where and --best_per_cell say.

    Raises:
      UsageError: not one source, or --by, which only `fit` takes.
      FitRefused: see `load_runs`.
    """
    from chinchilla_jax.scaling.runs import load_runs

    if values.by:
        raise UsageError(f"--by goes with fit; here ask about one value at a time: --where={values.by}=VALUE")
    path, reading = _reading(values)
    return load_runs(path, **reading)


def fit_each(values: flags.FlagValues, echo: Callable[[str], None]) -> dict[str, Any]:
    """Prints the fits of each value of the column --by side by side; returns them for JSON.

    Raises:
      UsageError: not one source, or --variants.
      FitRefused: see `fit_by`.
    """
    from chinchilla_jax.scaling.by import facts, fit_by

    if values.variants:
        raise UsageError(f"--by and --variants: look at the variants of one value, --where={values.by}=VALUE")
    path, reading = _reading(values)
    fits = {"preset": values.preset, "replicates": values.replicates, "seed": values.seed}
    return {"by": values.by, "fits": facts(fit_by(path, values.by, **reading, **fits, echo=echo))}


def _reading(values: flags.FlagValues) -> tuple[str, dict[str, Any]]:
    """(where the runs are, how `load_runs` is to read them)."""
    from chinchilla_jax.scaling.columns import parse_columns
    from chinchilla_jax.scaling.select import parse_where

    if bool(values.study) == bool(values.runs):
        raise UsageError("give either --study=DIR or --runs=PATH")
    return values.study or values.runs, {
        "columns": parse_columns(values.columns or ""),
        "curves": values.curves,
        "where": parse_where(values.where or ()),
        "best_per_cell": values.best_per_cell,
    }
