"""How much of a loss is luck? A few of a study's cells, trained with several seeds and learning rates.

    STUDY/noise.jsonl     the plan: cell by cell, rate by rate, seed by seed; a manifest like the study's
    STUDY/runs/NAME/      the runs, NAME = CELL-xRATE-sSEED; their role is `noise`, so that no fit takes them
    STUDY/noise.json      what came out, written when all are finished

The luck of a single run decides what a fit of single runs can know, and a recipe that was tuned on single runs was
tuned to it. Runs that the study has trained already are not trained again.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Sequence

from chinchilla_jax.base import files
from chinchilla_jax.base.words import Echo, duration
from chinchilla_jax.config import RunConfig, did_you_mean
from chinchilla_jax.parallel.job.cores import default_workers
from chinchilla_jax.study import folder
from chinchilla_jax.study.cell import replicate
from chinchilla_jax.study.cost import describe
from chinchilla_jax.study.execute.backend import LOCAL, run_manifest
from chinchilla_jax.study.execute.pace import estimate
from chinchilla_jax.study.execute.reuse import finished_twin, reuse
from chinchilla_jax.study.folder import MANIFEST, Manifest, PlannedRun, StudyError
from chinchilla_jax.study.noise import spread
from chinchilla_jax.study.plan import manifest_header, plan

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

    Args:
      config: the study's; None: as it was planned in `study`.
      study: its folder; may be None with `dry_run`.
      cells: `NAME,BUDGET:nearest,...`, see `chosen`.
      rates: factors on the peak learning rate, with commas between them.
      workers: how many runs train at once; by default as many as have their cores.
      dry_run: only print the plan and its cost.
      backend: name of what trains the runs, see `execute.backend`.

    Raises:
      ConfigError, DataError, StudyError: each says what to do.
      Stopped: a signal came; what was in progress is saved, and the same call goes on.
    """
    planned = plan(config) if config else folder.read_manifest(study / MANIFEST)
    workers = workers or default_workers(planned.template())
    named = chosen(planned, cells)
    in_study = folder.planned_runs(study) if study is not None and files.exists(study / MANIFEST) else []
    if config and in_study:
        _check_study(study, named)
    manifest = noise_plan(planned, named, seeds, factors(rates))
    describe(manifest, workers, echo)
    twins = [run for run in manifest.runs if in_study and finished_twin(study, run, in_study)]
    if twins:
        time = duration(estimate([run for run in manifest.runs if run not in twins], workers))
        echo(f"{len(twins)} of them are finished in the study; the others take about {time}")
    if dry_run:
        return
    _write(study / folder.NOISE, manifest)

    from chinchilla_jax.data import prepare

    prepare(manifest.template().data, echo)
    reuse(study, manifest.runs, in_study, echo)
    run_manifest(backend, study, folder.NOISE, workers, echo)
    measured = spreads(study, manifest)
    source = {key: manifest.header[key] for key in ("study", "convention")}
    files.write_json(study / folder.NOISE_RESULT, source | spread.facts(measured))
    for line in [*spread.table(measured), *spread.findings(measured), f"written: {study / folder.NOISE_RESULT}"]:
        echo(line)


