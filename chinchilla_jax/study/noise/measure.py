"""How much of a loss is luck? A few of a study's cells, trained with several seeds and learning rates.

    STUDY/noise.jsonl     the plan: cell by cell, rate by rate, seed by seed; a manifest like the study's
    STUDY/runs/NAME/      the runs, NAME = CELL-xRATE-sSEED; their role is `noise`, so that no fit takes them
    STUDY/noise.json      what came out, written when all are finished

The luck of a single run decides what a fit of single runs can know, and a recipe that was tuned on single runs was
tuned to it. Runs that the study has trained already are not trained again.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence

from chinchilla_jax.base.files import write_json, write_text
from chinchilla_jax.config import RunConfig, did_you_mean
from chinchilla_jax.parallel.job.cores import default_workers
from chinchilla_jax.study.cell import replicate
from chinchilla_jax.study.execute.pool import work
from chinchilla_jax.study.execute.reuse import finished_twin, reuse
from chinchilla_jax.study.folder import (
    MANIFEST,
    NOISE,
    NOISE_RESULT,
    Manifest,
    PlannedRun,
    StudyError,
    manifests,
    read_manifest,
    read_result,
)
from chinchilla_jax.study.noise import spread
from chinchilla_jax.study.plan import describe, duration, estimate, manifest_header, plan

_NEAREST = ":nearest"


def measure(
    config: RunConfig | None,
    study: pathlib.Path | None,
    cells: str | None,
    seeds: int,
    rates: str,
    workers: int | None = None,
    echo: Callable[[str], None] = print,
    dry_run: bool = False,
) -> None:
    """Trains what is missing of the runs that measure the noise of a study, and prints what they say.

    Args:
      config: the study's; None: as it was planned in `study`.
      study: its folder; may be None with `dry_run`.
      cells: `NAME,BUDGET:nearest,...`, see `chosen`.
      rates: factors on the peak learning rate, with commas between them.
      workers: how many runs train at once; by default as many as have their cores.
      dry_run: only print the plan and its cost.

    Raises:
      ConfigError, DataError, StudyError: each says what to do.
      Stopped: a signal came; what was in progress is saved, and the same call goes on.
    """
    planned = plan(config) if config else read_manifest(study / MANIFEST)
    workers = workers or default_workers(planned.template())
    named = chosen(planned, cells)
    if config and study:
        _check_study(study, named)
    manifest = noise_plan(planned, named, seeds, factors(rates))
    describe(manifest, workers, echo)
    others = _trained_elsewhere(study)
    twins = [run for run in manifest.runs if others and finished_twin(study, run, others)]
    if twins:
        left = [run for run in manifest.runs if run not in twins]
        seconds = estimate(left, workers) if left else 0.0
        echo(f"{len(twins)} of them are finished in the study; the others take about {duration(seconds)}")
    if dry_run:
        return
    _write(study / NOISE, manifest)

    from chinchilla_jax.data import prepare

    prepare(manifest.template().data, echo)
    reuse(study, manifest.runs, others, echo)
    work(study, NOISE, workers, echo)
    found = spreads(study, manifest)
    write_json(
        study / NOISE_RESULT,
        {"study": manifest.header["study"], "convention": manifest.header["convention"], **spread.facts(found)},
    )
    for line in [*spread.table(found), *spread.findings(found), f"written: {study / NOISE_RESULT}"]:
        echo(line)


def chosen(planned: Manifest, cells: str | None) -> list[PlannedRun]:
    """The runs of a study whose noise is measured.

    Args:
      cells: names of runs, or `BUDGET:nearest` for the size nearest the guessed optimum of a budget in FLOPs, with
        commas between them. None: the nearest of the smallest, the middle and the largest budget.

    Raises:
      StudyError: the study has no such run or budget.
    """
    base = planned.header["config"]["train"]["seed"]
    runs = {run.name: run for run in planned.runs if run.role == "isoflop" and run.config["train"]["seed"] == base}
    optima = dict(planned.header["guess"]["params"])
    budgets = sorted(optima)
    if cells is None:
        words = [f"{budgets[i]!r}{_NEAREST}" for i in (0, (len(budgets) - 1) // 2, -1)]
    else:
        words = [word.strip() for word in cells.split(",") if word.strip()]
    found = []
    for word in words:
        if word.endswith(_NEAREST):
            budget = _budget(word, budgets)
            own = [run for run in runs.values() if run.budget == budget]
            run = min(own, key=lambda run: abs(math.log(run.params / optima[budget])))
        elif word in runs:
            run = runs[word]
        else:
            raise StudyError(
                f"--cells: the study plans no run {word!r}{did_you_mean(word, runs)}; give names of its "
                f"runs or BUDGET{_NEAREST}, as in {budgets[0]:.3g}{_NEAREST}"
            )
        if run not in found:
            found.append(run)
    if not found:
        raise StudyError("--cells: no cell named; leave the flag out for the smallest, middle and largest budget")
    return found


def _budget(word: str, budgets: Sequence[float]) -> float:
    try:
        wanted = float(word.removesuffix(_NEAREST))
        return next(budget for budget in budgets if math.isclose(budget, wanted, rel_tol=1e-3))
    except (ValueError, StopIteration):
        there = ", ".join(f"{budget:.3g}" for budget in budgets)
        raise StudyError(f"--cells: {word!r}: the study's budgets are {there} FLOPs") from None


def factors(text: str) -> list[float]:
    """`0.7,1,1.4` as numbers, rising and each once, in the six digits that names of runs give them.

    Raises:
      StudyError: not positive numbers.
    """
    try:
        found = sorted({float(f"{float(word):g}") for word in text.split(",") if word.strip()})
    except ValueError:
        found = []
    if not found or not all(0 < factor < math.inf for factor in found):
        raise StudyError(f"--rates={text}: give positive factors on the learning rate, as in 0.7,1,1.4")
    return found


def noise_plan(planned: Manifest, cells: Sequence[PlannedRun], seeds: int, rates: Sequence[float]) -> Manifest:
    """Every one of `cells` at every rate with every seed: the study's first seed and those after it."""
    runs = []
    for cell in cells:
        for factor in rates:
            for seed in range(seeds):
                run = _at_rate(replicate(cell, seed), factor)
                note = f"{cell.recipe}; times {factor:g}" if factor != 1.0 else cell.recipe
                name = f"{cell.name}-x{factor:g}-s{seed}"
                runs.append(dataclasses.replace(run, name=name, role="noise", recipe=note, preflight=None))
    config = planned.template()
    header = manifest_header(config, "noise") | {"dropped": []}
    header |= {"cells": [cell.name for cell in cells], "rates": list(rates), "seeds": seeds}
    return Manifest(header, tuple(runs))


