"""How does a model do on tasks of EleutherAI's lm-evaluation-harness? One after the other, as our own are asked.

    evaluate(scorer, [Asked("hellaswag"), Asked("mmlu", shots=5)], data=Path("benchmarks"))

Offline, unless HF_HUB_OFFLINE=0. Its caches are not used: they know neither the model nor the data.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.config import did_you_mean
from chinchilla_jax.evaluation.harness.data_sets import NotHere, found_in, stay_offline
from chinchilla_jax.evaluation.harness.scorer import Scorer
from chinchilla_jax.evaluation.harness.suites import Asked
from chinchilla_jax.evaluation.tasks.ask import Answered

# Which metric stands for a task, where no paper says: the first of these that it has.
_MAIN = (
    "acc_norm",
    "acc",
    "exact_match",
    "em",
    "f1",
    "mcc",
    "pass@1",
    "bits_per_byte",
    "word_perplexity",
    "perplexity",
)
_SHOT_SEED = 1234  # the harness's own


def need_lm_eval() -> str:
    """The version of the package lm-eval, whose imports fetch nothing from now on. Raises UsageError without it."""
    try:
        found = version("lm-eval")
    except PackageNotFoundError:
        fix = "pip install 'chinchilla_jax[evaluate]'"
        raise UsageError(f"tasks of the harness need the package lm-eval: {fix}") from None
    stay_offline()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return found


class Tasks:
    """The tasks that can be asked: those of a folder of YAML files, and, unless it has all that are wanted, the
    harness's own, of which making a list takes a while."""

    def __init__(self, names: Sequence[str], include: Path | None = None, others: Sequence[str] = ()):
        """`others` are names that could have been meant besides. Raises UsageError: no task has one of the names."""
        need_lm_eval()
        from lm_eval.tasks import TaskManager

        folders = [str(include)] if include else []
        manager = TaskManager(include_path=folders, include_defaults=False)
        if not set(names) <= set(manager.all_tasks):
            manager = TaskManager(include_path=folders)
        for name in names:
            if name not in manager.all_tasks:
                near = did_you_mean(name, [*manager.all_tasks, *others])
                fix = "or of a YAML file in a folder of yours: --include=FOLDER"
                here = f"{', '.join(others)}, " if others else ""
                raise UsageError(f"--tasks={name}: no such task{near}; name {here}one of the harness, {fix}")
        self._manager = manager

    def load(self, asked: Asked) -> dict[str, Any]:
        """A task, or a group of them, ready to be asked. Raises NotHere, whatever it is that loading it needs."""
        try:
            loaded = self._manager.load([asked.task])
        except NotHere as error:
            raise NotHere(f"{asked.task}: {error}") from None
        except Exception as error:  # a task's own code may raise anything
            raise NotHere(f"{asked.task} cannot be loaded: {type(error).__name__}: {error}") from error
        for task in loaded["tasks"].values():
            own = task.get_config("num_fewshot")
            if asked.shots is None or own == 0:  # of tasks that say 0 the examples are part of the question
                task.set_config(key="num_fewshot", value=own or 0)
            else:
                task.set_config(key="num_fewshot", value=asked.shots)
            task.set_fewshot_seed(seed=_SHOT_SEED)
        return loaded


def evaluate(
    scorer: Scorer, tasks: Tasks, asked: Asked, data: Path | None = None, limit: int | None = None
) -> dict[str, Answered]:
    """What came of a task or a group, by the name of its record; of a tag, of each task that has it.

    Raises:
      NotHere: its data, or a package it needs, are not on this machine.
      UsageError: its data have fewer examples than shots are wanted.
    """
    found = need_lm_eval()
    from lm_eval.evaluator import evaluate as ask

    from chinchilla_jax.evaluation.harness.lm import TrainedLM

    with found_in(data):
        loaded = tasks.load(asked)
        try:
            results = ask(TrainedLM(scorer), loaded, limit=limit, bootstrap_iters=0, log_samples=True)
        except ValueError as error:  # of `random.sample`
            if "larger than population" not in str(error):
                raise
            raise UsageError(f"{asked.name}: its data have fewer examples than the shots that are wanted") from None
    return {name: _answered(results, task, asked, found) for name, task in _wanted(results, asked)}


def _wanted(results: Mapping[str, Any], asked: Asked) -> Iterator[tuple[str, str]]:
    """Names of records, and of what of the results they are."""
    if asked.task in results["results"]:
        yield asked.name, asked.task
        return
    for task in results["results"]:
        yield asked._replace(task=task).name, task


def _answered(results: Mapping[str, Any], name: str, asked: Asked, found: str) -> Answered:
    members = _members(results, name)
    questions = [sample for member in members for sample in results["samples"].get(member, ())]
    metrics: dict[str, float] = {}
    for key, value in results["results"][name].items():
        metric, _, kind = key.partition(",")
        if kind and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            called = metric if kind == "none" else f"{metric}/{kind}"
            metrics[called] = float(value)
            if len(members) == 1 and (error := _standard_error(questions, metric, kind, value)) is not None:
                metrics[f"{called}_stderr"] = error
    record: dict[str, Any] = {"metrics": metrics, "main": _main(metrics, asked.metric)}
    counts = results["n-samples"]
    record["questions"] = sum(counts[member]["effective"] for member in members if member in counts)
    record["shots"] = max((results["n-shot"].get(member, 0) for member in members), default=0)
    record |= {"version": results["versions"].get(name), "by": f"lm-eval {found}"}
    return Answered(record, [_question(sample) for sample in questions])


def _members(results: Mapping[str, Any], name: str) -> list[str]:
    """The tasks of a group, however deep; a task itself."""
    inner = results.get("group_subtasks", {}).get(name)
    return [member for child in inner for member in _members(results, child)] if inner else [name]


def _main(metrics: Mapping[str, float], of_paper: str) -> str:
    plain = [name for name in metrics if not name.endswith("_stderr")]
    for wanted in (of_paper, *_MAIN):
        for name in plain:
            if wanted and name.split("/")[0] == wanted:
                return name
    return plain[0] if plain else ""


def _standard_error(samples: Sequence[Mapping[str, Any]], metric: str, kind: str, value: float) -> float | None:
    """Of a mean over questions; None of a metric that is made of them in another way."""
    values = [sample.get(metric) for sample in samples if sample.get("filter", kind) == kind]
    numbers = [float(number) for number in values if isinstance(number, (bool, int, float, np.number))]
    if len(numbers) < 2 or len(numbers) < len(values) or not math.isclose(np.mean(numbers), value, abs_tol=1e-9):
        return None
    return float(np.std(numbers, ddof=1)) / math.sqrt(len(numbers))


def _question(sample: Mapping[str, Any]) -> dict[str, Any]:
    """What the harness keeps of a question, without what it keeps of the whole task."""
    return {key: value for key, value in sample.items() if not key.endswith("_hash")}
