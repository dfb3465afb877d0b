"""The verbs that ask runs: `fit`, `predict`, `report`, `forecast`. Which runs, read how, and asked what?"""

from __future__ import annotations

import contextlib
import functools
import pathlib
import shlex
from typing import TYPE_CHECKING, Any

from absl import flags

from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.base.files import write_json

if TYPE_CHECKING:
    from chinchilla_jax.scaling.read.runs import LoadedRuns

_INPUT = ("study", "runs", "columns", "curves", "where", "by", "best_per_cell")
_HOW = ("preset", "replicates", "seed", "output")
_BUDGET = ("budget", "chip", "chips", "days", "utilisation")
_OPTIMUM = ("params", "tokens", "unique_tokens", "inference_tokens", "inputs", "more_runs")
FIT = (*_INPUT, *_HOW, "variants", "explain")
PREDICT = (*_INPUT, "law", *_BUDGET, *_OPTIMUM, *_HOW, "verify")
REPORT = (*_INPUT, *_BUDGET, *_HOW)
FORECAST = ("study", "workdir", "runs", "columns", "curves", "where", "output")

echo = functools.partial(print, flush=True)


def fit(values: flags.FlagValues) -> None:
    """Fits all three approaches to finished runs; --preset=paper does it as Hoffmann et al. 2022 did.

    --variants adds the answer under other curves, misfits and tied exponents; --explain what the preset does, and why.
    """
    facts = _fit_each(values) if values.by else _fit_all(values)
    if values.output:
        write_json(values.output, facts)
        echo(f"written: {values.output}")


def _fit_all(values: flags.FlagValues) -> dict[str, Any]:
    from chinchilla_jax.scaling.predict.analysis import analyse
    from chinchilla_jax.scaling.read.runs import telling_left_out
    from chinchilla_jax.scaling.report import sections
    from chinchilla_jax.scaling.report.facts import facts_of

    loaded = _load(values)
    sections.announce(loaded, values.preset, echo)
    with telling_left_out(loaded):
        fits = analyse(loaded.runs, **_fits(values))
    facts = facts_of(loaded, fits)
    sections.tell(sections.of_fit(facts, values.explain), echo)
    if values.variants:
        from chinchilla_jax.scaling.fits.variants import compare_variants

        facts["variants"] = list(compare_variants(loaded.runs))
        sections.tell([sections.variants(facts)], echo)
    return facts


def _fit_each(values: flags.FlagValues) -> dict[str, Any]:
    """Prints the fits of each value of the column --by side by side; returns the facts of each."""
    from chinchilla_jax.scaling.report.by import fit_by

    if values.variants:
        raise UsageError(f"--by and --variants: look at the variants of one value, --where={values.by}=VALUE")
    path, reading = _reading(values)
    return {"by": values.by, "fits": fit_by(path, values.by, reading, _fits(values), echo)}


def predict(values: flags.FlagValues) -> None:
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

    if values.verify and (not values.study or values.runs or values.law or _budget(values)):
        raise UsageError("predict --verify plans a study's held-out runs: give --study=DIR and no budget or law")
    loaded = _load(values) if values.study or values.runs else None
    budget, inputs = _budget(values), _inputs(values.inputs)
    question = Question(budget, **{name: values[name].value for name in _OPTIMUM} | {"inputs": inputs})
    names = [name.strip() for name in (values.law or "").split(",") if name.strip()]
    with telling_left_out(loaded) if loaded is not None else contextlib.nullcontext():
        prediction = ask(loaded, names, question, _fits(values), values.output, echo)
    if values.verify and prediction is not None:
        from chinchilla_jax.parallel.job.cores import default_workers
        from chinchilla_jax.study.plan import describe, verification

        planned = verification(pathlib.Path(values.study), prediction.best.params)
        describe(planned, default_workers(planned.template()), echo)


def report(values: flags.FlagValues) -> None:
    """Writes report.html, report.json and plots of a study, or of a table of runs beside it."""
    from chinchilla_jax.scaling.report.report import write_report

    present = {name: values[name].value for name in REPORT if values[name].present}
    lists = {name: value if isinstance(value, list) else [value] for name, value in present.items()}
    words = [f"--{name}={one}" for name, values_given in lists.items() for one in values_given]
    command = f"python -m chinchilla_jax report {shlex.join(words)}"
    loaded, budget = _load(values), _budget(values)
    path = write_report(loaded, budget=budget, output=values.output, **_fits(values), command=command)
    echo(f"report: {path}")


def forecast(values: flags.FlagValues) -> None:
    """Says where runs under way will end, each with an interval that narrows, and marks those that go wrong.

    Of a study, every run that has written metrics and no result, or those named: --workdir=RUN,RUN. Of a table
    (--runs, with --curves=TABLE), rows whose state is running; where no column tells states, rows without a loss, and
    runs whose curve stops before their D. D is what they will train on. Nothing is trained, or asked of the workers.
    """
    from chinchilla_jax.scaling.report.forecasts import tell_forecasts

    path, reading = _reading(values)
    if values.workdir and not values.study:
        raise UsageError("--workdir=RUN names runs of a study: give --study=DIR with it")
    names = [pathlib.PurePath(name.strip()).name for name in (values.workdir or "").split(",") if name.strip()]
    tell_forecasts(path, names, reading, values.output, echo)


def _load(values: flags.FlagValues) -> LoadedRuns:
    """The runs of --study or --runs, read as --columns, --curves, --where and --best_per_cell say."""
    from chinchilla_jax.scaling.read.load import load_runs

    if values.by:
        raise UsageError(f"--by goes with fit; here ask about one value at a time: --where={values.by}=VALUE")
    path, reading = _reading(values)
    return load_runs(path, **reading)


def _reading(values: flags.FlagValues) -> tuple[str, dict[str, Any]]:
    """(Where the runs are, how `load_runs` is to read them)."""
    from chinchilla_jax.scaling.read.table.columns import parse_columns
    from chinchilla_jax.scaling.read.table.select import parse_where

    if bool(values.study) == bool(values.runs):
        raise UsageError("give either --study=DIR or --runs=PATH")
    reading = {"columns": parse_columns(values.columns or ""), "where": parse_where(values.where or ())}
    best = "best_per_cell" in values and values.best_per_cell
    return values.study or values.runs, reading | {"curves": values.curves, "best_per_cell": best}


def _fits(values: flags.FlagValues) -> dict[str, Any]:
    """How the fits are made, as `analyse` takes it."""
    return {"preset": values.preset, "replicates": values.replicates, "seed": values.seed}


def _budget(values: flags.FlagValues) -> float | None:
    """FLOPs of --budget, or of --chip, --chips, --days and --utilisation; None if none of them is given."""
    parts = {name: values[name].value for name in ("chip", "chips", "days")}
    if not any(parts.values()):
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


def _inputs(text: str | None) -> dict[str, float]:
    """`granularity:8,sparsity:0.9` as a mapping."""
    inputs = {}
    for part in filter(None, (text or "").split(",")):
        name, _, value = part.partition(":")
        try:
            inputs[name.strip()] = float(value)
        except ValueError:
            raise UsageError(f"--inputs={text}: {part!r} should read NAME:VALUE, e.g. granularity:8") from None
    return inputs
