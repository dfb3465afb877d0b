"""Which IQ tasks are there?"""

from __future__ import annotations

import os

from chinchilla_jax.evaluation.iq import forms, interference, patterns, rules, symbols, tables
from chinchilla_jax.evaluation.iq.question import Task

FAMILIES = (symbols.FAMILY, rules.FAMILY, patterns.FAMILY, interference.FAMILY)


def all_tasks(tables_path: str | os.PathLike | None = None) -> dict[str, Task]:
    """Every task by its name. With a path, the symbolic mapping is that of your tables, not the built-in one.

    Raises:
      UsageError: the tables cannot be used (`tables.read_tasks`).
    """
    mapping = tables.read_tasks(tables_path) if tables_path else forms.TASKS
    return {task.name: task for task in (*mapping, *rules.TASKS, *patterns.TASKS, *interference.TASKS)}
