"""How long will runs take? As long as finished runs of about their size took for the same work."""

from __future__ import annotations

import collections
import math
import pathlib
from collections.abc import Callable, Sequence

from chinchilla_jax.base import files
from chinchilla_jax.study.folder import MANIFEST, PlannedRun, finished, planned_runs, training_order


def pace(study: pathlib.Path) -> Callable[[PlannedRun], float]:
    """Seconds that a run takes from its start to its result, as a function of the run.

    Steps are timed by the finished runs whose N is the nearest: larger models do more FLOP/s. Everything else (start,
    compilation, evaluation, checkpoints) takes what it took on average. Without finished runs: what was planned.
    """
    steps, work, other = collections.Counter(), collections.Counter(), []
    runs = planned_runs(study) if files.exists(study / MANIFEST) else ()
    for run, result in finished(study, runs, skip_damaged=True):  # a damaged one is named where it is needed
        step = (result.get("time") or {}).get("step")
        if step and result.get("seconds"):
            steps[run.params] += step
            work[run.params] += run.spent("executed")
            other.append(result["seconds"] - step)
    if not other:
        return lambda run: run.estimated_seconds

    def seconds(run: PlannedRun) -> float:
        size = min(steps, key=lambda params: abs(math.log(params / run.params)))
        return run.spent("executed") * steps[size] / work[size] + sum(other) / len(other)

    return seconds


def estimate(
    runs: Sequence[PlannedRun], workers: int, seconds: Callable[[PlannedRun], float] = lambda run: run.estimated_seconds
) -> float:
    """Seconds for `runs` when each of `workers` takes the next one of `training_order` as soon as it may."""
    loads, ends = [0.0] * workers, {}
    for run in training_order(runs, seconds):
        worker = loads.index(min(loads))
        loads[worker] = max(loads[worker], ends.get(run.trunk, 0.0)) + seconds(run)
        ends[run.name] = loads[worker]
    return max(loads)
