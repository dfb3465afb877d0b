"""Which runs does a study get next? Those that `suggest` proposes, as a further manifest beside the first.

STUDY/next.jsonl, next_2.jsonl ...    planned like the first, which stays as it is; role `isoflop`: once finished,
                                      they are fitted with the others
"""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

from chinchilla_jax.base.words import Echo
from chinchilla_jax.config import RunConfig
from chinchilla_jax.scaling.answers.suggest.suggest import Suggestion
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.report.ask import ask_next
from chinchilla_jax.study import folder
from chinchilla_jax.study import ladder as ladders
from chinchilla_jax.study.cell import OffBudget, matched, size_name, with_seed
from chinchilla_jax.study.folder import MANIFEST, Manifest, PlannedRun, StudyError
from chinchilla_jax.study.plan import manifest_header, with_unique_names


def plan_next(
    study: pathlib.Path, target: float | None, purse: float, count: int, quantity: str, echo: Echo = print
) -> tuple[str, Manifest]:
    """Asks the finished runs of `study` for its next ones, prints what these leave of the interval, and plans them.

    Returns the name of the manifest, which is not written yet, and the manifest; arguments are those of `ask_next`.

    Raises:
      StudyError: no study was planned there, or some of its runs are not finished.
      FitRefused: as `ask_next`; `purse`, when no suggested run can be planned.
    """
    config = folder.read_manifest(study / MANIFEST).template()
    for name in (MANIFEST, *folder.next_manifests(study)):
        waiting = folder.unfinished(study, folder.read_manifest(study / name).runs)
        if waiting:
            train = f"python -m chinchilla_jax work --study={study} --manifest={name}"
            raise StudyError(f"{study / name}: {len(waiting)} of its runs are not finished; train them first: {train}")
    suggestion = ask_next(load_runs(study), target, purse, count, quantity, echo=echo)
    names = folder.next_manifests(study)
    return folder.next_name(len(names) + 1), further(config, suggestion, folder.planned_runs(study))


def further(config: RunConfig, suggestion: Suggestion, planned: Sequence[PlannedRun]) -> Manifest:
    """The manifest of the suggested runs: the family's nearest shapes, on steps that spend their budgets.

    A run that is planned already gets another seed. Raises StudyError if no run can be planned.
    """
    runs: list[PlannedRun] = []
    dropped: list[dict[str, Any]] = []
    for asked in suggestion.runs:
        budget = asked.budget or asked.flops
        rung = ladders.nearest(config, asked.params, exact=True)
        try:
            hashes = {run.config_hash for run in (*planned, *runs)}
            runs.append(_unlike(config, rung, budget, hashes))
        except OffBudget as error:
            dropped.append({"budget": budget, "params": rung.params, "reason": str(error)})
    if not runs:
        first = f"{size_name(dropped[0]['params'])} at {dropped[0]['budget']:.3g} FLOPs: {dropped[0]['reason']}"
        raise StudyError(f"none of the suggested runs can be planned; the first, {first}; raise --purse")
    asked_for = {"target": suggestion.target, "purse": suggestion.purse, "quantity": suggestion.quantity}
    expected = {"before": suggestion.before, "after": suggestion.after}
    header = manifest_header(config, "next") | {"dropped": dropped, "suggestion": asked_for | expected}
    return Manifest(header, with_unique_names(runs, config, [run.name for run in planned]))


def _unlike(config: RunConfig, rung: ladders.Rung, budget: float, hashes: Collection[str]) -> PlannedRun:
    """The run of a shape at a budget with the first seed that no run of these config hashes has."""
    for seed in itertools.count():
        run = matched(with_seed(config, seed), rung.model, budget, "isoflop")
        if run.config_hash not in hashes:
            return run
    raise AssertionError("unreachable")
