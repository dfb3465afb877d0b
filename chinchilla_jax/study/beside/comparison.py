"""How do ways to train compare at equal C? A study of a few sizes, planned for that one question.

`plain` is trained at every budget, the other ways of `study.methods` at the middle one, all in `study.sizes` sizes
around the guessed optimum there and with `study.seeds` seeds. What plain training gains from one budget to the next
says how much compute a difference is worth (`compare`).
"""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Iterator
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.base.words import Echo, duration
from chinchilla_jax.config import ConfigError, RunConfig
from chinchilla_jax.parallel.job.cores import default_workers
from chinchilla_jax.scaling.read.directories import BY_EXPERTS
from chinchilla_jax.study import folder, ladder, ways
from chinchilla_jax.study.cell import OffBudget, matched, with_seed
from chinchilla_jax.study.execute.backend import LOCAL, get_backend, run_manifest
from chinchilla_jax.study.execute.status import training_order
from chinchilla_jax.study.folder import MANIFEST, Manifest, PlannedRun
from chinchilla_jax.study.guess import guess
from chinchilla_jax.study.pipeline import booked, where_the_time_went
from chinchilla_jax.study.plan import check, describe, manifest_header, with_unique_names


def plan_comparison(config: RunConfig) -> Manifest:
    """The manifest of the comparison. Raises ConfigError if a model cannot be trained in a way, or a budget not met."""
    study = config.study_section
    check(config)
    if study.schedule != "matched":
        raise ConfigError("study.schedule", f"ways to train are compared by runs of their own, got {study.schedule!r}")
    others = [way for way in study.methods if way != ways.PLAIN]
    if not others:
        raise ConfigError("study.methods", "needs a way to train beside 'plain', as ('plain', 'patch size=4')")
    if len(study.budgets) < 3:
        raise ConfigError("study.budgets", f"needs budgets around that of the comparison, 3 at least: {study.budgets}")
    budgets = sorted(study.budgets)
    middle = budgets[len(budgets) // 2]
    guessed = guess(config)
    steps = [i - (study.sizes - 1) / 2 for i in range(study.sizes)]
    rungs = [ladder.nearest(config, guessed.params(middle) * study.size_ratio**step) for step in steps]
    if len({rung.params for rung in rungs}) < len(rungs):
        raise ConfigError("study.size_ratio", f"{study.size_ratio} gives one shape twice; take a larger one")
    cells = [(budget, ways.PLAIN) for budget in budgets] + [(middle, way) for way in others]
    runs: list[PlannedRun] = []
    for budget, way in cells:
        for rung in rungs:
            try:
                seeds = range(max(study.seeds))
                runs += [matched(with_seed(config, seed), rung.model, budget, "isoflop", way) for seed in seeds]
            except ways.Unfit as error:
                raise ConfigError("study.methods", f"{way}: N = {rung.params:.4g}: {error}") from None
            except OffBudget as error:
                raise ConfigError("study.budgets", f"{budget:.3g} FLOPs, {way}: {error}") from None
    facts = {"provenance": guessed.provenance, "params": [[middle, guessed.params(middle)]]}
    header = manifest_header(config, "comparison") | {"dropped": [], "guess": facts, "compared_at": middle}
    return Manifest(header, with_unique_names(runs, config))


def compare_methods(
    config: RunConfig, study: pathlib.Path, workers: int | None = None, echo: Echo = print, backend: str = LOCAL
) -> pathlib.Path:
    """Does whatever of the comparison is not done yet; returns the path of its report. Raises as `run_study`."""
    manifest = plan_comparison(config)
    workers, started = workers or default_workers(config), time.monotonic()

    @contextlib.contextmanager
    def stage(number: int, name: str) -> Iterator[None]:
        echo(f"=== {number}/4 {name}: {duration(time.monotonic() - started)} elapsed ===")
        with booked(study, name):
            yield

    with contextlib.ExitStack() as early:
        # Workers import JAX and compile while the text is prepared.
        ready = _standing_by(early, backend, study, manifest, workers, echo)
        with stage(1, "data"):
            from chinchilla_jax.data import prepare

            prepare(config.data, echo)
        with stage(2, "plan"):
            written = folder.write_manifest(study / MANIFEST, manifest)
            echo(f"{study / MANIFEST}: {'written' if written else 'as planned'}")
            describe(manifest, workers, echo)
        with stage(3, "runs"):
            run_manifest(backend, study, MANIFEST, workers, echo, ready)
        with stage(4, "report"):
            _by_experts(study, manifest, echo)
            from chinchilla_jax.scaling.report.methods import write_methods

            report = write_methods(study, echo)
    for line in where_the_time_went(study, workers):
        echo(line)
    echo(f"report: {report}")
    return report


def _standing_by(
    early: contextlib.ExitStack, backend: str, study: pathlib.Path, manifest: Manifest, workers: int, echo: Echo
) -> Any:
    """What the back-end gives to those that wait for the first runs; they stop with `early` if none comes."""
    waiting = training_order(folder.unfinished(study, manifest.runs))
    if not waiting:
        return None
    stand_by, number = get_backend(backend).stand_by, min(workers, len(waiting))
    return early.enter_context(stand_by(study, MANIFEST, manifest.template(), waiting, number, echo))


def _by_experts(study: pathlib.Path, manifest: Manifest, echo: Echo) -> None:
    """Evaluates the runs of mixtures trained densely with fewer and fewer of their experts, unless that was done."""
    for run in manifest.runs:
        path, config = folder.run_folder(study, run.name) / BY_EXPERTS, run.run_config()
        result = folder.read_result(study, run.name)
        if config.model.feed_forward != "ds_moe" or files.exists(path) or not result or result.get("diverged"):
            continue
        from chinchilla_jax.evaluation.experts import losses_of_run

        echo(f"{run.name}: evaluated with fewer experts")
        tops = [config.model.experts // part for part in (1, 2, 4, 8) if config.model.experts >= part]
        rows = losses_of_run(config, folder.run_folder(study, run.name), tops, echo)
        files.write_json(path, {"rows": [_row(row.selection.top, row.experts, row.record) for row in rows]})


def _row(top: int, used: float, record: dict[str, float]) -> dict[str, float | str]:
    return {"selection": f"top {top}", "used": used, "loss": record["validation_loss"]}
