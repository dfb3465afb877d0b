"""Which part of a loss is luck of the training, which of the evaluation, and what is known of each?

Runs that differ only in their seed show the first, pooled over the study. The second is the standard error that an
evaluation states for its loss, over batches of its rows: how far the loss would move on other text of the same kind.
All runs are evaluated on the same rows, so it is none of what they differ by. Where neither is known, the scatter about
the profiles stands for both.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from chinchilla_jax.scaling.read.runs import Run, noise_of_repeats, stated_number

_ENOUGH = 3  # degrees of freedom below which seeds say nothing
STATED = ("validation_standard_error", "loss_standard_error", "loss_stderr", "loss_std_err", "loss_se")


@dataclasses.dataclass(frozen=True)
class NoiseParts:
    """Relative standard deviations: `scatter` of a run about its profile or surface, `seeds` of one run by `freedom`
    degrees of freedom of repeated ones, `evaluation` of a loss over other rows; None where not known."""

    scatter: float
    seeds: float | None
    freedom: int
    evaluation: float | None

    def describe(self) -> str:
        """One sentence."""
        first = "intervals of a loss are of one trained run, evaluated on the same rows as those fitted"
        if self.seeds is None and self.evaluation is None:
            return (
                f"{first}; neither seeds nor errors of the evaluation are known: the scatter about the fit, "
                f"{self.scatter:.2%}, stands for both"
            )
        parts = []
        if self.seeds is not None:
            known = f"{self.freedom} degrees of freedom"
            parts.append(f"runs that differ in their seed differ by {self.seeds:.2%} ({known}), the fit misses runs by "
                         f"{self.scatter:.2%}")  # fmt: skip
        else:
            parts.append(f"no seeds are repeated: the scatter about the fit, {self.scatter:.2%}, stands for them")
        if self.evaluation is not None:
            parts.append(f"on other text of the same kind a loss would move by {self.evaluation:.2%}, all runs alike")
        return "; ".join([first, *parts])


def noise_parts(runs: Sequence[Run], details: Mapping[str, Mapping[str, Any]], scatter: float) -> NoiseParts:
    """Of `runs`, with what their results or rows say besides (`LoadedRuns.details`)."""
    cells: dict[tuple[Any, ...], list[float]] = {}
    for run in runs:
        cells.setdefault((run.role, run.budget, run.params, run.tokens), []).append(run.loss)
    seeds, freedom = noise_of_repeats(cells.values())
    errors = [error / run.loss for run in runs if (error := _stated(details.get(run.name, {})))]
    evaluation = math.sqrt(sum(error**2 for error in errors) / len(errors)) if errors else None
    return NoiseParts(scatter, seeds if freedom >= _ENOUGH else None, freedom, evaluation)


def _stated(details: Mapping[str, Any]) -> float | None:
    validation = details.get("validation")
    measured = validation if isinstance(validation, dict) else {}
    return stated_number(measured, STATED) or stated_number(details, STATED)
