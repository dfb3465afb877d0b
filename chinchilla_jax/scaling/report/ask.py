"""What does the verb `predict` answer: from finished runs, from published laws, or from both?"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chinchilla_jax.base.files import write_json
from chinchilla_jax.base.words import count
from chinchilla_jax.scaling.answers import answers
from chinchilla_jax.scaling.answers.answers import Law, Section
from chinchilla_jax.scaling.answers.next_runs import describe as describe_next
from chinchilla_jax.scaling.answers.next_runs import next_runs
from chinchilla_jax.scaling.answers.recommended import other_sizes
from chinchilla_jax.scaling.laws.published import law
from chinchilla_jax.scaling.predict.predict import Prediction
from chinchilla_jax.scaling.read.flops import flops_of
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns
from chinchilla_jax.scaling.read.target import target_budget
from chinchilla_jax.scaling.report import summary

_MOST = 1e40  # of anything asked; far beyond every law
_ALLOWANCE = 0.1  # of the target budget, for all further runs together
_OTHER_SIZES = ("smaller", "presets")  # sections that follow the recommended law


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
            if field.name != "inputs" and value is not None and not 0 < value < _MOST:
                flag = "budget" if field.name == "flops" else field.name
                raise FitRefused("question", f"--{flag}={value:g} must lie between 0 and {_MOST:g}")


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
    on_surface = {name: getattr(question, name) for name in ("params", "tokens", "unique_tokens", "inference_tokens")}
    if loaded is None and others and not surfaces and any(on_surface.values()):
        flag = next(name for name, value in on_surface.items() if value)
        raise FitRefused("question", f"--{flag} needs a law E + A/N^alpha + B/D^beta, such as besiroglu2024; "
                         f"{others[0]} is asked about a budget only")  # fmt: skip
    unknown = set(question.inputs) - {key for name in others for key in law(name).form.input_names}
    if unknown:
        raise FitRefused("inputs", f"--inputs={sorted(unknown)[0]}: no law asked for takes it")
    if loaded is not None and callable(flops_of(loaded.role("isoflop"))):
        flag = next((name for name in ("unique_tokens", "inference_tokens") if on_surface[name]), None)
        if flag:
            raise FitRefused("convention", f"--{flag} counts C as 6 N D and these runs do not: ask a published law "
                             "without --study or --runs")  # fmt: skip
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
    if prediction is not None:
        echo("")
        summary.remarks(prediction, loaded, echo)
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
        return other_sizes(prediction) if prediction is not None else ()
    asked = dataclasses.asdict(question)
    asked = {name: value for name, value in asked.items() if name not in ("more_runs", "inputs")}
    found = list(summary.questions(laws, **asked, prediction=prediction))
    if prediction is not None and prediction.recommended != "parametric":
        best = prediction.best
        note = (f"this table needs a loss surface, so it is approach 3's; recommended is {prediction.recommended}: "
                f"N {count(best.params)}, loss {best.loss:.4f}")  # fmt: skip
        found = [
            section if section.key in _OTHER_SIZES else dataclasses.replace(section, notes=(*section.notes, note))
            for section in found
        ]
    if prediction is None and question.flops is not None:
        found.insert(1, answers.printed_allocations(question.flops))
    return tuple(found)


def _facts(prediction: Prediction) -> dict[str, Any]:
    names = ("budget", "extrapolation", "estimates", "recommended", "why", "tokens_at_budget", "rollouts", "warnings",
             "refused")  # fmt: skip
    return {name: getattr(prediction, name) for name in names} | {"preset": prediction.analysis.preset}
