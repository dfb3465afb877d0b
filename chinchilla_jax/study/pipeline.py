"""From text to a checked prediction: data, plan, IsoFLOP runs, prediction, held-out runs, report.

Every stage leaves what it makes in files and looks for it first, so a study that was stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.base.words import Echo, duration
from chinchilla_jax.config import RunConfig
from chinchilla_jax.parallel.job.cores import default_workers
from chinchilla_jax.study import folder, records
from chinchilla_jax.study.execute.backend import LOCAL, get_backend, reuse, run_manifest
from chinchilla_jax.study.execute.status import estimate, pace, training_order
from chinchilla_jax.study.folder import MANIFEST, NOISE, VERIFICATION, Manifest, PlannedRun
from chinchilla_jax.study.foresee import foresee
from chinchilla_jax.study.plan import describe, holdout_budget, holdout_runs, plan, verification

STAGES = ("data", "plan", "isoflop runs", "prediction", "held-out runs", "report")
STAGE_SECONDS = "stages.json"


def run_study(
    config: RunConfig, study: str | pathlib.Path, workers: int | None = None, echo: Echo = print, backend: str = LOCAL
) -> pathlib.Path:
    """Does whatever of a study is not done yet, `workers` runs at a time on the back-end of that name (see
    `execute.backend`); returns the path of its report. Raises ConfigError, DataError, StudyError and FitRefused, which
    say what to do, and Stopped if a signal came: what was in progress is saved.
    """
    manifest = plan(config)  # first of all, so that a plan that cannot work costs nothing
    pipeline = _Pipeline(files.path(study), manifest, workers or default_workers(config), echo, backend)
    with pipeline.early:
        return pipeline.run()


class _Pipeline:
    """A study and its stages."""

    def __init__(self, study: pathlib.Path, manifest: Manifest, workers: int, echo: Echo, backend: str):
        self.study, self.manifest, self.workers, self.echo = study, manifest, workers, echo
        self.backend, self.stand_by = backend, get_backend(backend).stand_by
        self.config, self.started = manifest.template(), time.monotonic()
        self.early = contextlib.ExitStack()  # ends workers that were started ahead of a stage which never came

    def run(self) -> pathlib.Path:
        """All stages, one after the other."""
        study, echo = self.study, self.echo

        # While the text is prepared on some core, workers import JAX and compile on the others.
        ready, waiting = None, training_order(folder.unfinished(study, self.manifest.runs))
        if waiting and not _prepared(self.config):
            ready = self._stand_by(MANIFEST, waiting, min(self.workers, len(waiting)))

        with self._stage("data"):
            from chinchilla_jax.data import prepare

            prepare(self.config.data, echo)

        with self._stage("plan"):
            written = folder.write_manifest(study / MANIFEST, self.manifest)
            echo(f"{study / MANIFEST}: {'written' if written else 'as planned'}")
            describe(self.manifest, self.workers, echo)
            foresee(self.manifest, study, echo)

        with self._stage("isoflop runs"):
            if files.exists(study / NOISE):
                reuse(study, self.manifest.runs, folder.read_manifest(study / NOISE).runs, echo)
            run_manifest(self.backend, study, MANIFEST, self.workers, echo, ready)

        # While the fits are made they import JAX again; nobody knows yet what to compile.
        predicted = files.exists(study / VERIFICATION)
        ready = None if predicted else self._stand_by(VERIFICATION, [], self.workers)

        with self._stage("prediction"):
            if predicted:
                params = folder.read_manifest(study / VERIFICATION).header["predicted_params"]
                echo(f"{study / VERIFICATION}: predicted N = {params:.4g}, as before")
                self._complete_records()
            else:
                self._predict()

        with self._stage("held-out runs"):
            run_manifest(self.backend, study, VERIFICATION, self.workers, echo, ready)

        with self._stage("report"):
            from chinchilla_jax.scaling.report.report import write_report

            records.judge_by_record(study, echo)
            report = write_report(study)

        for line in where_the_time_went(study, self.workers):
            echo(line)
        echo(f"report: {report}")
        return report

    def _stand_by(self, manifest: str, waiting: list[PlannedRun], workers: int) -> Any:
        context = self.stand_by(self.study, manifest, self.config, waiting, workers, self.echo)
        return self.early.enter_context(context)

    def _predict(self) -> None:
        """Fits the runs, says what they predict, and plans the held-out ones."""
        from chinchilla_jax.scaling.predict.analysis import analyse
        from chinchilla_jax.scaling.predict.predict import predict
        from chinchilla_jax.scaling.read.load import load_runs
        from chinchilla_jax.scaling.report.facts import facts_of
        from chinchilla_jax.scaling.report.sections import of_prediction
        from chinchilla_jax.scaling.report.text import announce, tell

        loaded = load_runs(self.study)
        announce(loaded, "corrected", self.echo)
        prediction = predict(analyse(loaded.runs), holdout_budget(self.config))
        tell(of_prediction(facts_of(loaded, prediction=prediction)), self.echo)
        planned = verification(self.study, prediction.best.params)
        describe(planned, self.workers, self.echo)
        records.put_on_record(self.study, prediction, loaded, planned.runs)

    def _complete_records(self) -> None:
        """Puts on record what a stop kept from it, of runs that have not begun."""
        waiting = records.not_on_record(self.study, folder.read_manifest(self.study / VERIFICATION).runs)
        if not waiting:
            return
        from chinchilla_jax.scaling.predict.analysis import analyse
        from chinchilla_jax.scaling.predict.predict import predict
        from chinchilla_jax.scaling.read.load import load_runs

        loaded = load_runs(self.study)
        prediction = predict(analyse(loaded.runs), holdout_budget(self.config))
        records.put_on_record(self.study, prediction, loaded, waiting)

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """A banner; then books the seconds of the block, over all restarts."""
        left = 0.0 if name == "report" else self._seconds_left()
        times = f"{duration(time.monotonic() - self.started)} elapsed, about {duration(left)} of training left"
        self.echo(f"=== {STAGES.index(name) + 1}/{len(STAGES)} {name}: {times} ===")
        with booked(self.study, name):
            yield

    def _seconds_left(self) -> float:
        """Seconds of training still to come, at the pace of the finished runs or else the config's."""
        runs = folder.unfinished(self.study, self.manifest.runs)
        if files.exists(self.study / VERIFICATION):
            runs += folder.unfinished(self.study, folder.read_manifest(self.study / VERIFICATION).runs)
        else:
            # As many runs of the held-out budget, which is so many times that of the largest planned run.
            study = self.config.study_section
            largest = max(self.manifest.runs, key=lambda run: (run.budget, run.params))
            flops = {convention: study.holdout_factor * count for convention, count in largest.flops.items()}
            seconds = flops["executed"] / study.flops_per_second
            alone = dataclasses.replace(largest, name="held-out", trunk=None, fork_step=0)
            alone = dataclasses.replace(alone, flops=flops, estimated_seconds=seconds)
            runs += [alone] * holdout_runs(self.config)
        seconds_of = pace(self.study)
        left = {run.name: seconds_of(run) * (1.0 - folder.progress(self.study, run)) for run in runs}
        return estimate(runs, self.workers, lambda run: left[run.name])