def _at_rate(run: PlannedRun, factor: float) -> PlannedRun:
    if factor == 1.0:  # to the last digit: it is the study's own run
        return run
    config = run.run_config()
    peak_lr = float(f"{factor * config.optimizer.peak_lr:.4g}")
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, peak_lr=peak_lr))
    return dataclasses.replace(run, config=config.to_dict(), config_hash=config.content_hash())


def _trained_elsewhere(study: pathlib.Path | None) -> list[PlannedRun]:
    """The runs of the study's own manifests, if it has any."""
    if study is None or not (study / MANIFEST).exists():
        return []
    return [run for manifest in manifests(study) for run in manifest.runs]


def _check_study(study: pathlib.Path, cells: Sequence[PlannedRun]) -> None:
    """Refuses the cells of another study than the one planned in the folder, if one is: its noise is asked for there.

    Raises:
      StudyError: a cell has a config that no run of the study has.
    """
    if not (study / MANIFEST).exists():
        return
    known = [run.run_config() for run in read_manifest(study / MANIFEST).runs]
    for cell in cells:
        if cell.run_config() not in known:
            raise StudyError(
                f"{study / MANIFEST}: plans no run like {cell.name} of this config; leave --config out to measure "
                "what is planned there, or use another --study folder"
            )


def _write(path: pathlib.Path, manifest: Manifest) -> None:
    """Writes the plan, unless it is there.

    Raises:
      StudyError: another one is there.
    """
    if path.exists():
        if read_manifest(path).runs != manifest.runs:
            raise StudyError(
                f"{path}: plans other cells, seeds or rates; delete that file to measure these instead: "
                "what is trained already stays, and is used where it is asked for again"
            )
        return
    write_text(path, manifest.text())


def spreads(study: pathlib.Path, manifest: Manifest) -> list[spread.Spread]:
    """What the finished runs of a noise manifest came to, cell by cell and rate by rate.

    Raises:
      StudyError: a result is damaged.
    """
    per_group, found = manifest.header["seeds"], []
    for start in range(0, len(manifest.runs), per_group):
        group = manifest.runs[start : start + per_group]
        results = [result for run in group if (result := read_result(study, run.name)) is not None]
        seconds = [r.get("seconds") or r.get("reused_seconds") for r in results if not r.get("diverged")]
        seconds = [value for value in seconds if value]
        first, (cell, factor) = group[0], _place(manifest, start // per_group)
        found.append(
            spread.Spread(
                cell,
                first.budget,
                first.params,
                first.tokens,
                factor,
                first.config["optimizer"]["peak_lr"],
                tuple(r["loss"] for r in results if not r.get("diverged")),
                sum(bool(r.get("diverged")) for r in results),
                sum(seconds) / len(seconds) if seconds else None,
            )
        )
    return found


def _place(manifest: Manifest, group: int) -> tuple[str, float]:
    cells, rates = manifest.header["cells"], manifest.header["rates"]
    return cells[group // len(rates)], rates[group % len(rates)]
