"""How long will a run take? As long as finished runs of about its size took for the same work."""

from __future__ import annotations

import collections
import math
import pathlib
from collections.abc import Callable, Iterable

from chinchilla_jax.study.folder import MANIFEST, PlannedRun, StudyError, manifests, read_result


def pace(study: pathlib.Path) -> Callable[[PlannedRun], float]:
    """Seconds that a run takes from its start to its result, as a function of the run.

    Steps are timed by the finished runs whose N is the nearest: larger models do more FLOP/s. Everything else (start,
    compilation, evaluation, checkpoints) takes what it took on average. Without finished runs: what was planned.
    """
    steps, work, other = collections.Counter(), collections.Counter(), []
    for run, result in _finished(study):
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


def _finished(study: pathlib.Path) -> Iterable[tuple[PlannedRun, dict]]:
    for manifest in manifests(study) if (study / MANIFEST).exists() else ():
        for run in manifest.runs:
            try:
                result = read_result(study, run.name)
            except StudyError:  # damaged: named where it is needed
                continue
            if result is not None:
                yield run, result