@contextlib.contextmanager
def booked(study: pathlib.Path, stage: str) -> Iterator[None]:
    """Books the seconds of a block under a stage of a study, over all restarts."""
    start = time.monotonic()
    try:
        yield
    finally:  # also when interrupted: that time was spent
        path = study / STAGE_SECONDS
        seconds = folder.read_json_or(path, {})
        seconds[stage] = seconds.get(stage, 0.0) + time.monotonic() - start
        files.write_json(path, seconds)


def _prepared(config: RunConfig) -> bool:
    """Whether the text is prepared already."""
    from chinchilla_jax.data import DataError, store_path

    with contextlib.suppress(DataError):
        return files.exists(store_path(config.data))
    return False


def where_the_time_went(study: pathlib.Path, workers: int) -> list[str]:
    """A table, as lines: the study's wall time by stage, its workers' time by part, the share spent training.

    The share is the seconds of steps summed over runs, over workers * wall time: what is missing is the other parts of
    `training.timing.clock`, and workers that waited for each other at the end.
    """
    stages = folder.read_json_or(study / STAGE_SECONDS, {})
    wall = sum(stages.values())
    lines = ["where the time went", f"  {'stage':24} {'wall':>9} {'share':>7}"]
    lines += [f"  {name:24} {duration(s):>9} {s / wall:7.1%}" for name, s in stages.items() if wall]
    lines.append(f"  {'total':24} {duration(wall):>9}")
    parts: Counter[str] = Counter()
    for _, result in folder.finished(study, folder.planned_runs(study)):
        spent = result.get("time") or {}
        parts.update(spent)
        parts["other"] += max(0.0, (result.get("seconds") or 0.0) - sum(spent.values()))
    capacity = workers * wall
    if not capacity:
        return lines
    steps, booked = parts["step"], sum(parts.values())
    parts["outside runs, waiting"] = max(0.0, capacity - booked)
    lines.append(f"  {f'part, over {workers} workers':24} {'seconds':>9} {'share':>7}")
    lines += [f"  {name:24} {s:9.0f} {s / capacity:7.1%}" for name, s in parts.most_common()]
    share = f"{steps / capacity:.1%} of {workers} workers x {duration(wall)}"
    if booked > 1.01 * capacity:  # `work` trained runs too, whose wall time is no stage's
        share = f"{duration(steps)} of the workers' time, some of it before `study` was started"
    return [*lines, f"training took {share}"]
