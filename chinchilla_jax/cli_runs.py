"""The verbs that ask finished runs: `fit`, `predict`, `report`. Which runs, read how, and asked what?"""

from __future__ import annotations

import contextlib
import pathlib
import shlex
from typing import TYPE_CHECKING, Any

from absl import flags

from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.cli_flags import budget, parse_inputs
from chinchilla_jax.parallel.job import cores

if TYPE_CHECKING:
    from chinchilla_jax.scaling.read.runs import LoadedRuns


_INPUT = ("study", "runs", "columns", "curves", "where", "by", "best_per_cell")
_HOW = ("preset", "replicates", "seed", "output")
_BUDGET = ("budget", "chip", "chips", "days", "utilisation")
_OPTIMUM = ("params", "tokens", "unique_tokens", "inference_tokens", "inputs", "more_runs")
FIT = (*_INPUT, *_HOW, "variants", "explain")
PREDICT = (*_INPUT, "law", *_BUDGET, *_OPTIMUM, *_HOW, "verify")
REPORT = (*_INPUT, *_BUDGET, *_HOW)


def _echo(line: str) -> None:
    print(line, flush=True)


def fit(values: flags.FlagValues) -> int:
    """Fits all three approaches to finished runs; --preset=paper does it as Hoffmann et al. 2022 did.

    --variants adds the answer under other curves, misfits and tied exponents; --explain what the preset does, and why.
    """
    facts = _fit_each(values) if values.by else _fit_all(values)
    if values.output:
        from chinchilla_jax.base.files import write_json

        write_json(pathlib.Path(values.output), facts)
        _echo(f"written: {values.output}")
    return 0


def _fit_all(values: flags.FlagValues) -> dict[str, Any]:
    """Fits all runs and prints it; returns the facts."""
    from chinchilla_jax.scaling.predict.analysis import analyse
    from chinchilla_jax.scaling.read.runs import telling_left_out
    from chinchilla_jax.scaling.report import sections
    from chinchilla_jax.scaling.report.facts import facts_of
    from chinchilla_jax.scaling.report.text import announce, tell

    loaded = _load(values)
    announce(loaded, values.preset, _echo)
    with telling_left_out(loaded):
        fits = analyse(loaded.runs, **_fits(values))
    facts = facts_of(loaded, fits)
    tell(sections.of_fit(facts, values.explain), _echo)
    if values.variants:
        from chinchilla_jax.scaling.fits.variants import compare_variants

        facts["variants"] = list(compare_variants(loaded.runs))
        tell(sections.variants(facts), _echo)
    return facts


def _fits(values: flags.FlagValues) -> dict[str, Any]:
    """How the fits are made, as `analyse` takes it."""
    return {"preset": values.preset, "replicates": values.replicates, "seed": values.seed}


def predict(values: flags.FlagValues) -> int:
    """Says what to train: from finished runs (--study, --runs), from published laws (--law), or from both.

    The budget is --budget FLOPs, or --chips chips of kind --chip for --days at --utilisation; with runs, by default a
    study's held-out budget or four times the largest there is. --params or --tokens fixes N or D; asked of laws alone,
    without a budget, they give the one that suits them.

    Of a table that mixes settings, --where=COLUMN=VALUE takes one of them; `fit --by=COLUMN` compares them.
    With --verify it also plans the runs that check the prediction: the predicted size, half and double, at the held-out
    budget. `work --manifest=verification.jsonl` trains them.
    """
    from chinchilla_jax.scaling.read.runs import telling_left_out
    from chinchilla_jax.scaling.report.ask import Question, ask

    if values.verify and (values.runs or values.law or budget(values, _echo)):
        raise UsageError("predict --verify plans a study's held-out runs: give --study=DIR and no budget or law")
    loaded = _load(values) if values.study or values.runs else None
    question = Question(
        budget(values, _echo),
        values.params,
        values.tokens,
        values.unique_tokens,
        values.inference_tokens,
        values.more_runs,
        parse_inputs(values.inputs),
    )
    names = [name.strip() for name in (values.law or "").split(",") if name.strip()]
    with telling_left_out(loaded) if loaded is not None else contextlib.nullcontext():
        prediction = ask(loaded, names, question, _fits(values), values.output, _echo)
    if values.verify:
        from chinchilla_jax.study.cost import describe
        from chinchilla_jax.study.plan import verification

        planned = verification(loaded, prediction.best.params)
        describe(planned, cores.default_workers(planned.template()), _echo)
    return 0


def report(values: flags.FlagValues) -> int:
    """Writes report.html, report.json and plots of a study, or of a table of runs beside it."""
    from chinchilla_jax.scaling.report.report import write_report

    present = {name: values[name].value for name in REPORT if values[name].present}
    lists = {name: value if isinstance(value, list) else [value] for name, value in present.items()}
    words = [f"--{name}={one}" for name, values_given in lists.items() for one in values_given]
    path = write_report(
        _load(values),
        budget=budget(values, _echo),
        output=values.output,
        **_fits(values),
        command=f"python -m chinchilla_jax report {shlex.join(words)}",
    )
    _echo(f"report: {path}")
    return 0


def _load(values: flags.FlagValues) -> LoadedRuns:
    """The runs of --study or --runs, read as --columns, --curves, --where and --best_per_cell say.

    Raises:
      UsageError: not one source, or --by, which only `fit` takes.
      FitRefused: see `load_runs`.
    """
    from chinchilla_jax.scaling.read.load import load_runs

    if values.by:
        raise UsageError(f"--by goes with fit; here ask about one value at a time: --where={values.by}=VALUE")
    path, reading = _reading(values)
    return load_runs(path, **reading)


def _fit_each(values: flags.FlagValues) -> dict[str, Any]:
    """Prints the fits of each value of the column --by side by side; returns the facts of each.

    Raises:
      UsageError: not one source, or --variants.
      FitRefused: see `fit_by`.
    """
    from chinchilla_jax.scaling.report.by import fit_by

    if values.variants:
        raise UsageError(f"--by and --variants: look at the variants of one value, --where={values.by}=VALUE")
    path, reading = _reading(values)
    return {"by": values.by, "fits": fit_by(path, values.by, reading, _fits(values), _echo)}


def _reading(values: flags.FlagValues) -> tuple[str, dict[str, Any]]:
    """(where the runs are, how `load_runs` is to read them)."""
    from chinchilla_jax.scaling.read.table.columns import parse_columns
    from chinchilla_jax.scaling.read.table.select import parse_where

    if bool(values.study) == bool(values.runs):
        raise UsageError("give either --study=DIR or --runs=PATH")
    return values.study or values.runs, {
        "columns": parse_columns(values.columns or ""),
        "curves": values.curves,
        "where": parse_where(values.where or ()),
        "best_per_cell": values.best_per_cell,
    }
