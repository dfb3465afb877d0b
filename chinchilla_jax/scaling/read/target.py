"""Which budget is a set of runs asked about, when nobody says?"""

from __future__ import annotations

from chinchilla_jax.config import StudyConfig
from chinchilla_jax.scaling.read.runs import LoadedRuns


def target_budget(loaded: LoadedRuns) -> float | None:
    """FLOPs of the held-out runs, planned or done, else `StudyConfig.holdout_factor` times the largest budget.

    A half-finished study is asked about the budget its config holds out, not a multiple of what is there. None without
    any run.
    """
    held = [run.budget for run in loaded.runs if run.role != "isoflop" and run.budget]
    held += [
        row["budget"]
        for row in loaded.planned.values()
        if row.get("role", "isoflop") not in ("isoflop", "trunk") and isinstance(row.get("budget"), (int, float))
    ]
    if held:
        return float(max(held))
    study = ((loaded.header.get("config") or {}).get("study")) or {}
    factor = study.get("holdout_factor", StudyConfig().holdout_factor)
    planned = [*study.get("budgets", ()), *(row["budget"] for row in loaded.planned.values() if row.get("budget"))]
    fitted = [run.budget or run.flops for run in loaded.role("isoflop")]
    return float(factor * max(planned or fitted)) if planned or fitted else None
