"""Where are scores kept? In the `result.json` of the run, by task; question by question in a folder that you name.

    "tasks": {"heldout_cloze": {"metrics": {"acc": 0.4, "acc_stderr": 0.02, ...}, "main": "acc", "questions": 400,
                                "shots": 0, "version": 1, "seed": 0, "by": "chinchilla_jax", "begin": true}}
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.evaluation.tasks.ask import Answered
from chinchilla_jax.interop.trained import Trained
from chinchilla_jax.training.record.directory import read_record

TASKS = "tasks"  # the key of a result


def keep(model: Trained, records: Mapping[str, Mapping[str, Any]]) -> Path | None:
    """Adds the records to the result of the model's run, those of the same name anew; returns the file.

    None, and nothing is kept, where there is no finished run, or an earlier checkpoint of one was asked.
    """
    path = model.source / "result.json"
    if not files.exists(path):
        return None
    result = read_record(path, "loss", float)
    if model.step != result.get("steps"):
        return None
    files.write_json(path, result | {TASKS: {**kept(model.source), **records}})
    return path


def kept(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of a run's result; none where it has no result."""
    with contextlib.suppress(OSError, ValueError):
        found = files.read_json(folder / "result.json").get(TASKS)
        return found if isinstance(found, dict) else {}
    return {}


def write_questions(folder: Path, answered: Mapping[str, Answered], facts: Mapping[str, Any]) -> None:
    """`results.json`: facts of the model, and the records; and TASK.jsonl: a line for each question."""
    for name, task in answered.items():
        lines = [json.dumps(question, ensure_ascii=False, default=str) for question in task.questions]
        files.write_text(folder / f"{name.replace('/', '_')}.jsonl", "\n".join(lines) + "\n")
    records = {name: task.record for name, task in answered.items()}
    files.write_json(folder / "results.json", {**facts, TASKS: records})


def lines(records: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    """A line for each task: its metrics, with their standard errors, and how many questions they are of.

    Where there are several of a group, one for the group follows: the mean over its tasks of what stands for each.
    """
    told, groups = [], dict[str, list[float]]()
    for name, record in records.items():
        metrics = record["metrics"]
        shown = [
            f"{metric} {value:.4f}{_error(metrics.get(f'{metric}_stderr'))}"
            for metric, value in metrics.items()
            if not metric.endswith("_stderr")
        ]
        of = f"{record['questions']} questions" + (f", {record['shots']} shots" if record["shots"] else "")
        of += f", chance {record['chance']:.4f}" if record.get("chance") else ""
        told.append(f"{name}: {', '.join(shown)}; {of}")
        if group := record.get("group"):
            groups.setdefault(group, []).append(metrics[record["main"]])
    of_groups = {group: values for group, values in groups.items() if len(values) > 1}
    return [*told, *(f"{group}: {sum(v) / len(v):.4f}, the mean of {len(v)} tasks" for group, v in of_groups.items())]


def _error(value: float | None) -> str:
    return "" if value is None else f" +- {value:.4f}"
