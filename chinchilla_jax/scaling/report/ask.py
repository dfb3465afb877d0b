"""What do the verbs `predict` and `suggest` answer: from finished runs, from published laws, or from both?"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chinchilla_jax.base.files import write_json
from chinchilla_jax.base.words import Echo, count
from chinchilla_jax.scaling.answers import answers
from chinchilla_jax.scaling.answers.answers import Answer, Law
from chinchilla_jax.scaling.answers.recommended import other_sizes, surface_law
from chinchilla_jax.scaling.answers.suggest.suggest import Suggestion, suggest
from chinchilla_jax.scaling.answers.suggest.suggest import answer as answer_of
from chinchilla_jax.scaling.laws.published import law
from chinchilla_jax.scaling.predict.analysis import Analysis, analyse
from chinchilla_jax.scaling.predict.predict import Prediction, predict
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns, flops_of, target_budget
from chinchilla_jax.scaling.report.facts import facts_of
from chinchilla_jax.scaling.report.sections import of_prediction, of_suggestion
from chinchilla_jax.scaling.report.text import announce, tell

_UNDER_HELD_OUT = 0.5  # of the held-out budget: the most that a further run of a study may cost
_MOST = 1e40  # of anything asked; far beyond every law
_NEED_6ND = ("unique_tokens", "inference_tokens")


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked; None is not asked. `flops` C, `params` N, `tokens` D, `unique_tokens` of the data set,
    `inference_tokens` to be served. `inputs`: what laws of other forms need besides N and D."""

    flops: float | None = None
    params: float | None = None
    tokens: float | None = None
    unique_tokens: float | None = None
    inference_tokens: float | None = None
    inputs: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.asked.items():
            if not 0 < value < _MOST:
                flag = "budget" if name == "flops" else name
                raise FitRefused("question", f"--{flag}={value:g} must lie between 0 and {_MOST:g}")

    @property
    def asked(self) -> dict[str, float]:
        """The numbers that are given, by name."""
        return {name: value for name, value in vars(self).items() if name != "inputs" and value is not None}

    def first_of(self, *names: str) -> str | None:
        """The first of these that was asked."""
        return next((name for name in self.asked if name in names), None)


def ask(
    loaded: LoadedRuns | None,
    names: Sequence[str],
    question: Question,
    fits: Analysis | Mapping[str, Any],
    output: str | os.PathLike | None = None,
    echo: Echo = print,
) -> Prediction | None:
    """Prints the answers, and writes the facts to `output` as JSON; returns the prediction of the runs, if any.

    The answers come from the runs, with their `fits` or as `analyse(**fits)` makes them, and from the published laws of
    these `names`. Without runs and names they come from the paper's law and its refit.

    Raises:
      FitRefused: no fit; an unknown law; `question`, when what is asked cannot be answered from what was given.
    """
    surfaces = [name for name in names if law(name).form_name == "chinchilla"]
    others = [name for name in names if name not in surfaces]
    if loaded is not None:
        question = dataclasses.replace(question, flops=question.flops or target_budget(loaded))
    _check(loaded, surfaces, others, question)
    laws = list(answers.published_laws(surfaces)) if surfaces or (loaded is None and not others) else []
    flops, prediction = question.flops, None
    if loaded is not None and flops is not None:
        if not isinstance(fits, Analysis):
            announce(loaded, fits["preset"], echo)
            fits = analyse(loaded.runs, **fits)
        prediction = predict(fits, flops)
        fitted = surface_law(prediction, f"fitted to {loaded.source}")
        laws += [fitted] if fitted else []
    flag = question.first_of("params", "tokens", *_NEED_6ND)
    if prediction is not None and not laws and flag:
        why = prediction.fits.parametric.known.why if prediction.fits.parametric else "approach 3 was not fitted"
        raise FitRefused(
            "question", f"--{flag} needs a loss surface, and these runs give none ({why}); give --law=NAME"
        )
    results = _answers(laws, others, question, prediction)
    facts = facts_of(loaded, prediction=prediction, question=question, answers=results)
    tell(of_prediction(facts), echo)
    if output is not None:
        write_json(output, facts)
        echo(f"written: {output}")
    return prediction


