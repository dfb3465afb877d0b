"""The verb `evaluate`: which models, which tasks, made of what?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.cli.generate import MODEL, open_named
from chinchilla_jax.cli.runs import echo

if TYPE_CHECKING:
    from chinchilla_jax.evaluation.tasks.ask import Answered
    from chinchilla_jax.interop.trained import Trained

EVALUATE = (*MODEL, "tasks", "heldout", "rules", "limit", "begin", "seed", "output")


def evaluate(values: flags.FlagValues, words: list[str]) -> None:
    """Asks trained models the questions of --tasks, and keeps their scores in the `result.json` of each run.

    A RUN is the folder of a run, of a study (its run with the lowest loss), or of weights. By default the tasks are
    those of held-out text, which need nothing else: heldout_bits (bits per byte), heldout_last_word (is the last word
    of a passage the one that the model would write?), heldout_cloze (which of four words is it?). Their text is that
    of the token store which the run was evaluated on, or of --heldout. --tasks=iq
    are rules that no text holds, as counting on, in the four groups of `evaluation/iq/`; --rules=TABLE brings labelled
    texts for one of them. --output keeps every question and its answer.
    """
    if not words:
        raise UsageError("which model? Name the folder of a run or of a study")
    names = [name.strip() for name in (values.tasks or "heldout").split(",")]
    for word in words:
        model = open_named(values, [word])
        answered = _ask(values, model, names)
        records = {name: task.record | {"begin": values.begin} for name, task in answered.items()}
        _keep(values, model, answered, records, several=len(words) > 1)


def _ask(values: flags.FlagValues, model: Trained, names: list[str]) -> dict[str, Answered]:
    """What came of each task, by name."""
    from chinchilla_jax.evaluation.harness.scorer import Scorer
    from chinchilla_jax.evaluation.tasks import heldout
    from chinchilla_jax.evaluation.tasks.ask import ask
    from chinchilla_jax.evaluation.tasks.named import made_here, names_here
    from chinchilla_jax.evaluation.tasks.question import Given

    text = heldout.of_store(Path(values.heldout)) if values.heldout else heldout.of_model(model)
    given = Given(text, values.seed, values.limit, values.rules)
    tasks, others = made_here(names, given)
    if others:
        raise UsageError(f"--tasks={others[0]}: no such task; there are {', '.join(names_here())}")
    scorer = Scorer(model, begin=values.begin)
    return {task.name: ask(scorer, task, given) for task in tasks}


def _keep(
    values: flags.FlagValues,
    model: Trained,
    answered: dict[str, Answered],
    records: dict[str, dict[str, Any]],
    several: bool,
) -> None:
    """Prints the scores, and writes them where they belong."""
    from chinchilla_jax.evaluation import record

    echo(f"{model.source}:")
    for line in record.lines(records):
        echo(f"  {line}")
    if path := record.keep(model, records):
        echo(f"kept in {path}")
    if values.output:
        folder = Path(values.output) / model.source.name if several else Path(values.output)
        record.write_questions(folder, answered, {"model": str(model.source), "step": model.step})
        echo(f"written: {folder}")
