"""What does `predict --experts` answer: how many experts, when the mixture is also served?"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.base.config_values import did_you_mean
from chinchilla_jax.base.files import read_bytes, write_json, write_text
from chinchilla_jax.base.words import Echo
from chinchilla_jax.scaling.answers.serving import tables
from chinchilla_jax.scaling.answers.serving.cost import Server, Traffic, scaled_to, server_of
from chinchilla_jax.scaling.answers.serving.experts import Mixture, Setting
from chinchilla_jax.scaling.answers.serving.findings import findings
from chinchilla_jax.scaling.answers.serving.law import EXPERTS, constants_of, fitted_law, stated_law
from chinchilla_jax.scaling.answers.serving.tables import Question, find
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns
from chinchilla_jax.scaling.report.facts import facts_of
from chinchilla_jax.scaling.report.sections import answer_section, of_suggestion
from chinchilla_jax.scaling.report.text import tell

_MIXTURE = tuple(field.name for field in dataclasses.fields(Mixture))
_PLOT = "Loss and cost of serving"
_DRAWS = 100  # replicates of a fitted law that are searched
_KEYS = ("prompt", "output", *_MIXTURE, "most_chips", "max_loss", "max_cost")


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked, as the flags say it: training FLOPs; numbers of `experts`; the `reference` that sets the bounds,
    by default the first of them; the name of the `chip`; its `price` for an hour, None for chip-hours themselves;
    `serve`, numbers by name, of which `prompt` and `output` are needed; `throughput`, (dense N, output tokens/s, chips)
    as measured or stated."""

    flops: float | None
    experts: tuple[int, ...]
    chip: str | None
    serve: Mapping[str, float]
    reference: int | None = None
    price: float | None = None
    throughput: tuple[float, ...] | None = None


def ask_experts(
    source: LoadedRuns | str,
    request: Request,
    replicates: int = 0,
    seed: int = 0,
    output: str | os.PathLike | None = None,
    echo: Echo = print,
) -> dict[str, Any]:
    """Prints the answers of a law of mixtures: one fitted to runs, or a published or stated one of this name. Returns
    the facts; `output` takes them as FILE.json, or else is a folder for experts.html, experts.json and the plot.

    Raises:
      FitRefused: `question`, `chip` or `throughput`, something missing or out of range, before anything is fitted; as
        `fitted_law` or `stated_law`; `no_optimum`.
    """
    question, mixture, traffic, server = _understood(request)
    law = stated_law(source) if isinstance(source, str) else fitted_law(source, replicates, seed)
    unit = f"{'chip-hours' if request.price is None else 'dollars'} for a million output tokens"
    told = {name: value for name, value in law.mixture.items() if name not in request.serve}
    mixture = dataclasses.replace(mixture, **told)  # type: ignore[arg-type]
    found = find(Setting(law.loss, mixture, traffic, server), question, law.replicates(_DRAWS))
    answers = [
        constants_of(law),
        tables.optimal(found, law, unit),
        tables.at_bounded_loss(found, law),
        tables.at_bounded_cost(found, law),
        tables.at_equal_cost(found),
        findings(found),
    ]
    loaded = None if isinstance(source, str) else _without_sweep(source)
    facts = facts_of(loaded, target_budget=question.flops, question=request, answers=answers)
    sections = of_suggestion(facts) if loaded else [answer_section(answer) for answer in facts["answers"]]
    tell(sections, echo)
    if output is None:
        return facts
    path = files.path(output)
    if path.suffix != ".json":
        from chinchilla_jax.scaling.report.plots.served import plot_served
        from chinchilla_jax.scaling.report.report import render_page

        image = plot_served(found, unit, path / "plots" / "experts.png")
        facts["plots"] = {_PLOT: str(image.relative_to(path))}
        page = render_page("Served mixtures of experts", sections, (), {_PLOT: read_bytes(image)})
        write_text(path / "experts.html", page)
        echo(f"page: {path / 'experts.html'}")
        path = path / "experts.json"
    write_json(path, facts)
    echo(f"written: {path}")
    return facts


def _without_sweep(loaded: LoadedRuns) -> LoadedRuns:
    """The runs without the remark that they differ in their experts: here these are no setting to take the best of."""
    swept = [f"differ in {name} only" for name in EXPERTS]
    notes = tuple(note for note in loaded.notes if not any(words in note for words in swept))
    return dataclasses.replace(loaded, notes=notes)


def _understood(request: Request) -> tuple[Question, Mixture, Traffic, Server]:
    """The question, and what mixtures, traffic and servers are like; refused as `ask_experts`."""
    serve, flops = dict(request.serve), request.flops
    for name in serve:
        if name not in _KEYS:
            known = ", ".join(_KEYS)
            raise FitRefused("question", f"--serve={name}: unknown{did_you_mean(name, _KEYS)}; one of {known}")
    if flops is None:
        raise FitRefused("question", "--experts needs the training budget: give --budget=FLOPS")
    missing = [name for name in ("prompt", "output") if name not in serve]
    if missing:
        needs = "needs the mean tokens of a request: --serve=prompt:TOKENS,output:TOKENS"
        raise FitRefused("question", f"--experts {needs}; {' and '.join(missing)} missing")
    if request.chip is None:
        raise FitRefused("question", "--experts needs the chip that serves, as --chip=v5e")
    for experts in (*request.experts, *([] if request.reference is None else [request.reference])):
        Mixture(top_k=1).check(experts)  # against the runs' own top_k once they are read
    reference = request.experts[0] if request.reference is None else request.reference
    bounds = serve.get("max_loss"), serve.get("max_cost")
    if any(bound is not None and not bound > 0 for bound in bounds):
        raise FitRefused("question", "--serve: max_loss and max_cost must be above 0")
    mixture = Mixture(**{name: serve[name] for name in _MIXTURE if name in serve})  # type: ignore[arg-type]
    traffic = Traffic(serve["prompt"], serve["output"])
    server = server_of(request.chip, 1.0 if request.price is None else request.price, serve.get("most_chips"))
    if request.throughput is not None:
        params, rate, chips = request.throughput
        server = scaled_to(server, mixture.served(params, 1), traffic, rate, chips)
    return Question(flops, request.experts, reference, *bounds), mixture, traffic, server
