"""The verb `transfer`: is what a model learned from text of use elsewhere?"""

from __future__ import annotations

from absl import flags

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.cli.generate import MODEL, open_named
from chinchilla_jax.cli.runs import echo

TRANSFER = (*MODEL, "tasks", "modes", "seeds", "steps", "rates", "output")


def transfer(values: flags.FlagValues, words: list[str]) -> None:
    """Trains a classifier on top of a model for tasks that are not of text, in several ways, and compares them.

    RUN is the folder of a run, of a study (then its run with the lowest loss) or of weights. Tasks: listops (the value
    of nested lists of operations), digits (drawn pictures, read row by row); both are made here, without end. Modes:
    scratch (fresh weights), full (those of the model, all trained), frozen (only norms, positions and the head are
    trained), embeddings (as frozen, with fresh embeddings that are trained), random (as that, with fresh weights). With
    several --rates the first seed chooses, on examples that are not tested.
    """
    from chinchilla_jax.evaluation.transfer.table import Plan, compare, lines

    if len(words) > 1:
        raise UsageError(f"transfer: unexpected argument {words[1]!r}; name one run")
    if values.output and not values.output.endswith(".json"):
        raise UsageError(f"--output={values.output}: name a JSON file, FILE.json")
    given = {"seeds": values.seeds, "steps": values.steps}
    given |= {name: tuple(text.split(",")) for name in ("tasks", "modes") if (text := values[name].value)}
    if values.rates:
        given["rates"] = _numbers(values.rates)
    plan = Plan(**{name: value for name, value in given.items() if value is not None})
    plan.check()
    record = compare(open_named(values, words), plan, echo)
    if values.output:
        files.write_json(files.path(values.output), record)
    for line in lines(record):
        echo(line)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--rates={text}: expected numbers, as 1e-3,3e-4") from None