def chosen(planned: Manifest, cells: str | None) -> list[PlannedRun]:
    """The runs of a study whose noise is measured.

    Args:
      cells: names of runs, or `BUDGET:nearest` for the size nearest the guessed optimum of a budget in FLOPs, with
        commas between them. None: the nearest of the smallest, the middle and the largest budget.

    Raises:
      StudyError: the study has no such run or budget.
    """
    seed = planned.header["config"]["train"]["seed"]
    runs = {run.name: run for run in planned.runs if run.role == "isoflop" and run.config["train"]["seed"] == seed}
    optima = dict(planned.header["guess"]["params"])
    budgets = sorted(optima)
    if cells is None:
        cells = ",".join(f"{budgets[i]!r}{_NEAREST}" for i in (0, (len(budgets) - 1) // 2, -1))
    cell_runs = []
    for word in filter(None, (word.strip() for word in cells.split(","))):
        if word.endswith(_NEAREST):
            budget = _budget(word, budgets)
            sizes = [run for run in runs.values() if run.budget == budget]
            run = min(sizes, key=lambda run: abs(math.log(run.params / optima[budget])))
        elif word in runs:
            run = runs[word]
        else:
            raise StudyError(
                f"--cells: the study plans no run {word!r}{did_you_mean(word, runs)}; give names of its "
                f"runs or BUDGET{_NEAREST}, as in {budgets[0]:.3g}{_NEAREST}"
            )
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
    """`0.7,1,1.4` as numbers, rising and each once, in the six digits that names of runs give them. Raises StudyError
    if they are no positive numbers.
    """
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
        run = _at_rate(replicate(cell, seed), factor)
        note = f"{cell.recipe}; times {factor:g}" if factor != 1.0 else cell.recipe
        name = f"{cell.name}-x{factor:g}-s{seed}"
        runs.append(dataclasses.replace(run, name=name, role="noise", recipe=note, preflight=None))
    header = manifest_header(planned.template(), "noise") | {"dropped": []}
    header |= {"cells": [cell.name for cell in cells], "rates": list(rates), "seeds": seeds}
    return Manifest(header, tuple(runs))


def _at_rate(run: PlannedRun, factor: float) -> PlannedRun:
    if factor == 1.0:  # to the last digit: it is the study's own run
        return run
    config = run.run_config()
    peak_lr = float(f"{factor * config.optimizer.peak_lr:.4g}")
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, peak_lr=peak_lr))
    return dataclasses.replace(run, config=config.to_dict(), config_hash=config.content_hash())


def _check_study(study: pathlib.Path, cells: Sequence[PlannedRun]) -> None:
    """Refuses the cells of another study than the one planned in the folder: its noise is asked for there. Raises
    StudyError if a cell has a config that no run of the study has.
    """
    known = [run.run_config() for run in folder.read_manifest(study / MANIFEST).runs]
    for cell in cells:
        if cell.run_config() not in known:
            raise StudyError(
                f"{study / MANIFEST}: plans no run like {cell.name} of this config; leave --config out to measure "
                "what is planned there, or use another --study folder"
            )


def _write(path: pathlib.Path, manifest: Manifest) -> None:
    """Writes the plan, unless it is there. Raises StudyError if another one is there."""
    if not files.exists(path):
        files.write_text(path, manifest.text())
    elif folder.read_manifest(path).runs != manifest.runs:
        raise StudyError(
            f"{path}: plans other cells, seeds or rates; delete that file to measure these instead: "
            "what is trained already stays, and is used where it is asked for again"
        )


def spreads(study: pathlib.Path, manifest: Manifest) -> list[spread.Spread]:
    """What the finished runs of a noise manifest came to, cell by cell and rate by rate. Raises StudyError if a result
    is damaged.
    """
    header, measured = manifest.header, []
    for number, (cell, factor) in enumerate(itertools.product(header["cells"], header["rates"])):
        group = manifest.runs[number * header["seeds"] : (number + 1) * header["seeds"]]
        results = [result for _, result in folder.finished(study, group)]
        good = [result for result in results if not result.get("diverged")]
        seconds = [s for result in good if (s := result.get("seconds") or result.get("reused_seconds"))]
        first = group[0]
        measured.append(
            spread.Spread(
                cell=cell,
                budget=first.budget,
                params=first.params,
                tokens=first.tokens,
                factor=factor,
                peak_lr=first.config["optimizer"]["peak_lr"],
                losses=tuple(result["loss"] for result in good),
                diverged=len(results) - len(good),
                seconds=sum(seconds) / len(seconds) if seconds else None,
            )
        )
    return measured
