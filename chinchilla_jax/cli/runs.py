"""The verbs that ask runs: `fit`, `predict`, `suggest`, `compare`, `forecast`, ... Which runs, read how, asked what?"""

from __future__ import annotations

import contextlib
import pathlib
import shlex
from typing import TYPE_CHECKING, Any

from absl import flags

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.base.files import write_json
from chinchilla_jax.cli import read
from chinchilla_jax.config_flag import read_config

if TYPE_CHECKING:
    from chinchilla_jax.scaling.predict.predict import Prediction
    from chinchilla_jax.scaling.read.runs import LoadedRuns

_HOW = ("preset", "replicates", "seed", "output")
_OPTIMUM = ("params", "tokens", "unique_tokens", "inference_tokens", "inputs")
FIT = (*read.INPUT, *_HOW, "variants", "explain", "save", "losses", "errors")
_SERVED = ("experts", "serve", "throughput", "price", "reference")
PREDICT = (
    *("config", *read.INPUT, "fit", "law", "across", *read.BUDGET, *_OPTIMUM, *_SERVED, *_HOW),
    *("register", "verify"),
)
SUGGEST = (*read.INPUT, "fit", *read.BUDGET, "purse", "number", "quantity", "output")
REPORT = (*read.INPUT, "fit", *read.BUDGET, *_HOW)
COMPARE = (
    "runs",
    "columns",
    "where",
    "by",
    "best_per_cell",
    "reference",
    *read.BUDGET,
    "replicates",
    "seed",
    "output",
)
FORECAST = ("study", "runs", "columns", "curves", "where", "output")

echo = read.echo


def fit(values: flags.FlagValues) -> None:
    """Fits all three approaches to finished runs; --preset=paper does it as Hoffmann et al. 2022 did.

    --variants adds the answer under other curves, misfits, tied exponents and newer forms of the surface; --explain
    what the preset does, and why.
    --losses=all fits every loss of a table, or every domain of a study's mixture, and their macro average, instead, and
    --errors=COLUMN the downstream error that goes with the loss, at the budget that `predict` would ask about;
    --errors=tasks is that of every task that `evaluate` has asked the runs, and their mean.
    """
    if values.losses or values.errors:
        facts = _fit_losses(values)
    else:
        facts = _fit_each(values) if values.by else _fit_all(values)
    if values.output:
        write_json(values.output, facts)
        echo(f"written: {values.output}")


def _fit_all(values: flags.FlagValues) -> dict[str, Any]:
    from chinchilla_jax.scaling.predict.analysis import analyse
    from chinchilla_jax.scaling.read.runs import telling_left_out
    from chinchilla_jax.scaling.report import sections, text
    from chinchilla_jax.scaling.report.facts import facts_of

    loaded = read.load(values)
    text.announce(loaded, values.preset, echo)
    with telling_left_out(loaded):
        fits = analyse(loaded.runs, **read.fits(values))
    if values.save:
        from chinchilla_jax.scaling.predict.saved import SavedFit, save_fit

        save_fit(values.save, SavedFit(loaded, fits))
        echo(f"saved: {values.save}")
    facts = facts_of(loaded, fits)
    text.tell(sections.of_fit(facts, values.explain), echo)
    if values.variants:
        from chinchilla_jax.scaling.fits.variants import compare_variants
        from chinchilla_jax.scaling.laws.coupled import compare_forms

        facts["variants"] = [*compare_variants(loaded.runs), *compare_forms(loaded.runs)]
        text.tell([sections.variants(facts)], echo)
    return facts


