"""Which downstream errors do runs have: scores on tasks, as `evaluate` keeps them in results, or columns of a table?

Of a task the metric that stands for it (`main`), where it is a share of questions that are right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns
from chinchilla_jax.scaling.read.table.headers import split_words

TASKS, MEAN = "tasks", "mean of tasks"
_SHARES = {"acc", "acc_norm", "exact_match", "em", "f1", "pass@1", "pass_at_1"}
_ALIKE = ("main", "questions", "shots", "version", "begin", "seed")  # what makes scores of one task comparable


def records_of(loaded: LoadedRuns) -> dict[str, dict[str, Mapping[str, Any]]]:
    """By task and run, the records that `evaluate` wrote (`evaluation/record.py`), in the order of the runs."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for run in loaded.runs:
        records = loaded.details.get(run.name, {}).get(TASKS)
        for task, record in (records if isinstance(records, dict) else {}).items():
            if isinstance(record, dict) and isinstance(record.get("metrics"), dict):
                found.setdefault(task, {})[run.name] = record
    return found


def value_of(record: Mapping[str, Any]) -> float:
    """What stands for the task; NaN if it is not there."""
    value = record["metrics"].get(record.get("main"))
    return float(value) if isinstance(value, (int, float)) else np.nan


def errors_of(loaded: LoadedRuns, columns: Sequence[str]) -> dict[str, dict[str, float]]:
    """By name and run, errors between 0 and 1: of each column, which may hold accuracies; `tasks` is every task of the
    results, and the mean over them of the runs that have all.

    Raises FitRefused: `columns` (no run has a number there, a number beyond 0 to 1, or a task asked in several ways).
    """
    errors: dict[str, dict[str, float]] = {}
    for column in columns:
        errors |= of_tasks(loaded) if column == TASKS else {column: _of_column(loaded, column)}
    return errors


def of_tasks(loaded: LoadedRuns) -> dict[str, dict[str, float]]:
    """The errors of the tasks whose scores are shares. Raises FitRefused as `errors_of`."""
    errors: dict[str, dict[str, float]] = {}
    for task, records in records_of(loaded).items():
        ways = {tuple(str(record.get(key)) for key in _ALIKE) for record in records.values()}
        if len(ways) > 1:
            told = f"{loaded.source}: {task} was asked in several ways, other questions, shots or metrics"
            raise FitRefused("columns", f"{told}; ask all runs alike: evaluate RUN RUN ...")
        metric = next(iter(records.values())).get("main", "")
        if metric.split("/")[0] in _SHARES:
            values = {name: 1.0 - value_of(record) for name, record in records.items()}
            errors[task] = {name: error for name, error in values.items() if 0.0 <= error <= 1.0}
    if not errors:
        told = f"{loaded.source}: no run has scores of tasks that are shares"
        raise FitRefused("columns", f"{told}; ask them first: evaluate RUN RUN ...")
    return (_mean(errors) if len(errors) > 1 else {}) | errors


def _mean(errors: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    names = set.intersection(*(set(of_task) for of_task in errors.values()))
    mean = {name: float(np.mean([of_task[name] for of_task in errors.values()])) for name in sorted(names)}
    return {MEAN: mean} if mean else {}


def _of_column(loaded: LoadedRuns, column: str) -> dict[str, float]:
    values = {run.name: _share(loaded, run.name, column) for run in loaded.runs}
    known = {name: value for name, value in values.items() if value is not None}
    if not known:
        raise FitRefused("columns", f"{loaded.source}: no run has a number in {column}")
    return known


def _share(loaded: LoadedRuns, name: str, column: str) -> float | None:
    value = loaded.details.get(name, {}).get(column)
    try:
        number = float(value) if value is not None else np.nan
    except (TypeError, ValueError):
        return None
    if np.isnan(number):
        return None
    if not 0.0 <= number <= 1.0:
        raise FitRefused("columns", f"{loaded.source}: {column} of {name} is {number:g}; an error is a share, 0 to 1")
    return 1.0 - number if {"acc", "accuracy"} & set(split_words(column)) else number