def ask_next(
    loaded: LoadedRuns,
    target: float | None,
    purse: float,
    count: int,
    quantity: str,
    output: str | os.PathLike | None = None,
    echo: Echo = print,
) -> Suggestion:
    """Prints which runs narrow the prediction for `target` FLOPs the most, and writes the facts to `output` as JSON.

    Without a target it is that of `target_budget`.

    Raises:
      FitRefused: no fit; `no_budget`; as `suggest`.
    """
    target = target or target_budget(loaded)
    if target is None:
        raise FitRefused("no_budget", f"{loaded.source}: no held-out budget to ask about; give --budget=FLOPS")
    announce(loaded, "corrected", echo)
    fits = analyse(loaded.runs, replicates=0)
    most = _UNDER_HELD_OUT * target if loaded.header else math.inf  # a study's held-out runs stay a test
    suggestion = suggest(fits, target, purse, count, quantity, most=most)
    more: dict[str, Any] = {"target_budget": target, "suggestion": suggestion, "answers": [answer_of(suggestion)]}
    facts = facts_of(loaded, fits, **more)
    tell(of_suggestion(facts), echo)
    if output is not None:
        write_json(output, facts)
        echo(f"written: {output}")
    return suggestion


def _check(loaded: LoadedRuns | None, surfaces: Sequence[str], others: Sequence[str], question: Question) -> None:
    """Refuses what cannot be answered, before anything is fitted."""
    flag = question.first_of("params", "tokens", *_NEED_6ND)
    if loaded is None and others and not surfaces and flag:
        needs = f"--{flag} needs a law E + A/N^alpha + B/D^beta, such as besiroglu2024"
        raise FitRefused("question", f"{needs}; {others[0]} is asked about a budget only")
    unknown = set(question.inputs) - {key for name in others for key in law(name).form.input_names}
    if unknown:
        raise FitRefused("inputs", f"--inputs={sorted(unknown)[0]}: no law asked for takes it")
    flag = question.first_of(*_NEED_6ND)
    if loaded is not None and flag and callable(flops_of(loaded.role("isoflop"))):
        counts = f"--{flag} counts C as 6 N D and these runs do not"
        raise FitRefused("convention", f"{counts}: ask a published law without --study or --runs")
    if loaded is not None and question.flops is None:
        raise FitRefused("no_budget", f"{loaded.source}: no held-out budget to ask about; give --budget=FLOPS")
    if loaded is None and not question.first_of("flops", "params", "tokens"):
        give = "give --budget (or --chip, --chips, --days), --params or --tokens"
        raise FitRefused("question", f"nothing to answer: {give}")
    if others and question.flops is None:
        give = "give --budget, or --chip, --chips and --days"
        raise FitRefused("question", f"{others[0]} is asked about a budget: {give}")


def _answers(
    laws: Sequence[Law], others: Sequence[str], question: Question, prediction: Prediction | None
) -> list[Answer]:
    results, flops = list(_of_surfaces(laws, question)) if laws else [], question.flops
    if prediction is not None:
        if prediction.recommended != "parametric":
            note = (
                f"This table needs a loss surface, so it is approach 3's; recommended is {prediction.recommended}: "
                f"N {count(prediction.best.params)}, loss {prediction.best.loss:.4f}"
            )
            results = [dataclasses.replace(answer, notes=(*answer.notes, note)) for answer in results]
        results += other_sizes(prediction)
    elif laws and flops is not None:
        results.insert(1, answers.printed_allocations(flops))
        results += [answers.smaller(laws[-1], flops), answers.nearest_presets(laws[-1], flops)]
    if others and flops is not None:
        results.append(answers.other_laws(others, flops, question.inputs))
    return results


def _of_surfaces(laws: Sequence[Law], question: Question) -> Iterator[Answer]:
    flops = question.flops
    if flops is not None:
        yield answers.optimum(laws, flops)
    if question.params is not None or question.tokens is not None:
        yield answers.fixed(laws, flops, question.params, question.tokens)
    if flops is not None and question.unique_tokens is not None:
        yield answers.with_unique_tokens(laws, flops, question.unique_tokens)
    if flops is not None and question.inference_tokens is not None:
        yield answers.with_inference(laws, flops, question.inference_tokens)
