"""From text to a checked prediction: data, plan, IsoFLOP runs, prediction, held-out runs, report.

Every stage leaves what it makes in files and looks for it first, so a study that was stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator

from chinchilla_jax.base.files import write_json
from chinchilla_jax.config import RunConfig
from chinchilla_jax.parallel.job.cores import default_workers
from chinchilla_jax.study.execute.pace import pace
from chinchilla_jax.study.execute.pool import standing_by, work
from chinchilla_jax.study.execute.reuse import reuse
from chinchilla_jax.study.folder import (
    MANIFEST,
    NOISE,
    VERIFICATION,
    Manifest,
    manifests,
    progress,
    read_json_or,
    read_manifest,
    read_result,
    training_order,
    write_manifest,
)
from chinchilla_jax.study.noise.foresee import foresee
from chinchilla_jax.study.plan import describe, duration, estimate, holdout_runs, plan, verification

STAGES = ("data", "plan", "isoflop runs", "prediction", "held-out runs", "report")


def run_study(
    config: RunConfig, study: str | pathlib.Path, workers: int | None = None, echo: Callable[[str], None] = print
) -> pathlib.Path:
    """Does whatever of a study is not done yet; returns the path of its report.

    Args:
      workers: runs that train at the same time; `cores.default_workers` unless given.

    Raises:
      ConfigError, DataError, StudyError, FitRefused: see the stages; each says what to do.
      Stopped: a signal came; what was in progress is saved.
    """
    manifest = plan(config)  # first of all, so that a plan that cannot work costs nothing
    workers = workers or default_workers(config)
    with contextlib.ExitStack() as early:
        return _run_stages(config, pathlib.Path(study), manifest, workers, echo, early)


def _run_stages(
    config: RunConfig,
    study: pathlib.Path,
    manifest: Manifest,
    workers: int,
    echo: Callable[[str], None],
    early: contextlib.ExitStack,
) -> pathlib.Path:
    """`early` ends the workers that were started ahead of a stage which never came."""
    stages = _Stages(study, config, manifest, workers, echo)

    # While the text is prepared on some core, workers import JAX and compile on the others.
    ready = None
    waiting = [run for run in training_order(manifest.runs) if read_result(study, run.name) is None]
    if waiting and not _prepared(config):
        count = min(workers, len(waiting))
        ready = early.enter_context(standing_by(study, MANIFEST, config, waiting, count, echo))

    with stages.stage("data"):
        from chinchilla_jax.data import prepare

        prepare(config.data, echo)

    with stages.stage("plan"):
        written = write_manifest(study / MANIFEST, manifest)
        echo(f"{study / MANIFEST}: {'written' if written else 'as planned'}")
        describe(manifest, workers, echo)
        foresee(manifest, study, echo)

    with stages.stage("isoflop runs"):
        if (study / NOISE).exists():
            reuse(study, manifest.runs, read_manifest(study / NOISE).runs, echo)
        work(study, MANIFEST, workers, echo, ready=ready)

    # While the fits are made they import JAX again; nobody knows yet what to compile.
    ready = None
    if not (study / VERIFICATION).exists():
        ready = early.enter_context(standing_by(study, VERIFICATION, config, (), workers, echo))

    with stages.stage("prediction"):
        if (study / VERIFICATION).exists():
            predicted = read_manifest(study / VERIFICATION).header["predicted_params"]
            echo(f"{study / VERIFICATION}: predicted N = {predicted:.4g}, as before")
        else:
            from chinchilla_jax.scaling.read.load import load_runs
            from chinchilla_jax.scaling.read.target import target_budget
            from chinchilla_jax.scaling.report.summary import forecast, remarks

            loaded = load_runs(study)
            prediction = forecast(loaded, target_budget(loaded), echo)
            remarks(prediction, loaded, echo)
            describe(verification(study, prediction.best.params), workers, echo)

    with stages.stage("held-out runs"):
        work(study, VERIFICATION, workers, echo, ready=ready)

    with stages.stage("report"):
        from chinchilla_jax.scaling.report.report import write_report

        report = write_report(study)

    for line in where_the_time_went(study, workers):
        echo(line)
    echo(f"report: {report}")
    return report


def _prepared(config: RunConfig) -> bool:
    """Whether the text is prepared already."""
    from chinchilla_jax.data import DataError, store_path

    try:
        return store_path(config.data).exists()
    except DataError:
        return False


class _Stages:
    """Banners, and the seconds each stage took over all restarts."""

    def __init__(self, study: pathlib.Path, config: RunConfig, manifest: Manifest, workers: int, echo):
        self.study, self.config, self.manifest, self.workers, self.echo = study, config, manifest, workers, echo
        self.started = time.monotonic()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        number = STAGES.index(name) + 1
        self.echo(f"=== {number}/{len(STAGES)} {name}: {duration(time.monotonic() - self.started)} elapsed, "
                  f"about {duration(self._left(name))} of training left ===")  # fmt: skip
        start = time.monotonic()
        try:
            yield
        finally:  # also when interrupted: that time was spent
            path = self.study / "stages.json"
            seconds = read_json_or(path, {})
            seconds[name] = seconds.get(name, 0.0) + time.monotonic() - start
            write_json(path, seconds)

    def _left(self, name: str) -> float:
        """Seconds of training still to come, at the pace of the finished runs or else the config's."""
        runs = [run for run in self.manifest.runs if read_result(self.study, run.name) is None]
        held_out = self.study / VERIFICATION
        if held_out.exists():
            verify = read_manifest(held_out).runs
            runs += [run for run in verify if read_result(self.study, run.name) is None]
        else:
            # As many runs of the held-out budget, which is so many times that of the largest planned run.
            largest = max(self.manifest.runs, key=lambda run: (run.budget, run.params))
            times = self.config.study.holdout_factor
            flops = {convention: times * count for convention, count in largest.flops.items()}
            seconds = flops["executed"] / self.config.study.flops_per_second
            run = dataclasses.replace(
                largest, name="held-out", trunk=None, fork_step=0, flops=flops, estimated_seconds=seconds
            )
            runs += [run] * holdout_runs(self.config)
        seconds = pace(self.study)
        left = [
            dataclasses.replace(run, estimated_seconds=seconds(run) * (1.0 - progress(self.study, run))) for run in runs
        ]
        return estimate(left, self.workers) if left and name != "report" else 0.0