def _fit_losses(values: flags.FlagValues) -> dict[str, Any]:
    """Prints what each of several losses, and downstream errors, reach at the target."""
    from chinchilla_jax.scaling.answers import losses
    from chinchilla_jax.scaling.answers.downstream import downstream
    from chinchilla_jax.scaling.read.losses import load_losses
    from chinchilla_jax.scaling.read.runs import FitRefused, target_budget
    from chinchilla_jax.scaling.read.tasks import errors_of
    from chinchilla_jax.scaling.report import sections, text
    from chinchilla_jax.scaling.report.facts import facts_of

    for flag in ("by", "variants", "save", "explain"):
        if values[flag].value:
            raise UsageError(f"--{flag} fits one loss: leave --losses and --errors out")
    path, reading = read.reading(values)
    loaded = read.load(values)
    names = [] if values.losses in (None, "all") else [name.strip() for name in values.losses.split(",")]
    every = load_losses(path, names, reading) if values.losses else {}
    budget = target_budget(loaded)
    if budget is None:
        raise FitRefused("no_runs", f"{loaded.source}: no IsoFLOP run is finished yet: there is nothing to fit")
    text.announce(loaded, "corrected", echo)
    answers = []
    if every:
        answers.append(losses.answer(losses.fit_losses(every, budget, values.seed), budget))
    if values.errors:
        predicted = losses.fit_losses({"loss": loaded}, budget, values.seed)[0]
        columns = [name.strip() for name in values.errors.split(",")]
        answers.append(downstream(loaded, errors_of(loaded, columns), predicted, values.seed))
    facts = facts_of(loaded, answers=answers, target_budget=budget)
    text.tell([sections.answer_section(answer) for answer in facts["answers"]], echo)
    return facts


def _fit_each(values: flags.FlagValues) -> dict[str, Any]:
    """Prints the fits of each value of the column --by side by side; returns the facts of each."""
    from chinchilla_jax.scaling.report.by import fit_by

    for flag in ("variants", "save"):
        if values[flag].value:
            raise UsageError(f"--by and --{flag}: take one value at a time, --where={values.by}=VALUE")
    path, reading = read.reading(values)
    return {"by": values.by, "fits": fit_by(path, values.by, reading, read.fits(values), echo)}


def predict(values: flags.FlagValues) -> None:
    """Says what to train: from finished runs (--study, --runs), from published laws (--law), or from both.

    The budget is --budget FLOPs, or --chips chips of kind --chip for --days at --utilisation; with runs, by default a
    study's held-out budget or four times the largest there is. --params or --tokens fixes N or D; asked of laws alone,
    without a budget, they give the one that suits them.

    Of a table that mixes settings, --where=COLUMN=VALUE takes one of them; `fit --by=COLUMN` compares them.
    With --verify it also plans the runs that check the prediction: the predicted size, half and double, at the held-out
    budget. `work --manifest=verification.jsonl` trains them.
    With --register=FILE the prediction is put on record for one run: that of --config, else of --params or of the
    predicted size, at the budget. The verb `verify` judges the run when it is finished.
    With --experts=1,4,8, --serve=prompt:TOKENS,output:TOKENS and --chip=NAME it says how many experts are best when the
    mixture is also served: of a law fitted to runs with a column experts, or stated as --law=FILE.json.
    With --across=width it says what a wide model will lose that is trained on as many tokens as narrower ones, by a
    recipe that suits every width (muP): one of --params, by default the largest there is, from those that are smaller.
    """
    if values.across:
        return _predict_across(values)
    from chinchilla_jax.scaling.read.runs import telling_left_out
    from chinchilla_jax.scaling.report.ask import Question, ask

    if values.experts:
        return _predict_served(values)
    _check_predict(values)
    loaded, fits = read.load_fitted(values) if values.study or values.runs or values.fit else (None, read.fits(values))
    budget, inputs = read.budget(values), read.pairs("inputs", values.inputs, "granularity:8")
    question = Question(budget, **{name: values[name].value for name in _OPTIMUM} | {"inputs": inputs})
    names = [name.strip() for name in (values.law or "").split(",") if name.strip()]
    with telling_left_out(loaded) if loaded is not None else contextlib.nullcontext():
        prediction = ask(loaded, names, question, fits, values.output, echo)
    if values.register:
        _register(values, prediction, loaded)
    if values.verify and prediction is not None and loaded is not None:
        _plan_held_out(files.path(values.study), prediction, loaded)


def _check_predict(values: flags.FlagValues) -> None:
    for flag in _SERVED:
        if values[flag].present:
            raise UsageError(f"--{flag} goes with --experts=1,4,8: how many, when the mixture is also served")
    if values.verify and (not values.study or values.runs or values.law or read.budget(values)):
        raise UsageError("predict --verify plans a study's held-out runs: give --study=DIR and no budget or law")


def _plan_held_out(study: pathlib.Path, prediction: Prediction, loaded: LoadedRuns) -> None:
    """Plans the runs that check a prediction, and puts it on record for them."""
    from chinchilla_jax.parallel.job.cores import default_workers
    from chinchilla_jax.study.plan import describe, verification
    from chinchilla_jax.study.records import put_on_record

    planned = verification(study, prediction.best.params)
    put_on_record(study, prediction, loaded, planned.runs)
    describe(planned, default_workers(planned.template()), echo)


