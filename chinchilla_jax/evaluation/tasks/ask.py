"""How does a model do on a task? Its questions are asked together, and graded by kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from chinchilla_jax.config import ConfigError
from chinchilla_jax.evaluation.harness.scorer import Scorer
from chinchilla_jax.evaluation.tasks.question import Choice, Ending, Given, Passage, Question, Task, Written


class Answered(NamedTuple):
    """A task's record, as `result.json` keeps it, and what came of each of its questions."""

    record: dict[str, Any]
    questions: list[dict[str, Any]]


def ask(scorer: Scorer, task: Task, given: Given) -> Answered:
    """Asks the questions of a task, at most `given.limit`. Raises ConfigError: there are none."""
    questions = list(task.make(given))[: given.limit]
    if not questions:
        raise ConfigError("tasks", f"{task.name}: what is given has no text for a single question of it")
    kind = type(questions[0])
    metrics, each = _KINDS[kind](scorer, questions)
    record = {"metrics": metrics, "main": task.main, "questions": len(questions), "shots": task.shots}
    record |= {"version": task.version, "seed": given.seed, "by": "chinchilla_jax"}
    record |= {} if task.chance is None else {"chance": task.chance}
    record |= {"group": task.group} if task.group else {}
    return Answered(record, each)


def _choices(scorer: Scorer, questions: Sequence[Choice]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    asked = [(q.context, q.delimiter + option) for q in questions for option in q.options]
    scores, each = iter(scorer.scores_of(asked)), []
    for q in questions:
        nats = [next(scores).log_likelihood for _ in q.options]
        by_character = [n / max(len(option), 1) for n, option in zip(nats, q.options, strict=True)]
        right = {"acc": _first_highest(nats) == q.answer, "acc_norm": _first_highest(by_character) == q.answer}
        each.append({"context": q.context, "options": q.options, "answer": q.answer, "log_likelihoods": nats} | right)
    return _shares(each, "acc") | _shares(each, "acc_norm"), each


def _first_highest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _endings(scorer: Scorer, questions: Sequence[Ending]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    scores = scorer.scores_of([(q.context, f" {q.ending}") for q in questions])
    each: list[dict[str, Any]] = [
        {"context": q.context, "ending": q.ending, "log_likelihood": score.log_likelihood, "acc": score.greedy}
        for q, score in zip(questions, scores, strict=True)
    ]
    perplexity = math.exp(min(-float(np.mean([score.log_likelihood for score in scores])), 700.0))
    return _shares(each, "acc") | {"perplexity": perplexity}, each


def _passages(scorer: Scorer, questions: Sequence[Passage]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    nats = scorer.log_likelihoods([q.text for q in questions])
    each: list[dict[str, Any]] = [
        {"text": q.text, "log_likelihood": n, "bytes": len(q.text.encode())}
        for q, n in zip(questions, nats, strict=True)
    ]
    bits, size = (np.array([e[key] for e in each], float) for key in ("log_likelihood", "bytes"))
    bits /= -math.log(2.0)
    metrics = {"bits_per_byte": float(bits.sum() / size.sum())}
    if len(each) > 1:
        left = bits - size * metrics["bits_per_byte"]  # of a ratio: what differs between texts, not how long they are
        error = math.sqrt(len(each) / (len(each) - 1) * float((left**2).sum())) / float(size.sum())
        metrics["bits_per_byte_stderr"] = error
    return metrics, each


def _written(scorer: Scorer, questions: Sequence[Written]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    together: dict[tuple[int, tuple[str, ...]], list[int]] = {}
    for number, q in enumerate(questions):
        together.setdefault((q.new_tokens, q.stop), []).append(number)
    texts = [""] * len(questions)
    for (new_tokens, stop), numbers in together.items():
        prompts = [questions[number].prompt for number in numbers]
        fits = min(new_tokens, max(scorer.length // 2, 1))  # a model of short rows fails at long answers, no more
        for number, text in zip(numbers, scorer.write(prompts, fits, stop), strict=True):
            texts[number] = text
    each: list[dict[str, Any]] = [
        {"prompt": q.prompt, "written": text, "exact_match": q.grade(text)}
        for q, text in zip(questions, texts, strict=True)
    ]
    return _shares(each, "exact_match"), each


def _shares(each: Sequence[dict[str, Any]], name: str) -> dict[str, float]:
    """The share of questions that are right, and its standard error."""
    share, n = float(np.mean([question[name] for question in each])), len(each)
    return {name: share} | ({f"{name}_stderr": math.sqrt(share * (1 - share) / (n - 1))} if n > 1 else {})


_KINDS: dict[type[Question], Callable[..., tuple[dict[str, float], list[dict[str, Any]]]]] = {
    Choice: _choices,
    Ending: _endings,
    Passage: _passages,
    Written: _written,
}
