"""Which IQ tasks are there? All by name; `iq` is all of them, a family's name those of the family."""

from __future__ import annotations

import os
from collections.abc import Mapping

from chinchilla_jax.evaluation.iq import forms, interference, patterns, rules, symbols, tables
from chinchilla_jax.evaluation.iq.question import Task

ALL = "iq"
FAMILIES = (symbols.FAMILY, rules.FAMILY, patterns.FAMILY, interference.FAMILY)


def all_tasks(tables_path: str | os.PathLike | None = None) -> dict[str, Task]:
    """Every task by its name. With a path, the symbolic mapping is that of your tables, not the built-in one.

    Raises:
      UsageError: the tables cannot be used (`tables.read_tasks`).
    """
    mapping = tables.read_tasks(tables_path) if tables_path else forms.TASKS
    return {task.name: task for task in (*mapping, *rules.TASKS, *patterns.TASKS, *interference.TASKS)}


def groups(tasks: Mapping[str, Task]) -> dict[str, tuple[str, ...]]:
    """The names of the tasks in each family, and in `iq`."""
    families = {family: tuple(n for n, task in tasks.items() if task.family == family) for family in FAMILIES}
    return {ALL: tuple(tasks), **families}


def family_scores(scores: Mapping[str, float], tasks: Mapping[str, Task]) -> dict[str, float]:
    """The mean over the scored tasks of each family that has some, as the paper averages; tasks count alike."""
    found = {family: [scores[n] for n in names if n in scores] for family, names in groups(tasks).items()}
    return {family: sum(of_family) / len(of_family) for family, of_family in found.items() if of_family}
