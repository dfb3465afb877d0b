"""IQ tasks as what a model is asked (`evaluation/tasks/`): options to choose from, or a line to write."""

from __future__ import annotations

from collections.abc import Sequence

from chinchilla_jax.evaluation.iq.question import Question, Task
from chinchilla_jax.evaluation.iq.tasks import all_tasks
from chinchilla_jax.evaluation.tasks import question as asked

FAMILY = "iq"


def tasks_of(given: asked.Given) -> list[asked.Task]:
    """All of them, `iq_` before their names and groups. Raises UsageError if the given tables cannot be used."""
    return [_task(task) for task in all_tasks(given.tables).values()]


def _task(task: Task) -> asked.Task:
    def make(given: asked.Given) -> Sequence[asked.Question]:
        questions = task.questions(given.seed)
        room = max(len(question.answer.encode()) for question in questions) + 2  # no token is less than a byte
        return [_put(question, room) for question in questions]

    name, group = f"{FAMILY}_{task.name}", f"{FAMILY}_{task.family}"
    return asked.Task(name, make, task.metric, task.chance, task.shots, group=group)


def _put(question: Question, room: int) -> asked.Choice | asked.Written:
    if question.options:
        return asked.Choice(question.prompt, question.options, question.options.index(question.answer))
    return asked.Written(question.prompt, question.grade, room)
