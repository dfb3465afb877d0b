"""How do runs fill slices? Each slice takes the longest run that nobody has as soon as it is free (longest processing
time first), which ends at most a third later than the best packing could (Graham 1969, theorem 2), where no run waits
for another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from chinchilla_jax.study.execute.status import training_order
from chinchilla_jax.study.folder import PlannedRun


@dataclasses.dataclass(frozen=True)
class Packing:
    """Which slice trains what, in this order, and for how long; nothing is reserved: slices pull their runs."""

    assigned: tuple[tuple[str, ...], ...]  # names of runs, by slice
    loads: tuple[float, ...]  # seconds of training, by slice
    makespan: float  # seconds until the last run ends
    enough: int  # slices that end within 1% of it

    @property
    def runs(self) -> int:
        return sum(map(len, self.assigned))

    @property
    def filled(self) -> float:
        """Share of the slices' time in which they train."""
        return sum(self.loads) / (len(self.loads) * self.makespan) if self.makespan else 1.0


def pack(runs: Sequence[PlannedRun], seconds: Mapping[str, float], slices: int) -> Packing:
    """Runs on so many slices, as workers take them: trunks first, then the longest first.

    `seconds` by the names of runs. A run waits for its trunk, where that is among `runs`.
    """
    assigned, loads, makespan = _schedule(runs, seconds, slices)
    low, high = 1, slices
    while low < high:  # fewer slices never end earlier, but for anomalies of waiting trunks
        middle = (low + high) // 2
        low, high = (low, middle) if _schedule(runs, seconds, middle)[2] <= 1.01 * makespan else (middle + 1, high)
    return Packing(tuple(map(tuple, assigned)), tuple(loads), makespan, low)


def _schedule(
    runs: Sequence[PlannedRun], seconds: Mapping[str, float], slices: int
) -> tuple[list[list[str]], list[float], float]:
    free, busy = [0.0] * slices, [0.0] * slices
    assigned: list[list[str]] = [[] for _ in range(slices)]
    ends: dict[str | None, float] = {}
    for run in training_order(runs, lambda run: seconds[run.name]):
        at = free.index(min(free))
        took = seconds[run.name]
        free[at] = ends[run.name] = max(free[at], ends.get(run.trunk, 0.0)) + took
        busy[at] += took
        assigned[at].append(run.name)
    return assigned, busy, max(free)
