"""How far is a study, and how long will the rest take? From the files the runs write; nothing is asked of the workers.

A run takes as long as finished runs of about its size took for the same work.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import pathlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from chinchilla_jax.base import files
from chinchilla_jax.base.words import Echo, duration
from chinchilla_jax.study import folder
from chinchilla_jax.study.execute import lease
from chinchilla_jax.study.folder import MANIFEST, PlannedRun, StudyError
from chinchilla_jax.study.ways import PLAIN
from chinchilla_jax.training.timing.clock import last_stamp, time_line

_UNFORECAST = ("trunk", "noise")  # roles
STATES = ("done", "running", "failed", "waiting", "damaged")
Seconds = Callable[[PlannedRun], float]  # how long a run takes from its start to its result
as_planned: Seconds = operator.attrgetter("estimated_seconds")


def pace(study: pathlib.Path) -> Seconds:
    """How long runs take, by those that are finished; without any, as planned.

    Steps are timed by the finished runs whose N is the nearest: larger models do more FLOP/s. Everything else (start,
    compilation, evaluation, checkpoints) takes what it took on average.
    """
    steps: dict[int, float] = defaultdict(float)
    work: dict[int, float] = defaultdict(float)
    other = []
    runs = folder.planned_runs(study) if files.exists(study / MANIFEST) else ()
    for run, result in folder.finished(study, runs, skip_damaged=True):  # a damaged one is named where it is needed
        step = (result.get("time") or {}).get("step")
        if step and result.get("seconds"):
            steps[run.params] += step
            work[run.params] += run.spent("executed")
            other.append(result["seconds"] - step)
    if not other:
        return as_planned

    def seconds(run: PlannedRun) -> float:
        size = min(steps, key=lambda params: abs(math.log(params / run.params)))
        return run.spent("executed") * steps[size] / work[size] + sum(other) / len(other)

    return seconds


def training_order(runs: Sequence[PlannedRun], seconds: Seconds = as_planned) -> list[PlannedRun]:
    """The order in which workers take runs: what others wait for first, then the longest first."""
    return sorted(runs, key=lambda run: (not run.keep_steps, -seconds(run)))


def estimate(runs: Sequence[PlannedRun], workers: int, seconds: Seconds = as_planned) -> float:
    """Seconds for `runs` when each of `workers` takes the next one of `training_order` as soon as it may."""
    loads = [0.0] * workers
    ends: dict[str | None, float] = {}
    for run in training_order(runs, seconds):
        worker = loads.index(min(loads))
        loads[worker] = max(loads[worker], ends.get(run.trunk, 0.0)) + seconds(run)
        ends[run.name] = loads[worker]
    return max(loads)


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """`state` is one of `STATES`, `failed` a run that diverged; `progress` in [0, 1]; `loss` validation nats per token
    when done, the latest training loss otherwise; `seconds_left` from the run's own speed, None if unknown; `forecast`,
    the loss at the end of a running one and its 95% interval; `wrong`, what the alarm says of it, or empty."""

    name: str
    role: str
    state: str
    progress: float = 0.0
    loss: float | None = None
    seconds: float | None = None
    seconds_left: float | None = None
    forecast: tuple[float, float, float] | None = None
    wrong: str = ""


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
    running = lease.alive(folder.run_folder(study, run.name) / lease.LEASE)
    booked = folder.last_metrics(study, run.name, file="timing.jsonl") if running and share > 0 else {}
    seconds = booked.get("seconds") or None
    left = seconds * (1.0 - share) / share if seconds else None
    return RunStatus(run.name, run.role, "running" if running else "waiting", share, loss, seconds, left)


def status(study: str | pathlib.Path, echo: Echo = print) -> list[RunStatus]:
    """Prints the table of a study's runs and a summary line. Raises StudyError if there is no manifest."""
    study = files.path(study)
    runs = folder.planned_runs(study, (MANIFEST, folder.VERIFICATION, folder.NOISE, folder.TUNE))
    otherwise = {run.name for run in runs if run.method not in ("", PLAIN)}
    rows, why_not = _with_forecasts(study, [run_status(study, run) for run in runs], otherwise)
    width = max([24, *(len(row.name) for row in rows)])
    end = f" {'at the end':>18}" if any(row.forecast for row in rows) else ""
    echo(f"{'run':{width}} {'role':9} {'state':8} {'progress':>8} {'loss':>8} {'time':>8} {'left':>8}{end}")
    for row in rows:
        echo(_line(row, width))
    for line in _time_spent(study, [run for run, row in zip(runs, rows, strict=True) if row.state != "damaged"]):
        echo(line)
    counts = Counter(row.state for row in rows)
    total = sum(run.spent() for run in runs)
    done = sum(row.progress * run.spent() for row, run in zip(rows, runs, strict=True)) / total
    states = ", ".join(f"{counts[state]} {state}" for state in STATES)
    echo(f"{time.strftime('%H:%M:%S')} {states}; {done:.1%} of {total:.3g} FLOPs")
    for row in rows:
        if row.wrong:
            echo(f"{row.name} goes wrong: {row.wrong}")
        if row.state == "damaged":
            echo(f"{folder.run_folder(study, row.name) / folder.RESULT} is no result; delete it to have it made again")
    if why_not:
        echo(f"no forecast of running runs: {why_not}")
    return rows


