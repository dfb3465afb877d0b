"""How far is a study? One row a run, from the files the runs write; nothing is asked of the workers."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections import Counter
from collections.abc import Iterable

from chinchilla_jax.base.words import Echo, duration
from chinchilla_jax.study import folder
from chinchilla_jax.study.execute import lease
from chinchilla_jax.study.folder import MANIFEST, PlannedRun, StudyError
from chinchilla_jax.training.timing.goodput import last_stamp, time_line

STATES = ("done", "running", "failed", "waiting", "damaged")


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """`state` is one of `STATES`, `failed` a run that diverged; `progress` in [0, 1]; `loss` validation nats per token
    when done, the latest training loss otherwise; `seconds_left` from the run's own speed, None if unknown."""

    name: str
    role: str
    state: str
    progress: float = 0.0
    loss: float | None = None
    seconds: float | None = None
    seconds_left: float | None = None

    def row(self) -> str:
        """Its line of the table."""
        loss = "" if self.loss is None else f"{self.loss:.4f}"
        spent, left = ("" if s is None else duration(s) for s in (self.seconds, self.seconds_left))
        return f"{self.name:24} {self.role:9} {self.state:8} {self.progress:8.1%} {loss:>8} {spent:>8} {left:>8}"


def run_status(study: pathlib.Path, run: PlannedRun) -> RunStatus:
    """The state of one run."""
    try:
        result = folder.read_result(study, run.name)
    except StudyError:
        return RunStatus(run.name, run.role, "damaged")
    if result is not None:
        state = "failed" if result.get("diverged") else "done"
        return RunStatus(run.name, run.role, state, 1.0, result.get("loss"), result.get("seconds"))
    share, loss = folder.progress(study, run), folder.last_metrics(study, run.name).get("loss")
    if not lease.alive(folder.run_folder(study, run.name) / lease.LEASE):
        return RunStatus(run.name, run.role, "waiting", share, loss)
    seconds = folder.last_metrics(study, run.name, file="timing.jsonl").get("seconds")
    if not seconds or share <= 0:
        return RunStatus(run.name, run.role, "running", share, loss)
    return RunStatus(run.name, run.role, "running", share, loss, seconds, seconds * (1.0 - share) / share)


def time_spent(study: pathlib.Path, runs: Iterable[PlannedRun]) -> tuple[dict[str, float], dict | None]:
    """Seconds by part summed over runs, finished or not, and the finished ones' utilisation averaged over their time.

    Returns:
      As `training.goodput.time_line` takes them; no utilisation before a run is finished.
    """
    parts: Counter[str] = Counter()
    steps, used = 0.0, Counter()
    for run in runs:
        try:
            result = folder.read_result(study, run.name) or {}
        except StudyError:
            continue
        spent = result.get("time") or (last_stamp(folder.run_folder(study, run.name)) or {}).get("time") or {}
        parts.update(spent)
        if isinstance(result.get("utilisation"), dict):
            seconds = spent.get("step", 0.0)
            steps += seconds
            used.update({name: share * seconds for name, share in result["utilisation"]["step"].items()})
    return dict(parts), {"step": {name: total / steps for name, total in used.items()}} if steps else None


def status(study: str | pathlib.Path, echo: Echo = print) -> list[RunStatus]:
    """Prints the table of a study's runs and a summary line. Raises StudyError if there is no manifest."""
    study = pathlib.Path(study)
    runs = folder.planned_runs(study, (MANIFEST, folder.VERIFICATION, folder.NOISE))
    echo(f"{'run':24} {'role':9} {'state':8} {'progress':>8} {'loss':>8} {'time':>8} {'left':>8}")
    rows = []
    for run in runs:
        rows.append(run_status(study, run))
        echo(rows[-1].row())
    parts, used = time_spent(study, runs)
    if parts:
        echo(time_line(parts, used))
    counts = Counter(row.state for row in rows)
    total = sum(run.spent() for run in runs)
    done = sum(row.progress * run.spent() for row, run in zip(rows, runs, strict=True)) / total
    states = ", ".join(f"{counts[state]} {state}" for state in STATES)
    echo(f"{time.strftime('%H:%M:%S')} {states}; {done:.1%} of {total:.3g} FLOPs")
    for row in rows:
        if row.state == "damaged":
            echo(f"{folder.run_folder(study, row.name) / folder.RESULT} is no result; delete it to have it made again")
    return rows