def _predict_served(values: flags.FlagValues) -> None:
    """Answers --experts, from the runs of --study or --runs or from the law of --law."""
    from chinchilla_jax.scaling.read.runs import telling_left_out
    from chinchilla_jax.scaling.report.served import Request, ask_experts

    for flag in (*_OPTIMUM, "fit", "register", "verify", "preset", "best_per_cell"):
        if values[flag].present:
            raise UsageError(f"--experts is a question of its own: leave --{flag} out")
    if "config" in values:
        raise UsageError("--experts is a question of its own: leave --config out")
    runs = bool(values.study or values.runs)
    if runs == bool(values.law) or "," in (values.law or ""):
        raise UsageError("--experts asks one law: that of --study=DIR or --runs=PATH, or --law=FILE.json")
    request = Request(
        flops=read.budget(values),
        experts=tuple(read.numbers("experts", values.experts, ",", int)),
        chip=values.chip,
        serve=read.pairs("serve", values.serve, "prompt:512"),
        reference=int(read.numbers("reference", values.reference, ",", int)[0]) if values.reference else None,
        price=values.price,
        throughput=tuple(read.numbers("throughput", values.throughput, ":", float, 3)) if values.throughput else None,
    )
    options = values.replicates, values.seed, values.output, echo
    if not runs:
        ask_experts(values.law, request, *options)
        return
    loaded = read.load(values)
    with telling_left_out(loaded):
        ask_experts(loaded, request, *options)


def _predict_across(values: flags.FlagValues) -> None:
    from chinchilla_jax.scaling.answers.widths import across_widths
    from chinchilla_jax.scaling.read.runs import telling_left_out
    from chinchilla_jax.scaling.report import sections, text
    from chinchilla_jax.scaling.report.facts import facts_of

    taken = (
        "across",
        "study",
        "runs",
        "columns",
        "curves",
        "where",
        "best_per_cell",
        "params",
        "tokens",
        "seed",
        "output",
    )
    for flag in PREDICT:
        if flag not in taken and flag in values and values[flag].present:
            raise UsageError(f"--across=width takes {', '.join(f'--{name}' for name in taken[1:])}, not --{flag}")
    loaded = read.load(values)
    text.announce(loaded, "corrected", echo)
    with telling_left_out(loaded):
        answer = across_widths(loaded, values.params, values.tokens, values.seed)
    facts = facts_of(loaded, answers=[answer])
    text.tell([sections.answer_section(one) for one in facts["answers"]], echo)
    if values.output:
        write_json(values.output, facts)
        echo(f"written: {values.output}")


def _register(values: flags.FlagValues, prediction: Prediction | None, loaded: LoadedRuns | None) -> None:
    """Puts a prediction of finished runs on record."""
    from chinchilla_jax.scaling.answers import on_record

    if prediction is None or loaded is None:
        raise UsageError("--register needs finished runs that predict: --study, --runs or --fit")
    if values.tokens:
        raise UsageError(
            "--register with --tokens: a record is of a budget spent; give --config=FILE of the run instead"
        )
    if "config" in values:
        target = on_record.target_of(read_config(values), loaded)
    else:
        params = values.params or prediction.best.params
        target = on_record.Target(params, prediction.tokens_at(params), prediction.budget, validation=loaded.validation)
    content = on_record.register(values.register, prediction, loaded, target)
    low, high = content["intervals"]["95%"]
    run = f"N = {target.params:.4g}, D = {target.tokens:.4g}, C = {target.flops:.4g}"
    echo(f"on record: {values.register}: {run}: loss {content['loss']:.4f}, 95% of one run {low:.4f} to {high:.4f}")


def verify(values: flags.FlagValues, words: list[str]) -> None:
    """Judges a finished run by a prediction that was put on record before it began (`predict --register`).

    Exit code 0 also if the prediction failed; it is printed, and in the verdict.

    FILE is the record, RUN the directory of the run. The verdict is written beside FILE, as NAME.RUN.verdict.json. A
    run that began earlier, or is another one than that on record, is refused.
    """
    from chinchilla_jax.scaling.answers.on_record import describe
    from chinchilla_jax.scaling.answers.on_record import verify as judge

    if len(words) != 2:
        raise UsageError("give the record and the run, as verify predictions/large.json runs/large")
    echo(describe(judge(*words)))


