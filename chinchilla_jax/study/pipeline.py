"""From text to a checked prediction: data, plan, IsoFLOP runs, prediction, held-out runs, report.

Every stage leaves what it makes in files and looks for it first, so a study that was stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator

from chinchilla_jax.config import RunConfig
from chinchilla_jax.files import write_json
from chinchilla_jax.parallel.cores import default_workers
from chinchilla_jax.study.folder import (
    MANIFEST,
    VERIFICATION,
    Manifest,
    manifests,
    read_json_or,
    read_manifest,
    read_result,
    write_manifest,
)
from chinchilla_jax.study.plan import HELD_OUT, describe, duration, estimate, plan, verification
from chinchilla_jax.study.pool import work

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
    study = pathlib.Path(study)
    manifest = plan(config)  # first of all, so that a plan that cannot work costs nothing
    workers = workers or default_workers(config)
    stages = _Stages(study, config, manifest, workers, echo)

    with stages.stage("data"):
        from chinchilla_jax.data import prepare

        prepare(config.data, echo)

    with stages.stage("plan"):
        written = write_manifest(study / MANIFEST, manifest)
        echo(f"{study / MANIFEST}: {'written' if written else 'as planned'}")
        describe(manifest, workers, echo)

    with stages.stage("isoflop runs"):
        work(study, MANIFEST, workers, echo)

    with stages.stage("prediction"):
        if (study / VERIFICATION).exists():
            predicted = read_manifest(study / VERIFICATION).header["predicted_params"]
            echo(f"{study / VERIFICATION}: predicted N = {predicted:.4g}, as before")
        else:
            from chinchilla_jax.scaling.runs import load_runs
            from chinchilla_jax.scaling.summary import forecast
            from chinchilla_jax.scaling.target import target_budget

            loaded = load_runs(study)
            prediction = forecast(loaded, target_budget(loaded), echo)
            describe(verification(study, prediction.best.params), workers, echo)

    with stages.stage("held-out runs"):
        work(study, VERIFICATION, workers, echo)

    with stages.stage("report"):
        from chinchilla_jax.scaling.report import write_report

        report = write_report(study)

    for line in where_the_time_went(study, workers):
        echo(line)
    echo(f"report: {report}")
    return report


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
        """Seconds of training still to come, at the speed of the finished runs or else the config's."""
        speed = self.config.study.flops_per_second
        finished = [(run, r) for run in self.manifest.runs if (r := read_result(self.study, run.name)) is not None]
        seconds = sum(r.get("seconds") or 0.0 for _, r in finished)
        faster = 1.0
        if seconds > 0:
            faster = sum(run.spent("executed") for run, r in finished if r.get("seconds")) / seconds / speed
        runs = [run for run in self.manifest.runs if read_result(self.study, run.name) is None]
        held_out = self.study / VERIFICATION
        if held_out.exists():
            verify = read_manifest(held_out).runs
            runs += [run for run in verify if read_result(self.study, run.name) is None]
        else:
            # Three runs at the held-out budget, each as long as the longest planned run is to its own.
            largest = max(self.manifest.runs, key=lambda run: run.budget)
            seconds = self.config.study.holdout_factor * largest.flops["executed"] / speed
            runs += [dataclasses.replace(largest, trunk=None, fork_step=0, estimated_seconds=seconds)] * len(HELD_OUT)
        return estimate(runs, self.workers) / faster if runs and name != "report" else 0.0


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
        lines.append(f"training took {parts.get('step', 0.0) / capacity:.1%} of {workers} workers x "
                     f"{duration(wall)}")  # fmt: skip
    return lines
