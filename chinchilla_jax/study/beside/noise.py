"""How much of a loss is luck? A few of a study's cells, trained with several seeds and learning rates.

    STUDY/noise.jsonl     the plan: cell by cell, rate by rate, seed by seed; a manifest like the study's
    STUDY/runs/NAME/      the runs, NAME = CELL-xRATE-sSEED; their role is `noise`, so that no fit takes them
    STUDY/noise.json      what came out, written when all are finished

A fit of single runs knows no more than their luck allows, and a recipe that was tuned on single runs was tuned to it.
Runs that the study has trained already are not trained again.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import chi2

from chinchilla_jax.base import files
from chinchilla_jax.base.words import Echo, duration
from chinchilla_jax.config import RunConfig, did_you_mean
from chinchilla_jax.parallel.job.cores import default_workers
from chinchilla_jax.scaling.read.runs import noise_of_repeats
from chinchilla_jax.study import folder
from chinchilla_jax.study.cell import replicate
from chinchilla_jax.study.execute.backend import LOCAL, finished_twin, reuse, run_manifest
from chinchilla_jax.study.execute.status import estimate
from chinchilla_jax.study.folder import MANIFEST, NOISE, NOISE_RESULT, Manifest, PlannedRun, StudyError
from chinchilla_jax.study.plan import describe, manifest_header, plan

_NEAREST = ":nearest"


def measure(
    config: RunConfig | None,
    study: pathlib.Path | None,
    cells: str | None,
    seeds: int,
    rates: str,
    workers: int | None = None,
    echo: Echo = print,
    dry_run: bool = False,
    backend: str = LOCAL,
) -> None:
    """Trains what is missing of the runs that measure the noise of a study, and prints what they say.

    Args and errors as `train_beside`; `cells`: `NAME,BUDGET:nearest,...`, see `chosen`; `rates`: factors on the peak
    learning rate, with commas between them.
    """
    planned = study_of(config, study)
    manifest = noise_plan(planned, chosen(planned, cells), seeds, factors(rates))
    if not train_beside(config, study, NOISE, manifest, workers, echo, dry_run, backend) or not study:
        return
    measured = spreads(study, manifest)
    source = {key: manifest.header[key] for key in ("study", "convention")}
    files.write_json(study / NOISE_RESULT, source | facts(measured))
    for line in [*table(measured), *findings(measured), f"written: {study / NOISE_RESULT}"]:
        echo(line)


def study_of(config: RunConfig | None, study: pathlib.Path | None) -> Manifest:
    """The plan of a study's config, or without one that in its folder. StudyError where there is neither."""
    if config:
        return plan(config)
    if study:
        return folder.read_manifest(study / MANIFEST)
    raise StudyError("neither a config nor the folder of a study")


def train_beside(
    config: RunConfig | None,
    study: pathlib.Path | None,
    name: str,
    manifest: Manifest,
    workers: int | None,
    echo: Echo,
    dry_run: bool,
    backend: str,
) -> bool:
    """Trains what is missing of `manifest`, variants of a study's runs that are no part of its fits, and keeps it as
    `name` beside the study's own. False where that is only printed, with what it costs: without a folder, or in a dry
    run.

    Raises ConfigError, DataError and StudyError, which say what to do, and Stopped if a signal came: what was in
    progress is saved, and the same call goes on.

    Args:
      config: the study's; None: as it was planned in `study`.
      study: its folder.
      backend: name of what trains the runs, `workers` at once, see `execute.backend`.
    """
    workers = workers or default_workers(manifest.template())
    in_study = folder.planned_runs(study) if study and files.exists(study / MANIFEST) else []
    if config and study and in_study:
        _check_study(study / MANIFEST, in_study, chosen(study_of(config, None), ",".join(manifest.header["cells"])))
    describe(manifest, workers, echo)
    twins = [run for run in manifest.runs if study and finished_twin(study, run, in_study)]
    if twins:
        time = duration(estimate([run for run in manifest.runs if run not in twins], workers))
        echo(f"{len(twins)} of them are finished in the study; the others take about {time}")
    if dry_run or not study:
        return False
    _write(study / name, manifest)

    from chinchilla_jax.data import prepare

    prepare(manifest.template().data, echo)
    reuse(study, manifest.runs, in_study, echo)
    run_manifest(backend, study, name, workers, echo)
    return True


