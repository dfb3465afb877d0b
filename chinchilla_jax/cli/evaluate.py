"""The verb `evaluate`: which models, which tasks, made of what?"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from absl import flags

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.cli.generate import MODEL, open_named
from chinchilla_jax.cli.runs import echo
from chinchilla_jax.config import did_you_mean

if TYPE_CHECKING:
    from chinchilla_jax.evaluation.harness.evaluate import Tasks
    from chinchilla_jax.evaluation.harness.scorer import Scorer
    from chinchilla_jax.evaluation.harness.suites import Asked
    from chinchilla_jax.evaluation.tasks.ask import Answered
    from chinchilla_jax.interop.trained import Trained

EVALUATE = (
    *MODEL,
    *("tasks", "suite", "heldout", "rules", "data", "include", "limit", "fewshot", "begin", "seed", "output"),
)


def evaluate(values: flags.FlagValues, words: list[str]) -> None:
    """Asks trained models the questions of --tasks, and keeps their scores in the `result.json` of each run.

    A RUN is the folder of a run, of a study (its run with the lowest loss), or of weights. By default the tasks are
    those of held-out text, which need nothing else: heldout_bits (bits per byte), heldout_last_word (is the last word
    of a passage the one that the model would write?), heldout_cloze (which of four words is it?). Their text is that
    of the token store which the run was evaluated on, or of --heldout. --tasks=iq are rules that no text holds, as
    counting on, in the four groups of `evaluation/iq/`; --rules=TABLE brings labelled texts for one of them. --output
    keeps every question and its answer.

    All other names are tasks of EleutherAI's lm-evaluation-harness (pip install 'chinchilla_jax[evaluate]'), or of
    YAML files of yours (--include); their data sets are looked for in --data, and on this machine. Nothing is fetched
    unless HF_HUB_OFFLINE=0. --suite=chinchilla, gopher or llama are the tasks of that paper, in as many shots; what is
    not there is left out, and told.
    """
    if not words:
        raise UsageError("which model? Name the folder of a run or of a study")
    if values.output and files.is_file(values.output):
        raise UsageError(f"--output={values.output} is a file; name a folder")
    if values.suite and values.tasks:
        raise UsageError("--suite is a list of tasks: leave --tasks out, or name them there")
    from chinchilla_jax.evaluation.record import keep

    ask, named = _Asking(values), set[str]()
    for word in words:
        model = open_named(values, [word])
        answered: dict[str, Answered] = {}
        records: dict[str, dict[str, Any]] = {}
        for name, task in ask(model):  # each is kept at once: what comes after it may take hours, or fail
            answered[name], records[name] = task, task.record | {"begin": values.begin}
            keep(model, {name: records[name]})
        name = next(n for n in _numbered(model.source.name) if n not in named) if len(words) > 1 else ""
        named.add(name)
        _keep(values, model, answered, records, name)


def _numbered(name: str) -> Iterator[str]:
    """The name, and others for those that have the same: runs of two studies may be called alike."""
    yield name
    yield from (f"{name}_{number}" for number in itertools.count(2))


class _Asking:
    """What is asked of every model."""

    def __init__(self, values: flags.FlagValues):
        from chinchilla_jax.evaluation.harness.suites import Asked, suite
        from chinchilla_jax.evaluation.tasks.named import FAMILIES, made_here, names_here
        from chinchilla_jax.evaluation.tasks.question import Given, Task

        self._values, self._given = values, Given(seed=values.seed, limit=values.limit, tables=values.rules)
        self._left_out = set[str]()
        self._data = files.path(values.data) if values.data else None
        names = [name.strip() for name in (values.tasks or "heldout").split(",")]
        if values.suite:
            of_paper = suite(values.suite)
            self._here, self._asked = list[Task](), list(of_paper.tasks)
            echo(f"{values.suite}: the harness does not have {', '.join(of_paper.missing)}")
            if values.fewshot is not None:
                raise UsageError("--fewshot: a suite says itself in how many shots; name tasks instead")
        else:
            self._here, others = made_here(names, self._given)
            if wrong := next((name for name in others if name.split("_")[0] in FAMILIES), ""):
                told = f"no such task{did_you_mean(wrong, names_here())}; there are {', '.join(names_here())}"
                raise UsageError(f"--tasks={wrong}: {told}")
            self._asked = [Asked(name, values.fewshot) for name in others]
        self._theirs = self._of_harness() if self._asked else None

    def _of_harness(self) -> Tasks:
        from chinchilla_jax.evaluation.harness.evaluate import Tasks
        from chinchilla_jax.evaluation.tasks.named import names_here

        for flag in ("include", "data"):
            if self._values[flag].value and not files.is_folder(self._values[flag].value):
                raise UsageError(f"--{flag}={self._values[flag].value}: no such folder")
        include = files.path(self._values.include) if self._values.include else None
        return Tasks([asked.task for asked in self._asked], include, names_here())

    def __call__(self, model: Trained) -> Iterator[tuple[str, Answered]]:
        """The names of tasks, and what came of them, one after the other."""
        from chinchilla_jax.evaluation.harness.scorer import Scorer
        from chinchilla_jax.evaluation.tasks import heldout
        from chinchilla_jax.evaluation.tasks.ask import ask

        there = self._values.heldout
        text = heldout.of_store(files.path(there)) if there else heldout.of_model(model)
        given = dataclasses.replace(self._given, heldout=text)
        scorer = Scorer(model, begin=self._values.begin)
        yield from ((task.name, ask(scorer, task, given)) for task in self._here)
        none = not self._here
        for asked in self._asked:
            answered = self._ask_harness(scorer, asked)
            none = none and not answered
            yield from answered.items()
        if none:
            fix = "--data=FOLDER has its data"
            raise UsageError(f"--suite={self._values.suite}: no task of it can be asked here; {fix}")

    def _ask_harness(self, scorer: Scorer, asked: Asked) -> dict[str, Answered]:
        from chinchilla_jax.evaluation.harness.data_sets import NotHere
        from chinchilla_jax.evaluation.harness.evaluate import evaluate

        assert self._theirs is not None
        try:
            return evaluate(scorer, self._theirs, asked, self._data, self._values.limit)
        except (NotHere, UsageError) as error:
            if not self._values.suite:
                raise
            if asked.task not in self._left_out:  # it may be asked in several shots, and of several models
                echo(f"left out: {error}")
            self._left_out.add(asked.task)
            return {}


def _keep(
    values: flags.FlagValues,
    model: Trained,
    answered: dict[str, Answered],
    records: dict[str, dict[str, Any]],
    name: str,
) -> None:
    """Prints the scores, and writes them where they belong; `name` is a folder of one of several models, or nothing."""
    from chinchilla_jax.evaluation import record

    echo(f"{model.source}:")
    for line in record.lines(records):
        echo(f"  {line}")
    if path := record.keep(model, records):
        echo(f"kept in {path}")
    if values.output:
        folder = files.path(values.output) / name
        record.write_questions(folder, answered, {"model": str(model.source), "step": model.step})
        echo(f"written: {folder}")
