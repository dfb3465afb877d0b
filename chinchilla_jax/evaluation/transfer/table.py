"""How do the ways compare on each task, over several seeds? All of it, as a record and as lines to read.

A seed draws the examples, and what weights are fresh; the held-out examples are the same for all. Where several
learning rates are given, the first seed tries them, and the other seeds take the best on its validation examples.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from chinchilla_jax.base.config_values import one_of
from chinchilla_jax.base.words import Echo, count, duration
from chinchilla_jax.config import ConfigError
from chinchilla_jax.evaluation.transfer.tasks import TASKS, Rows, Task, make_rows
from chinchilla_jax.evaluation.transfer.train import MODES, Outcome, batch_of, fit
from chinchilla_jax.interop.trained import Trained

HELD_OUT = {"validation": 512, "test": 2048}
RATE = 1e-3  # of the published code of Lu et al.
LINE_SECONDS = 10.0


class Plan(NamedTuple):
    """What is compared."""

    tasks: Sequence[str] = ("listops", "digits")
    modes: Sequence[str] = ("scratch", "full", "frozen", "embeddings")
    seeds: int = 3
    steps: int = 1000
    rates: Sequence[float] = (RATE,)

    def check(self) -> None:
        """Raises ConfigError for what cannot be compared."""
        for key, words, known in (("tasks", self.tasks, TASKS), ("modes", self.modes, MODES)):
            for word in words:
                one_of(key, word, known)
            if not words or len(set(words)) < len(words):
                raise ConfigError(key, f"give different ones of {', '.join(known)}; got {','.join(words) or 'none'}")
        if not self.rates or not all(rate > 0 for rate in self.rates):
            raise ConfigError("rates", f"need positive learning rates, got {','.join(map(str, self.rates)) or 'none'}")
        if self.seeds < 1 or self.steps < 1:
            raise ConfigError("seeds" if self.seeds < 1 else "steps", "must be at least 1")

    @property
    def fits(self) -> int:
        """How many times something is trained."""
        return len(self.tasks) * len(self.modes) * (len(self.rates) + self.seeds - 1)


def compare(model: Trained, plan: Plan, echo: Echo) -> dict[str, Any]:
    """Trains every mode on every task with every seed; returns the record that `lines` shows and a file keeps.

    Raises:
      ConfigError: an unknown task or mode; a model without a tokenizer, or whose rows are too short for a task.
    """
    plan.check()
    progress = _Progress(plan, echo)
    record: dict[str, Any] = {
        "model": str(model.source), "step": model.step, "config_hash": model.config.content_hash(),
        "steps": plan.steps, "batch_size": batch_of(model), "seeds": plan.seeds, "rates": list(plan.rates),
        "head": "linear, on the last token's output after the final norm", "tasks": {},
    }  # fmt: skip
    drawn = {name: _draw(TASKS[name], model, plan) for name in plan.tasks}
    for name, (sets, held_out) in drawn.items():
        labels = held_out["test"].labels
        commonest = float(np.bincount(labels, minlength=TASKS[name].classes).max() / len(labels))
        modes = {mode: _of_mode(model, TASKS[name], mode, sets, held_out, plan, progress) for mode in plan.modes}
        record["tasks"][name] = {"classes": TASKS[name].classes, "chance": commonest, "modes": modes}
    return record


def lines(record: dict[str, Any]) -> list[str]:
    """A table: a row for each mode, for each task the mean accuracy in percent, and its deviation over the seeds."""
    tasks = record["tasks"]
    cells = [["", "trained", *tasks]]
    for mode in next(iter(tasks.values()))["modes"]:
        of_tasks = [task["modes"][mode] for task in tasks.values()]
        shown = [f"{100 * found['mean']:.1f} ± {100 * found['deviation']:.1f}" for found in of_tasks]
        cells.append([mode, f"{count(of_tasks[0]['trained'])} ({of_tasks[0]['trained_share']:.1%})", *shown])
    cells.append(["commonest class", "", *(f"{100 * task['chance']:.1f}" for task in tasks.values())])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    told = (
        f"accuracy in % on {HELD_OUT['test']} test examples, mean ± standard deviation of {record['seeds']} seeds; "
        f"{record['steps']} steps of {record['batch_size']}"
    )
    return [told, *rows]


def _draw(task: Task, model: Trained, plan: Plan) -> tuple[list[Rows], dict[str, Rows]]:
    """The training rows of each seed, and what is held out of them all; of one width, so that all share a program."""
    held_out: dict[str, Rows] = {}
    known: set[bytes] = set()
    for number, (name, size) in enumerate(HELD_OUT.items()):
        held_out[name], identities = make_rows(task, model, size, number, without=known)
        known |= identities
    examples = plan.steps * batch_of(model)
    sets = [make_rows(task, model, examples, len(HELD_OUT), seed, without=known)[0] for seed in range(plan.seeds)]
    width = max(rows.tokens.shape[1] for rows in (*sets, *held_out.values()))
    return [rows.of_width(width) for rows in sets], {name: rows.of_width(width) for name, rows in held_out.items()}


def _of_mode(
    model: Trained, task: Task, mode: str, sets: list[Rows], held_out: dict[str, Rows], plan: Plan, progress: _Progress
) -> dict[str, Any]:
    def outcome(seed: int, rate: float) -> Outcome:
        what = f"{task.name} {mode} seed {seed}" + (f" rate {rate:g}" if len(plan.rates) > 1 else "")
        progress.begins(what)
        found = fit(
            model, MODES[mode], task.classes, sets[seed], held_out["validation"], held_out["test"],
            plan.steps, rate, seed, progress.step,
        )  # fmt: skip
        progress.ends(found)
        return found

    tried = {rate: outcome(0, rate) for rate in plan.rates}
    rate = max(tried, key=lambda rate: (tried[rate].validation, -rate))
    found = [tried[rate], *(outcome(seed, rate) for seed in range(1, plan.seeds))]
    accuracies = [one.test for one in found]
    whole = model.config.model
    body = sum(x.size for name, x in _leaves(model.params) if name not in ("output", "output_bias"))
    head = (whole.d_model + 1) * task.classes
    return {
        "mean": statistics.fmean(accuracies),
        "deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "accuracies": accuracies,
        "validation": [one.validation for one in found],
        "loss": [one.loss if math.isfinite(one.loss) else None for one in found],  # JSON has no number for others
        "rate": rate,
        "tried": {f"{rate:g}": one.validation for rate, one in tried.items()},
        "trained": found[0].trained + head,
        "trained_share": (found[0].trained + head) / (body + head),
    }


def _leaves(params: dict[str, Any], first: str = "") -> list[tuple[str, Any]]:
    """(outermost name, array) of each weight."""
    found: list[tuple[str, Any]] = []
    for name, value in params.items():
        found += _leaves(value, first or name) if isinstance(value, dict) else [(first or name, value)]
    return found


class _Progress:
    """Says what is trained, how well it went, and how long the rest will take."""

    def __init__(self, plan: Plan, echo: Echo):
        self._plan, self._echo = plan, echo
        self._done, self._steps, self._what = 0, 0, ""
        self._start = self._told = time.monotonic()

    def begins(self, what: str) -> None:
        self._what, self._steps = what, 0

    def step(self) -> None:
        self._steps += 1
        if not self._done and self._steps == 1:
            self._start = time.monotonic()  # before that programs were compiled
        elif time.monotonic() - self._told > LINE_SECONDS:
            self._say(f"{self._what}: step {self._steps} of {self._plan.steps}")

    def ends(self, found: Outcome) -> None:
        self._done, self._steps = self._done + 1, 0
        self._say(f"{self._what}: {found.test:.1%}, loss {found.loss:.3f}")

    def _say(self, text: str) -> None:
        self._told = time.monotonic()
        done = self._done + self._steps / self._plan.steps
        left = (self._told - self._start) * (self._plan.fits - done) / done
        self._echo(f"{text}; {self._done} of {self._plan.fits} done, about {duration(left)} left")
