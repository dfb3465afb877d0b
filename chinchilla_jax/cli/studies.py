"""The verbs that bring a whole study to its end: `study`, `methods`, `noise`, `tune`."""

from __future__ import annotations

import functools
import os
import pathlib
import sys
from types import ModuleType

from absl import flags

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.config_flag import read_config

STUDY = ("config", "study", "workers")
METHODS = ("config", "study", "workers", "dry_run")
NOISE = ("config", "study", "cells", "seeds", "rates", "workers", "dry_run")
TUNE = ("config", "study", "cells", "seeds", "rates", "inits", "temperatures", "workers", "dry_run")

echo = functools.partial(print, flush=True)


def folder(values: flags.FlagValues, flag: str) -> pathlib.Path:
    """The folder that a flag names. Raises UsageError if it is missing, or a file."""
    if not values[flag].value:
        raise UsageError(f"--{flag}=DIR is missing: the folder of the {'run' if flag == 'workdir' else 'study'}")
    named = files.path(values[flag].value)
    # In a bucket a file may have others below its name.
    for path in () if files.in_bucket(named) else (named, *named.parents):
        if files.is_file(path):
            raise UsageError(f"--{flag}={named}: {path} is a file; name a folder")
    return named


def study(values: flags.FlagValues) -> None:
    """Runs a whole study: data, plan, runs, prediction, held-out runs, report. Does only what is missing."""
    config, study = read_config(values), folder(values, "study")
    from chinchilla_jax.study.pipeline import run_study

    run_study(config, study, values.workers, echo)


def methods(values: flags.FlagValues) -> None:
    """Compares ways to train at equal compute: data, plan, runs, report. Does only what is missing.

    The ways are those of study.methods; `plain` is trained at budgets around that of the comparison as well, so that a
    difference can be told as compute. Without --config the study is the one planned in --study. --dry_run prints the
    plan and its cost.
    """
    from chinchilla_jax.parallel.job.cores import default_workers
    from chinchilla_jax.study.beside.comparison import compare_methods, plan_comparison
    from chinchilla_jax.study.folder import MANIFEST, read_manifest
    from chinchilla_jax.study.plan import describe

    planned = "config" not in values and values.study
    config = read_manifest(folder(values, "study") / MANIFEST).template() if planned else read_config(values)
    if values.dry_run:
        describe(plan_comparison(config), values.workers or default_workers(config), echo)
        return
    compare_methods(config, folder(values, "study"), values.workers, echo)


def noise(values: flags.FlagValues) -> None:
    """Trains a few cells of a study with several seeds and learning rates: how far do single runs differ?

    --cells names runs of the plan, or BUDGET:nearest for the size nearest the guessed optimum; by default that of the
    smallest, middle and largest budget. What the study has trained is used, its plan is left alone, and no fit takes
    the other runs. Without --config the study is the one planned in --study. --dry_run prints the plan and its cost.
    """
    from chinchilla_jax.study.beside.noise import measure

    config = read_config(values) if "config" in values else None
    study = folder(values, "study") if values.study or config is None or not values.dry_run else None
    seeds, rates = values.seeds or 6, values.rates or "0.7,1,1.4"
    measure(config, study, values.cells, seeds, rates, values.workers, echo, values.dry_run)


def tune(values: flags.FlagValues) -> None:
    """Trains a narrow proxy at a grid of learning rates, initial deviations and temperatures: which recipe is best?

    All three are factors on what study.recipe says; prints every setting, and the recipe of the best to paste. --cells,
    --study and --dry_run as of `noise`; the proxy is by default the size nearest the guessed optimum of the smallest
    budget. By muP, as `mup lr = 0.004, base = 64`, what is best for the proxy is so for wider models.
    """
    from chinchilla_jax.study.beside import grid

    config = read_config(values) if "config" in values else None
    study = folder(values, "study") if values.study or config is None or not values.dry_run else None
    factors = values.rates or grid.RATES, values.inits, values.temperatures
    grid.tune(config, study, values.cells, values.seeds or 1, *factors, values.workers, echo, values.dry_run)


def preflight_verb() -> ModuleType:
    """The module, imported so that JAX stays on the CPU: chips are only described, a TPU of this machine left alone."""
    if "jax" not in sys.modules:
        os.environ["JAX_PLATFORMS"] = "cpu"
    from chinchilla_jax.preflight import verb

    return verb