def chosen(planned: Manifest, cells: str | None) -> list[PlannedRun]:
    """The runs of a study whose noise is measured. Raises StudyError if the study has no such run or budget.

    Args:
      cells: names of runs, or `BUDGET:nearest` for the size nearest the guessed optimum of a budget in FLOPs, with
        commas between them. None: the nearest of the smallest, the middle and the largest budget.
    """
    seed = planned.header["config"]["train"]["seed"]
    runs = {run.name: run for run in planned.runs if run.role == "isoflop" and run.config["train"]["seed"] == seed}
    optima = dict(planned.header["guess"]["params"])
    budgets = sorted(optima)
    if cells is None:
        cells = ",".join(f"{budgets[i]!r}{_NEAREST}" for i in (0, (len(budgets) - 1) // 2, -1))
    cell_runs: list[PlannedRun] = []
    for word in filter(None, (word.strip() for word in cells.split(","))):
        if word.endswith(_NEAREST):
            budget = _budget(word, budgets)
            sizes = [run for run in runs.values() if run.budget == budget]
            run = min(sizes, key=lambda run: abs(math.log(run.params / optima[budget])))
        elif word in runs:
            run = runs[word]
        else:
            form = f"give names of its runs or BUDGET{_NEAREST}, as in {budgets[0]:.3g}{_NEAREST}"
            raise StudyError(f"--cells: the study plans no run {word!r}{did_you_mean(word, runs)}; {form}")
        if run not in cell_runs:
            cell_runs.append(run)
    if not cell_runs:
        raise StudyError("--cells: no cell named; leave the flag out for the smallest, middle and largest budget")
    return cell_runs


def _budget(word: str, budgets: Sequence[float]) -> float:
    try:
        value = float(word.removesuffix(_NEAREST))
        return next(budget for budget in budgets if math.isclose(budget, value, rel_tol=1e-3))
    except (ValueError, StopIteration):
        known = ", ".join(f"{budget:.3g}" for budget in budgets)
        raise StudyError(f"--cells: {word!r}: the study's budgets are {known} FLOPs") from None


def factors(text: str) -> list[float]:
    """`0.7,1,1.4` as positive numbers, rising and each once, in the six digits that names of runs give them."""
    try:
        numbers = sorted({float(f"{float(word):g}") for word in text.split(",") if word.strip()})
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise StudyError(f"--rates={text}: give positive factors on the learning rate, as in 0.7,1,1.4")
    return numbers


def noise_plan(planned: Manifest, cells: Sequence[PlannedRun], seeds: int, rates: Sequence[float]) -> Manifest:
    """Every one of `cells` at every rate with every seed: the study's first seed and those after it."""
    runs = []
    for cell, factor, seed in itertools.product(cells, rates, range(seeds)):
        run, note = replicate(cell, seed), cell.recipe
        if factor != 1.0:  # else it is the study's own run, to the last digit of the rate
            config = run.run_config()
            peak_lr = float(f"{factor * config.optimizer.peak_lr:.4g}")
            optimizer = dataclasses.replace(config.optimizer, peak_lr=peak_lr)
            run, note = run.with_config(dataclasses.replace(config, optimizer=optimizer)), f"{note}; times {factor:g}"
        name = f"{cell.name}-x{factor:g}-s{seed}"
        runs.append(dataclasses.replace(run, name=name, role="noise", recipe=note, preflight=None))
    header = manifest_header(planned.template(), "noise") | {"dropped": []}
    header |= {"cells": [cell.name for cell in cells], "rates": list(rates), "seeds": seeds}
    return Manifest(header, tuple(runs))


def _check_study(path: pathlib.Path, planned: Sequence[PlannedRun], cells: Sequence[PlannedRun]) -> None:
    """Refuses cells whose config no run has that is planned in the folder: they are another study's."""
    known = [run.run_config() for run in planned]
    if unknown := [cell.name for cell in cells if cell.run_config() not in known]:
        fix = "leave --config out to measure what is planned there, or use another --study folder"
        raise StudyError(f"{path}: plans no run like {unknown[0]} of this config; {fix}")


def _write(path: pathlib.Path, manifest: Manifest) -> None:
    """Writes the plan, unless it is there. Raises StudyError if another one is there."""
    if not files.exists(path):
        files.write_text(path, manifest.text())
    elif folder.read_manifest(path).runs != manifest.runs:
        fix = "delete that file to measure these instead"
        kept = "what is trained already stays, and is used where it is asked for again"
        words = "rates" if path.name == NOISE else "settings"
        raise StudyError(f"{path}: plans other cells, seeds or {words}; {fix}: {kept}")


@dataclasses.dataclass(frozen=True)
class Spread:
    """The runs of one cell at one rate: `losses` in nats per token of the seeds that did not diverge, in their order.

    `cell` is the name of the study's run, `factor` the peak learning rate over that run's, `seconds` wall time of one
    run on average (None if no run says). `deviation` (standard deviation of a run) and `error` (standard error of the
    mean) are relative to the mean and NaN below two losses.
    """

    cell: str
    budget: float
    params: int
    tokens: int
    factor: float
    peak_lr: float
    losses: tuple[float, ...]
    diverged: int = 0
    seconds: float | None = None

    @property
    def mean(self) -> float:
        """Mean loss, nats per token; NaN without any."""
        return float(np.mean(self.losses)) if self.losses else math.nan

    @property
    def deviation(self) -> float:
        """Standard deviation of one run over the mean."""
        return float(np.std(self.losses, ddof=1)) / self.mean if len(self.losses) > 1 else math.nan

    @property
    def error(self) -> float:
        """Standard error of the mean over the mean."""
        return self.deviation / math.sqrt(len(self.losses)) if self.losses else math.nan


@dataclasses.dataclass(frozen=True)
class Rate:
    """One learning rate over all cells: relative `excess` of the mean loss over the cells' own means, with its standard
    `error`; `deviation` of one run, pooled. Infinite where a run diverged.
    """

    factor: float
    excess: float = math.inf
    error: float = math.inf
    deviation: float = math.inf


def spreads(study: pathlib.Path, manifest: Manifest) -> list[Spread]:
    """What the finished runs of a noise manifest came to, cell by cell and rate by rate."""
    header, measured = manifest.header, []
    for number, (cell, factor) in enumerate(itertools.product(header["cells"], header["rates"])):
        group = manifest.runs[number * header["seeds"] : (number + 1) * header["seeds"]]
        results = [result for _, result in folder.finished(study, group)]
        good = [result for result in results if not result.get("diverged")]
        losses = tuple(result["loss"] for result in good)
        times = [s for result in good if (s := result.get("seconds") or result.get("reused_seconds"))]
        seconds = sum(times) / len(times) if times else None
        run, diverged = group[0], len(results) - len(good)
        peak_lr = run.config["optimizer"]["peak_lr"]
        measured.append(Spread(cell, run.budget, run.params, run.tokens, factor, peak_lr, losses, diverged, seconds))
    return measured


def rates(spreads: Sequence[Spread]) -> list[Rate]:
    """Every rate over the cells, the lowest first."""
    centres, result = _centres(spreads), []
    for factor in sorted({s.factor for s in spreads}):
        group = [s for s in spreads if s.factor == factor]
        if any(s.diverged or not s.losses for s in group):
            result.append(Rate(factor))
            continue
        excess = float(np.mean([s.mean / centres[s.cell] - 1.0 for s in group]))
        error = math.sqrt(sum((s.error * s.mean / centres[s.cell]) ** 2 for s in group)) / len(group)
        result.append(Rate(factor, excess, error, noise_of_repeats(s.losses for s in group)[0]))
    return result


def _centres(spreads: Sequence[Spread]) -> dict[str, float]:
    """A loss by cell to hold the others against: the mean over its rates."""
    means = {cell: [s.mean for s in spreads if s.cell == cell and s.losses] for cell in {s.cell for s in spreads}}
    return {cell: float(np.mean(losses or [math.nan])) for cell, losses in means.items()}


def behind(spreads: Sequence[Spread], factor: float, best: float) -> tuple[float, float]:
    """How much more the runs at one rate lose than those at another, relative, over all cells, and its standard error.

    Seed by seed: a seed that is lucky at one rate often is at the other, and that luck says nothing about the rates.
    """
    centres, losses = _centres(spreads), {(s.cell, s.factor): np.array(s.losses) for s in spreads}
    gaps = [(losses[cell, factor] - losses[cell, best]) / centre for cell, centre in centres.items()]
    errors = [gap.std(ddof=1) / math.sqrt(len(gap)) for gap in gaps]
    return float(np.mean([gap.mean() for gap in gaps])), math.sqrt(sum(e * e for e in errors)) / len(gaps)


def noise_of(spreads: Sequence[Spread]) -> tuple[float, int, float]:
    """(Relative noise of one run, degrees of freedom, factor) at the rate nearest the recipe's; NaN where unknown."""
    factor = min({s.factor for s in spreads}, key=lambda f: abs(math.log(f)))
    return *noise_of_repeats(s.losses for s in spreads if s.factor == factor), factor


def table(spreads: Sequence[Spread]) -> list[str]:
    """One line for each cell and rate, below a header; losses in nats per token."""
    width = max([len(s.cell) for s in spreads] + [4])
    head = f"{'cell':{width}} {'rate':>5} {'peak_lr':>8} {'seeds':>5} {'mean':>8} {'sd':>7} {'min':>8} {'max':>8}"
    lines = [f"{head} {'worst':>7} {'time':>7}"]
    for s in spreads:
        line = f"{s.cell:{width}} {s.factor:5g} {s.peak_lr:8.2g} {len(s.losses):5d}"
        if s.losses:
            low, high, time = min(s.losses), max(s.losses), "" if s.seconds is None else duration(s.seconds)
            line += f" {s.mean:8.4f} {_share(s.deviation):>7} {low:8.4f} {high:8.4f}"
            line += f" {_share(high / s.mean - 1, '+'):>7} {time:>7}"
        lines.append(line + (f"  {s.diverged} diverged" if s.diverged else ""))
    return lines


def findings(spreads: Sequence[Spread]) -> list[str]:
    """What the figures say, as lines: the noise, the best rate with its error, whether a lower one is as good."""
    noise, freedom, factor = noise_of(spreads)
    lines = []
    if freedom:
        where = "the recipe's rate" if factor == 1.0 else f"{factor:g} times the recipe's rate"
        low, high = (noise * math.sqrt(freedom / chi2.ppf(p, freedom)) for p in (0.975, 0.025))
        interval = f"95%: {low:.2%} to {high:.2%}, {freedom} degrees of freedom"
        lines.append(f"noise from run to run at {where}: {noise:.2%} of the loss ({interval})")
    tried = rates(spreads)
    finite = [rate for rate in tried if math.isfinite(rate.excess)]
    if len(tried) < 2:
        return lines
    for rate in tried:
        errors = f"standard error {_share(rate.error)}, sd of a run {_share(rate.deviation)}"
        what = f"{rate.excess:+.2%} of the cells' mean loss, {errors}" if rate in finite else "a run diverged"
        lines.append(f"rate {rate.factor:g}: {what}")
    if not finite:
        return lines
    best = min(finite, key=lambda rate: rate.excess)
    edge = {tried[0]: "lowest", tried[-1]: "highest"}.get(best)
    further = f", the {edge} tried: --rates may go further" if edge else ""
    lines.append(f"best on the mean: rate {best.factor:g} (standard error {_share(best.error)}){further}")
    return lines + _lower(spreads, finite, best)


def _lower(spreads: Sequence[Spread], finite: Sequence[Rate], best: Rate) -> list[str]:
    """Whether a rate below the best is as good within one standard error of the difference, and calmer."""
    lower = [rate for rate in finite if rate.factor < best.factor]
    if not lower or math.isnan(best.error):
        return []
    lost = {rate: behind(spreads, rate.factor, best.factor) for rate in lower}
    as_good = [rate for rate, (loss, error) in lost.items() if loss <= error]
    if not as_good:
        loss, error = lost[lower[-1]]
        return [f"no lower rate is as good within the error: {lower[-1].factor:g} loses {loss:.2%} +- {error:.2%}"]
    calm = min(as_good, key=lambda rate: rate.deviation)
    loss, error = lost[calm]
    line = f"rate {calm.factor:g} is as good within the error ({loss:+.2%} +- {error:.2%})"
    scatter = f"{calm.deviation:.2%} against {best.deviation:.2%}"
    if calm.deviation < best.deviation:
        return [f"{line} and scatters less, {scatter}: take it"]
    return [f"{line}, but scatters no less, {scatter}"]


def facts(spreads: Sequence[Spread]) -> dict[str, Any]:
    """The same for JSON; figures that are not finite are None."""
    noise, freedom, factor = noise_of(spreads)
    cells = [dataclasses.asdict(s) | {"mean": s.mean, "deviation": s.deviation, "error": s.error} for s in spreads]
    by_rate = [dataclasses.asdict(rate) for rate in rates(spreads)]
    summary = {"noise": noise, "freedom": freedom, "factor": factor, "cells": cells, "rates": by_rate}
    text = json.dumps(summary | {"findings": findings(spreads)})
    return json.loads(text, parse_constant=lambda _: None)  # of NaN and infinities


def _share(value: float, sign: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:{sign}.2%}"
