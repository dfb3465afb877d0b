"""Which trainings are under way, how far are they, and under which schedule do they and the finished ones learn?

Of a study, or a folder of run directories, a run is under way that has written metrics and no result; of a table, a row
whose `state` is running, or where there are no states a row without a loss, or whose curve stops before its D. N, D and
C of such a run are those planned; its curve is what it has logged.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.scaling.read.directories import read_curve
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import BadRow, Curve, FitRefused, LoadedRuns, Run, flops_of
from chinchilla_jax.scaling.read.table.unfinished import unfinished_of_table

_SAME = 0.05  # two schedules are one if warm-up, cooldown and final rate differ by no more, as shares
_NOT_FORECAST = ("trunk",)  # roles: a trunk is trained for its branches, which start before it ends


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the learning rate goes: `kind` is `cosine`, `linear`, `constant`, `cooldown` or `cooldown_sqrt`; `warmup` and
    `cooldown` are shares of D, `final` of the peak rate."""

    kind: str
    warmup: float = 0.0
    final: float = 0.1
    cooldown: float = 0.0

    def rate(self, share: float) -> float:
        """The learning rate at a share of the training, over its peak."""
        if share < self.warmup:
            return share / self.warmup
        along = min((share - self.warmup) / max(1.0 - self.warmup, 1e-9), 1.0)
        left = min((1.0 - share) / self.cooldown, 1.0) if self.cooldown else 1.0
        heights = {
            "constant": 1.0,
            "linear": 1.0 - along,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * along)),
            "cooldown": left,
            "cooldown_sqrt": 1.0 - math.sqrt(1.0 - left),
        }
        return self.final + (1.0 - self.final) * heights[self.kind] if self.kind != "constant" else 1.0

    def resembles(self, other: Schedule) -> bool:
        """Whether the rates of both go the same way."""
        near = all(abs(getattr(self, name) - getattr(other, name)) < _SAME for name in ("warmup", "final", "cooldown"))
        return self.kind == other.kind and near

    def __str__(self) -> str:
        """`cosine to 10%` or `cooldown over the last 20% to 0%`."""
        over = f" over the last {self.cooldown:.0%}" if self.kind.startswith("cooldown") else ""
        return self.kind if self.kind == "constant" else f"{self.kind}{over} to {self.final:.0%}"


@dataclasses.dataclass(frozen=True)
class Running:
    """A training under way: planned `params` N, `tokens` D and `flops` C, counted as the finished runs' are; `curve` so
    far; `schedule` where it is known; `seed` as in `Run`."""

    name: str
    params: float
    tokens: float
    flops: float
    curve: Curve
    schedule: Schedule | None = None
    seed: str = ""

    @property
    def share(self) -> float:
        """Of its training that is done."""
        return min(float(self.curve.tokens[-1]) / self.tokens, 1.0)


@dataclasses.dataclass(frozen=True)
class InFlight:
    """What a path holds: `loaded`, the finished runs; `running`; `schedules` by name of the finished runs, where they
    are known; `bad`, runs under way that cannot be forecast, and why."""

    loaded: LoadedRuns
    running: tuple[Running, ...]
    schedules: Mapping[str, Schedule]
    bad: tuple[BadRow, ...]

    @property
    def finished(self) -> tuple[Run, ...]:
        """The finished runs."""
        return self.loaded.runs


def load_in_flight(path: str | os.PathLike, names: Sequence[str] = (), **reading: Any) -> InFlight:
    """The finished runs and those under way at `path`; of the latter only those with these `names`, if any.

    `reading` is as for `load_runs`: `columns`, `curves`, `where`, `best_per_cell`.

    Raises:
      FitRefused: as `load_runs`; `not_running`, when nothing is under way, or not what `names` asks for.
    """
    path = files.path(path)
    if files.exists(path) and not files.is_folder(path):
        running, finished, bad = unfinished_of_table(path, reading)
        under_way = [Running(r.name, r.params, r.tokens, r.flops, r.curve, seed=r.seed) for r in running if r.curve]
        flight = InFlight(finished, tuple(under_way), {}, tuple(bad))
    else:
        flight = _of_directory(load_runs(path, **reading), path)
    return _chosen(flight, names)


