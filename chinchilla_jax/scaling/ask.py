"""What does the verb `predict` answer: from finished runs, from published laws, or from both?"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chinchilla_jax.files import write_json
from chinchilla_jax.scaling import answers, summary
from chinchilla_jax.scaling.answers import Law, Section
from chinchilla_jax.scaling.laws.published import law
from chinchilla_jax.scaling.next_runs import describe as describe_next
from chinchilla_jax.scaling.next_runs import next_runs
from chinchilla_jax.scaling.predict import Prediction
from chinchilla_jax.scaling.runs import FitRefused, LoadedRuns
from chinchilla_jax.scaling.target import target_budget

_ALLOWANCE = 0.1  # of the target budget, for all further runs together


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked; None is not asked. `flops` C, `params` N, `tokens` D, `unique_tokens` of the data set,
    `inference_tokens` to be served, `more_runs` how many further runs to propose; `inputs` what laws of other forms
    need besides N and D."""

    flops: float | None = None
    params: float | None = None
    tokens: float | None = None
    unique_tokens: float | None = None
    inference_tokens: float | None = None
    more_runs: int | None = None
    inputs: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "inputs" and value is not None and not 0 < value < math.inf:
                raise FitRefused("question", f"--{field.name}={value:g} must be positive and finite")


def ask(
    loaded: LoadedRuns | None,
    names: Sequence[str],
    question: Question,
    fits: Mapping[str, Any],
    output: str | pathlib.Path | None = None,
    echo: Callable[[str], None] = print,
) -> Prediction | None:
    """Prints the answers, and writes them to `output` as JSON; returns the prediction of the runs, if there are any.

    Args:
      loaded: finished runs to fit, or None.
      fits: preset, replicates and seed, as for `predict`.
      names: published laws to ask as well; without runs and names the paper's and its refit.

    Raises:
      FitRefused: no fit; an unknown law; `question`, when what is asked cannot be answered from what was given.
    """
    surfaces = [name for name in names if law(name).form_name == "chinchilla"]
    others = [name for name in names if name not in surfaces]
    laws = list(answers.published_laws(surfaces)) if surfaces or (loaded is None and not others) else []
    prediction, said = None, {}
    if loaded is not None:
        flops = question.flops or target_budget(loaded)
        if flops is None:
            raise FitRefused("no_budget", f"{loaded.source}: no held-out budget to ask about; give --budget=FLOPS")
        question = dataclasses.replace(question, flops=flops)
        prediction = summary.forecast(loaded, flops, echo, **fits)
        own = summary.law_of(prediction, f"fitted to {loaded.source}")
        laws += [own] if own else []
        said["prediction"] = _facts(prediction)
    elif question.flops is None and question.params is None and question.tokens is None:
        raise FitRefused("question", "nothing to answer: give --budget (or --chip, --chips, --days), --params or "
                         "--tokens")  # fmt: skip
    if others and question.flops is None:
        raise FitRefused("question", f"{others[0]} is asked about a budget: give --budget, or --chip, --chips and "
                         "--days")  # fmt: skip
    sections = _sections(laws, question, prediction)
    if others:
        sections += (answers.other_laws(others, question.flops, question.inputs),)
    summary.show(sections, echo)
    if question.more_runs is not None:
        if prediction is None or prediction.parametric is None:
            raise FitRefused("question", "--more_runs needs finished runs that approach 3 can be fitted to")
        more = next_runs(loaded.role("isoflop"), question.flops, _ALLOWANCE * question.flops, question.more_runs)
        echo("")
        describe_next(more, echo)
        said["more_runs"] = more
    if output is not None:
        said |= {"question": question, "sections": sections}
        write_json(pathlib.Path(output), summary.as_json(said))
        echo(f"written: {output}")
    return prediction


def _sections(laws: Sequence[Law], question: Question, prediction: Prediction | None) -> tuple[Section, ...]:
    if not laws:
        return ()
    asked = dataclasses.asdict(question)
    asked = {name: value for name, value in asked.items() if name not in ("more_runs", "inputs")}
    found = list(summary.questions(laws, **asked))
    if prediction is None and question.flops is not None:
        found.insert(1, answers.printed_allocations(question.flops))
    return tuple(found)


def _facts(prediction: Prediction) -> dict[str, Any]:
    names = ("budget", "extrapolation", "estimates", "recommended", "why", "tokens_at_budget", "rollouts", "warnings",
             "refused")  # fmt: skip
    return {name: getattr(prediction, name) for name in names} | {"preset": prediction.analysis.preset}