def suggest(values: flags.FlagValues) -> None:
    """Says which runs to train next: those that narrow the prediction the most, for no more than --purse FLOPs.

    The prediction is that of `predict` for --budget, or --chips for --days; by default a study's held-out budget or
    four times the largest there is. What the same FLOPs on repeats or on an even grid would give is printed beside it.
    `plan --next` plans the same runs in a study.
    """
    from chinchilla_jax.scaling.read.runs import telling_left_out
    from chinchilla_jax.scaling.report.ask import ask_next

    if values.purse is None:
        raise UsageError("--purse=FLOPS is missing: what all next runs together may cost")
    loaded, asked = read.load_fitted(values)[0], (values.purse, values.number, values.quantity)
    with telling_left_out(loaded):
        ask_next(loaded, read.budget(values), *asked, values.output, echo)


def report(values: flags.FlagValues) -> None:
    """Writes report.html, report.json and plots of a study, or of a table of runs beside it."""
    from chinchilla_jax.scaling.report.report import write_report

    words = [f"--{name}={one}" for name in REPORT if values[name].present for one in _listed(values[name].value)]
    command = f"python -m chinchilla_jax report {shlex.join(words)}"
    (loaded, fits), budget = read.load_fitted(values), read.budget(values)
    options = fits if isinstance(fits, dict) else {"fits": fits}
    path = write_report(loaded, budget=budget, output=values.output, **options, command=command)
    echo(f"report: {path}")


def forecast(values: flags.FlagValues, words: list[str]) -> None:
    """Says where runs under way will end, each with an interval that narrows, and marks those that go wrong.

    A RUN is the folder of a run in a study, or with --study its name; without any, every run of the study that has
    written metrics and no result. Of a table
    (--runs, with --curves=TABLE), rows whose state is running; where no column tells states, rows without a loss, and
    runs whose curve stops before their D. D is what they will train on. Nothing is trained, or asked of the workers.
    """
    from chinchilla_jax.scaling.report.forecasts import tell_forecasts

    if words and values.runs:
        raise UsageError("a RUN is one of a study; of a table (--runs) every run under way is forecast")
    names = [pathlib.PurePath(word).name for word in words]
    if words and not values.study:  # STUDY/runs/NAME
        studies = {files.resolved(word).parent.parent for word in words}
        if len(studies) > 1:
            raise UsageError("the runs are of several studies: forecast those of one at a time")
        values.study = str(studies.pop())
    path, reading = read.reading(values)
    tell_forecasts(path, names, reading, values.output, echo)


def compare(values: flags.FlagValues, words: list[str]) -> None:
    """Compares ways to train: how many times the compute of a reference gives the same loss, at every budget and at a
    target, in FLOPs, tokens and chip-hours, with the probability of being better.

    An ARM is PATH or NAME=PATH of a study, a table or a saved fit; --runs=TABLE --by=COLUMN takes the values of a
    column as arms instead. Draws are paired by the cells (budget and size) that arms share. The target is --budget, by
    default that of the reference's held-out runs. --output is FILE.json, or a folder for a page with a plot.
    """
    from chinchilla_jax.scaling.answers.compare.arms import arms_by_value, arms_of
    from chinchilla_jax.scaling.answers.compare.compare import compare as compare_arms
    from chinchilla_jax.scaling.report.compared import write_comparison

    reading = read.how_to_read(values)
    if bool(words) == bool(values.runs):
        raise UsageError("give the arms, as compare studies/plain NAME=studies/other, or --runs=TABLE --by=COLUMN")
    if bool(values.runs) != bool(values.by):
        raise UsageError("--runs and --by go together: the values of the column are the arms")
    arms = arms_of(words, reading) if words else arms_by_value(values.runs, values.by, reading)
    for name, loaded in arms.items():
        echo(f"{name}: {len(loaded.role('isoflop'))} runs of {loaded.source}")
    comparison = compare_arms(arms, values.reference, read.budget(values), draws=values.replicates, seed=values.seed)
    flags_set = [f"--{name}={one}" for name in COMPARE if values[name].present for one in _listed(values[name].value)]
    command = f"python -m chinchilla_jax compare {shlex.join([*words, *flags_set])}"
    write_comparison(comparison, arms, values.output, command, echo)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