def _chosen(flight: InFlight, names: Sequence[str]) -> InFlight:
    present = {run.name for run in flight.running}
    why = {row.where: row.reason for row in flight.bad}
    for name in names:
        if name not in present:
            done = any(run.name == name for run in flight.finished)
            words = "it is finished" if done else why.get(name, "no run of that name has written metrics")
            raise FitRefused("not_running", f"{flight.loaded.source}: {name} cannot be forecast: {words}")
    if not present:
        if flight.bad:
            words = f"{len(flight.bad)} runs are under way and none can be forecast; the first: {flight.bad[0]}"
            raise FitRefused("not_running", f"{flight.loaded.source}: {words}")
        fix = "start one, or ask `predict` about runs that are only planned"
        raise FitRefused("not_running", f"{flight.loaded.source}: no run is under way; {fix}")
    running = tuple(run for run in flight.running if not names or run.name in names)
    return dataclasses.replace(flight, running=running)


def _of_directory(loaded: LoadedRuns, path: pathlib.Path) -> InFlight:
    """Run directories: what has metrics and no result is under way."""
    running: list[Running] = []
    bad: list[BadRow] = []
    for name, folder, plan in _plans(loaded, path):
        if files.exists(folder / "result.json") or not files.exists(folder / "metrics.jsonl"):
            continue
        if _trained_otherwise(plan):
            bad.append(BadRow(name, "is not trained plainly: curves of plain runs say nothing about its end"))
            continue
        try:
            run = _planned(name, plan, loaded)
        except (KeyError, TypeError, ValueError) as error:
            bad.append(BadRow(name, f"its plan cannot be read ({type(error).__name__}: {error})"))
            continue
        curve, problems = read_curve(run, folder / "metrics.jsonl", growing=True)
        if curve is None:
            bad += problems or [BadRow(name, "no line of metrics.jsonl has a loss yet")]
        else:
            schedule = schedule_of(plan.get("config"), run.tokens)
            running.append(Running(name, run.params, run.tokens, run.flops, curve, schedule, run.seed))
    schedules = {}
    for run in loaded.runs:
        planned = loaded.planned.get(run.name) or _config(path, run.name)
        if schedule := schedule_of(planned.get("config"), run.tokens):
            schedules[run.name] = schedule
    return InFlight(loaded, tuple(running), schedules, tuple(bad))


def _plans(loaded: LoadedRuns, path: pathlib.Path) -> Iterator[tuple[str, pathlib.Path, Mapping[str, Any]]]:
    """(name, folder, what is planned) of every run that may be under way."""
    if loaded.planned:
        for name, line in loaded.planned.items():
            if line.get("role") not in _NOT_FORECAST:
                yield name, path / "runs" / name, line
        return
    alone = files.exists(path / "config.json")
    for folder in [path] if alone else [child for child in files.glob(path) if files.is_folder(child)]:
        if files.exists(folder / "config.json") and files.exists(folder / "ledger.json"):
            yield files.resolved(folder).name, folder, _config(folder) | _object(folder / "ledger.json")


def _config(path: pathlib.Path, name: str = "") -> dict[str, Any]:
    """The record in `config.json` of a run directory, {} where there is none."""
    for folder in (path / name, path):
        if files.exists(folder / "config.json"):
            return _object(folder / "config.json")
    return {}


def _object(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file, {} where it is none."""
    try:
        value = files.read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _trained_otherwise(plan: Mapping[str, Any]) -> bool:
    """Whether a manifest line names a way to train other than plainly, or a config a method."""
    config = plan.get("config")
    return plan.get("method") not in (None, "", "plain") or bool(isinstance(config, dict) and config.get("method"))


def _planned(name: str, plan: Mapping[str, Any], loaded: LoadedRuns) -> Run:
    """What a manifest line, or a ledger, plans, counted as the finished runs are; its loss is NaN."""
    params = plan["params_non_embedding" if loaded.params_count.startswith("non-embedding") else "params"]
    seed = (plan.get("config") or {}).get("train", {}).get("seed")
    flops = (plan.get("flops") or {}).get(loaded.convention)
    if flops is None:  # as the finished runs count
        each = flops_of(loaded.runs)
        flops = plan["tokens"] * (float(each(params)) if callable(each) else each * params)
    numbers = (float(params), float(plan["tokens"]), float(flops), math.nan)
    return Run(name, *numbers, seed=str(seed) if isinstance(seed, int) else "")


def schedule_of(config: Any, tokens: float) -> Schedule | None:
    """The schedule of a run's config as it is stored, for D = `tokens`; None where there is none that is known."""
    try:
        optimizer, train = config["optimizer"], config["train"]
        warmup = optimizer["warmup_steps"] * train["batch_size"] * config["data"]["seq_len"] / tokens
        is_cooldown = optimizer["schedule"].startswith("cooldown")
        cooldown = optimizer["cooldown_fraction"] if is_cooldown else 0.0
        return Schedule(optimizer["schedule"], warmup, optimizer["final_lr_fraction"], cooldown)
    except (KeyError, TypeError, AttributeError):
        return None
