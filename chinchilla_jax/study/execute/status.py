"""How far is a study? One row a run, from the files the runs write; nothing is asked of the workers."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections import Counter
from collections.abc import Callable, Iterable

from chinchilla_jax.study.execute import lease
from chinchilla_jax.study.folder import (
    MANIFEST,
    NOISE,
    VERIFICATION,
    PlannedRun,
    StudyError,
    last_metrics,
    manifests,
    progress,
    read_result,
    run_folder,
)
from chinchilla_jax.study.plan import duration
from chinchilla_jax.training.timing.goodput import last_stamp, time_line


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """State `done`, `running`, `failed` (diverged) or `waiting`; `progress` in [0, 1]; `loss` validation nats per token
    when done, the latest training loss otherwise; `seconds_left` from the run's own speed, None if unknown."""

    name: str
    role: str
    state: str
    progress: float
    loss: float | None
    seconds: float | None
    seconds_left: float | None


def run_status(study: pathlib.Path, run: PlannedRun) -> RunStatus:
    """The state of one run."""
    try:
        result = read_result(study, run.name)
    except StudyError:
        return RunStatus(run.name, run.role, "damaged", 0.0, None, None, None)
    if result is not None:
        failed = bool(result.get("diverged"))
        return RunStatus(run.name, run.role, "failed" if failed else "done", 1.0, result.get("loss"),
                         result.get("seconds"), None)  # fmt: skip
    path = run_folder(study, run.name) / lease.LEASE
    share, loss = progress(study, run), last_metrics(study, run.name).get("loss")
    if not lease.alive(path):
        return RunStatus(run.name, run.role, "waiting", share, loss, None, None)
    seconds = left = None
    timing = last_metrics(study, run.name, file="timing.jsonl").get("seconds")
    if timing and share > 0:
        seconds, left = timing, timing * (1.0 - share) / share
    return RunStatus(run.name, run.role, "running", share, loss, seconds, left)


def time_spent(study: pathlib.Path, runs: Iterable[PlannedRun]) -> tuple[dict[str, float], dict | None]:
    """Seconds by part summed over runs, finished or not, and the finished ones' utilisation averaged over their time.

    Returns:
      As `training.goodput.time_line` takes them; no utilisation before a run is finished.
    """
    parts: Counter[str] = Counter()
    steps, used = 0.0, Counter()
    for run in runs:
        try:
            result = read_result(study, run.name) or {}
        except StudyError:
            continue
        spent = result.get("time") or (last_stamp(run_folder(study, run.name)) or {}).get("time") or {}
        parts.update(spent)
        if isinstance(result.get("utilisation"), dict):
            seconds = spent.get("step", 0.0)
            steps += seconds
            used.update({name: share * seconds for name, share in result["utilisation"]["step"].items()})
    return dict(parts), {"step": {name: total / steps for name, total in used.items()}} if steps else None


def status(study: str | pathlib.Path, echo: Callable[[str], None] = print) -> list[RunStatus]:
    """Prints the table of a study's runs and a summary line.

    Raises:
      StudyError: there is no manifest.
    """
    study = pathlib.Path(study)
    planned = manifests(study, (MANIFEST, VERIFICATION, NOISE))
    rows, done_flops, total_flops = [], 0.0, 0.0
    echo(f"{'run':24} {'role':9} {'state':8} {'progress':>8} {'loss':>8} {'time':>8} {'left':>8}")
    for manifest in planned:
        for run in manifest.runs:
            row = run_status(study, run)
            rows.append(row)
            done_flops += row.progress * run.spent()
            total_flops += run.spent()
            loss = "" if row.loss is None else f"{row.loss:.4f}"
            spent, left = ("" if s is None else duration(s) for s in (row.seconds, row.seconds_left))
            echo(f"{row.name:24} {row.role:9} {row.state:8} {row.progress:8.1%} {loss:>8} {spent:>8} {left:>8}")
    parts, used = time_spent(study, (run for manifest in planned for run in manifest.runs))
    if parts:
        echo(time_line(parts, used))
    states = ("done", "running", "failed", "waiting", "damaged")
    counts = {state: sum(row.state == state for row in rows) for state in states}
    echo(f"{time.strftime('%H:%M:%S')} {', '.join(f'{n} {state}' for state, n in counts.items())}; "
         f"{done_flops / total_flops:.1%} of {total_flops:.3g} FLOPs")  # fmt: skip
    for row in rows:
        if row.state == "damaged":
            echo(f"{run_folder(study, row.name) / 'result.json'} is no result; delete it to have it made again")
    return rows