def where_the_time_went(study: pathlib.Path, workers: int) -> list[str]:
    """A table, as lines: the study's wall time by stage, its workers' time by part, the share spent training.

    The share is the seconds of steps summed over runs, over workers * wall time: what is missing is the other parts of
    `training.goodput`, and workers that waited for each other at the end.
    """
    stages = read_json_or(study / "stages.json", {})
    wall = sum(stages.values())
    lines = ["where the time went", f"  {'stage':24} {'wall':>9} {'share':>7}"]
    lines += [f"  {name:24} {duration(s):>9} {s / wall:7.1%}" for name, s in stages.items() if wall]
    lines.append(f"  {'total':24} {duration(wall):>9}")
    parts: dict[str, float] = {}
    for manifest in manifests(study):
        for run in manifest.runs:
            result = read_result(study, run.name) or {}
            spent = dict(result.get("time") or {})
            spent["other"] = max(0.0, (result.get("seconds") or 0.0) - sum(spent.values()))
            for part, seconds in spent.items():
                parts[part] = parts.get(part, 0.0) + seconds
    capacity = workers * wall
    if capacity:
        parts["outside runs, waiting"] = max(0.0, capacity - sum(parts.values()))
        lines.append(f"  {f'part, over {workers} workers':24} {'seconds':>9} {'share':>7}")
        lines += [f"  {name:24} {s:9.0f} {s / capacity:7.1%}" for name, s in sorted(parts.items(), key=lambda p: -p[1])]
        steps = parts.get("step", 0.0)
        share = f"{steps / capacity:.1%} of {workers} workers x {duration(wall)}"
        if sum(parts.values()) > 1.01 * capacity:  # `work` trained runs too, whose wall time is no stage's
            share = f"{duration(steps)} of the workers' time, some of it before `study` was started"
        lines.append(f"training took {share}")
    return lines
