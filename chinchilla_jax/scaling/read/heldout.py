"""Which models were trained at the held-out budget? Runs that differ only in their seed are one model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from chinchilla_jax.scaling.read.runs import Run


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """One held-out size. `runs` are its trainings, in their order; `loss` is their mean, nats per token."""

    role: str
    params: float
    tokens: float
    flops: float
    loss: float
    runs: tuple[Run, ...]

    def __str__(self) -> str:
        """`2.5102`, or `2.5102 (mean of 2 seeds: 2.5037, 2.5167)`."""
        if len(self.runs) == 1:
            return f"{self.loss:.4f}"
        seeds = ", ".join(f"{run.loss:.4f}" for run in self.runs)
        return f"{self.loss:.4f} (mean of {len(self.runs)} seeds: {seeds})"


def held_out(runs: Sequence[Run], budget: float | None = None) -> tuple[HeldOut, ...]:
    """The held-out models among `runs`, in the order of their first trainings.

    Args:
      budget: FLOPs they were held out at; runs of another budget are left out. None: any.
    """
    models: dict[tuple, list[Run]] = {}
    for run in runs:
        if run.role != "isoflop" and (budget is None or run.budget in (None, budget)):
            models.setdefault((run.role, run.params, run.tokens, run.flops), []).append(run)
    return tuple(HeldOut(*key, sum(run.loss for run in same) / len(same), tuple(same)) for key, same in models.items())