def _line(row: RunStatus, width: int) -> str:
    loss = "" if row.loss is None else f"{row.loss:.4f}"
    spent, left = ("" if s is None else duration(s) for s in (row.seconds, row.seconds_left))
    line = f"{row.name:{width}} {row.role:9} {row.state:8} {row.progress:8.1%} {loss:>8} {spent:>8} {left:>8}"
    if row.forecast is None:
        return line
    end, low, high = row.forecast
    return f"{line} {f'{end:.4f} +- {0.5 * (high - low):.4f}':>18}{' !' if row.wrong else ''}"


def _with_forecasts(
    study: pathlib.Path, rows: list[RunStatus], otherwise: Collection[str]
) -> tuple[list[RunStatus], str]:
    """The rows, running ones with their forecasts and alarms, and why there are none; nothing is read if none runs.

    Runs that are trained `otherwise` than plainly have none.
    """
    running = [row for row in rows if row.state == "running" and row.progress > 0.0 and row.name not in otherwise]
    names = [row.name for row in running if row.role not in _UNFORECAST]
    if not names:
        return rows, ""
    from chinchilla_jax.scaling.read.in_flight import load_in_flight
    from chinchilla_jax.scaling.read.runs import FitRefused
    from chinchilla_jax.scaling.report.forecasts import outlook

    try:
        seen = outlook(load_in_flight(study))  # one of `names` may have ended in the meantime
    except FitRefused as refused:
        return rows, str(refused)
    ends = {f.name: (f.loss, f.low, f.high) for f in seen.forecasts if f.name in names}
    wrong = {name: why for name, why in seen.going_wrong().items() if name in names}
    return [dataclasses.replace(row, forecast=ends.get(row.name), wrong=wrong.get(row.name, "")) for row in rows], ""


def _time_spent(study: pathlib.Path, runs: Iterable[PlannedRun]) -> Iterator[str]:
    """A line with the shares of the time of all runs, finished or not, and the finished ones' utilisation averaged over
    their step time.
    """
    parts: Counter[str] = Counter()
    used: Counter[str] = Counter()
    steps = 0.0
    for run in runs:
        result = folder.read_result(study, run.name) or {}
        spent = result.get("time") or (last_stamp(folder.run_folder(study, run.name)) or {}).get("time") or {}
        parts.update(spent)
        if isinstance(result.get("utilisation"), dict):
            seconds = spent.get("step", 0.0)
            steps += seconds
            used.update({name: share * seconds for name, share in result["utilisation"]["step"].items()})
    if parts:
        yield time_line(parts, {"step": {name: total / steps for name, total in used.items()}} if steps else None)
