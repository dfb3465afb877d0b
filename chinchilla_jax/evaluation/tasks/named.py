"""Which tasks are made here, by which names? A family of them joins by an entry of `FAMILIES`.

A family is a function of what is given (`question.Given`) to its tasks; it is asked for them only when one of their
names, or its own, is wanted. Names of tasks begin with that of their family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chinchilla_jax.evaluation.iq import asked as iq
from chinchilla_jax.evaluation.tasks import heldout
from chinchilla_jax.evaluation.tasks.question import Given, Task

FAMILIES: dict[str, Callable[[Given], Sequence[Task]]] = {
    heldout.FAMILY: lambda given: heldout.TASKS,
    iq.FAMILY: iq.tasks_of,
}


def made_here(names: Sequence[str], given: Given) -> tuple[list[Task], list[str]]:
    """The tasks made here that `names` name, and the names that are of no such task.

    A family's name is all of its own; that of a group, such as `iq_pattern_mining`, those of the group.
    """
    chosen: dict[str, Task] = {}
    others = []
    for name in names:
        families = [family for family in FAMILIES if name == family or name.startswith(f"{family}_")]
        tasks = [
            task for family in families for task in FAMILIES[family](given) if name in (family, task.name, task.group)
        ]
        chosen |= {task.name: task for task in tasks}
        others += [] if tasks else [name]
    return list(chosen.values()), others


def names_here() -> list[str]:
    """Of all tasks made here that need nothing, for a message."""
    return [task.name for family in FAMILIES.values() for task in family(Given())]
