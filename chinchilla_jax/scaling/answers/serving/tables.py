"""How are the answers about served mixtures told: one table for each question?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from chinchilla_jax.base.words import count, flops_text
from chinchilla_jax.scaling.answers.answers import Answer
from chinchilla_jax.scaling.answers.serving.experts import (
    Choice,
    Setting,
    bounded_cost,
    bounded_loss,
    loss_optimal,
    optimal_for_cost,
    width_times_layers,
)
from chinchilla_jax.scaling.answers.serving.law import ExpertsLaw
from chinchilla_jax.scaling.read.runs import FitRefused

_OWN = "N/N_E: of its loss-optimal size"


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked of a law: training FLOPs C; numbers of `experts`; `reference`, that whose loss-optimal mixture sets
    the bounds, unless `max_loss` (nats) or `max_cost` (of a million output tokens) do."""

    flops: float
    experts: tuple[int, ...]
    reference: int
    max_loss: float | None = None
    max_cost: float | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """The answers to a question by number of experts, None where there is no such mixture: `best`, loss-optimal, with
    the reference among them; `cheaper`, of a loss of at most `most_loss`; `better`, of a cost of at most `most_cost`;
    `equal`, loss-optimal at that cost with whatever budget that takes."""

    question: Question
    setting: Setting
    best: Mapping[int, Choice]
    most_loss: float
    most_cost: float
    cheaper: Mapping[int, Choice | None]
    better: Mapping[int, Choice | None]
    equal: Mapping[int, Choice | None]


def find(setting: Setting, question: Question) -> Found:
    """Searches every answer.

    FitRefused: `question`, numbers of experts that make no mixture, or a reference that no server holds; `no_optimum`.
    """
    every = dict.fromkeys((*question.experts, question.reference))
    for experts in every:
        setting.mixture.check(experts)
    flops = question.flops
    best = {e: loss_optimal(setting, e, flops) for e in every}
    reference = best[question.reference]
    most_loss = reference.loss if question.max_loss is None else question.max_loss
    most_cost = reference.cost if question.max_cost is None else question.max_cost
    if not np.isfinite(most_cost):
        chips = f"{setting.server.largest} {setting.server.name} chips"
        why = f"its {count(reference.total)} parameters, loss-optimal, do not fit {chips}; give --serve=max_cost:COST"
        raise FitRefused("question", f"--reference={question.reference}: {why}")
    return Found(
        question,
        setting,
        best,
        most_loss,
        most_cost,
        cheaper={e: bounded_loss(setting, e, flops, most_loss) for e in question.experts},
        better={e: bounded_cost(setting, e, flops, most_cost) for e in question.experts},
        equal={e: optimal_for_cost(setting, e, most_cost, flops) for e in question.experts},
    )


def experts_text(experts: int) -> str:
    """`4 experts`, or `the dense model`."""
    return "the dense model" if experts == 1 else f"{experts} experts"


def share_of_optimal(choice: Choice, found: Found) -> float:
    """N' / N_E."""
    return choice.params / found.best[choice.experts].params


def lowest(choices: Mapping[int, Choice | None], key: Callable[[Choice], float]) -> Choice | None:
    """The mixture that is lowest in something, of those that there are and where that is finite."""
    there = [choice for choice in choices.values() if choice is not None and np.isfinite(key(choice))]
    return min(there, key=key, default=None)


def optimal(found: Found, law: ExpertsLaw, unit: str) -> Answer:
    """The loss-optimal mixtures and what they cost; `unit`, in words, is that of the cost of a million tokens."""
    rows = []
    for e in found.question.experts:
        choice, served = found.best[e], found.best[e].serving
        row: dict[str, Any] = {"experts": str(e), "N": choice.params, "N, all": choice.total}
        row |= {"N, active": choice.active, "D": choice.tokens, "loss": choice.loss}
        if ends := law.interval(choice.params, choice.tokens, e):
            row["loss, 95%"] = ends
        if np.isfinite(choice.cost):
            row |= {"chips": float(served.chips), "batch": float(served.batch), "tokens/s": float(served.rate)}
        rows.append(row | {"cost": choice.cost})
    title = f"Loss-optimal mixtures for C = {found.question.flops:.4g} FLOPs, and what they cost to serve"
    notes = (*_premises(found.setting, unit), *_beyond(law, {e: found.best[e] for e in found.question.experts}))
    return Answer("experts_optimal", title, tuple(rows), notes)


def _premises(setting: Setting, unit: str) -> tuple[str, ...]:
    """What the counts and costs suppose."""
    server, mixture, traffic = setting.server, setting.mixture, setting.traffic
    scaled = "the roofline as it is, which no server reaches: a stated --throughput would scale it"
    if server.efficiency != 1.0:
        scaled = f"{server.efficiency:.3g} times the roofline, by the throughput stated"
    chips = f"servers of 1 to {server.largest} {server.name} chips of {flops_text(server.memory)} bytes each"
    requests = f"prompts of {traffic.prompt:g} and outputs of {traffic.output:g} tokens"
    share, size = mixture.routed_share, mixture.expert_size
    kept = 2.0 * width_times_layers() * mixture.kv_share * mixture.value_bytes
    return (
        f"Cost: {unit}; {chips}, {requests}; {scaled}. Batch: requests at once; tokens/s: output of one server",
        f"N is of the dense model; all: N (1 + {share:.3g} ({size:g} E - 1)); active, with C = 6 N D of these: N (1 + "
        f"{share:.3g} ({mixture.top_k * size:g} - 1)). {mixture.weight_bytes:g} bytes a weight; keys and values of a "
        f"token {kept:.3g} N^(2/3) bytes, by the shapes of LLaMA",
    )


def _beyond(law: ExpertsLaw, choices: Mapping[int, Choice | None]) -> list[str]:
    """Which mixtures lie where the law has no runs."""
    notes = []
    for name, (low, high) in law.ranges.items():
        values = {e: e if name == "experts" else c.tokens / c.params for e, c in choices.items() if c}
        beyond = [str(e) for e, value in values.items() if not low <= value <= high]
        if beyond:
            notes.append(f"Beyond the runs, whose {name} is {count(low)} to {count(high)}: {', '.join(beyond)} experts")
    return notes


def at_bounded_loss(found: Found, law: ExpertsLaw) -> Answer:
    """Algorithm 1: what is cheapest to serve at the bound of the loss."""
    reference, rows = found.best[found.question.reference], []
    for e, choice in found.cheaper.items():
        row = _shrunk(e, choice, found)
        if choice:
            row |= {"cost, at N_E": found.best[e].cost, "cost, of reference": choice.cost / reference.cost}
        rows.append(row)
    title = f"Cheapest to serve at a loss of at most {found.most_loss:.4f}"
    best = lowest(found.cheaper, lambda choice: choice.cost)
    given = found.question.max_loss is not None
    notes = _notes("Cheapest", best, found, given, found.cheaper, "reaches it")
    return Answer("experts_bounded_loss", title, tuple(rows), (*notes, *_beyond(law, found.cheaper)))


def at_bounded_cost(found: Found, law: ExpertsLaw) -> Answer:
    """Algorithm 2: what has the lowest loss at the bound of the cost."""
    rows = []
    for e, choice in found.better.items():
        row = _shrunk(e, choice, found)
        if choice:
            row["loss, at N_E"] = found.best[e].loss
        rows.append(row)
    title = f"Lowest loss at a cost of at most {found.most_cost:.4g}"
    best = lowest(found.better, lambda choice: choice.loss)
    given = found.question.max_cost is not None
    notes = _notes("Best", best, found, given, found.better, "is that cheap")
    return Answer("experts_bounded_cost", title, tuple(rows), (*notes, *_beyond(law, found.better)))


def _shrunk(e: int, choice: Choice | None, found: Found) -> dict[str, Any]:
    """A row of a mixture that is smaller than the loss-optimal one."""
    if choice is None:
        return {"experts": str(e), "N": None}
    row: dict[str, Any] = {"experts": str(e), "N": choice.params, "N/N_E": share_of_optimal(choice, found)}
    row |= {"N, all": choice.total, "N, active": choice.active, "D": choice.tokens}
    return row | {"D/N": choice.tokens / choice.params, "loss": choice.loss, "cost": choice.cost}


def _notes(
    word: str, best: Choice | None, found: Found, given: bool, choices: Mapping[int, Choice | None], fails: str
) -> list[str]:
    """The best row, whose the bound is, and which rows are empty."""
    notes = [f"{word}: {experts_text(best.experts)} at N/N_E = {share_of_optimal(best, found):.3g}"] if best else []
    whose = f"that of {experts_text(found.question.reference)}, loss-optimal"
    notes.append(f"The bound is {'as given' if given else whose}. {_OWN}; all of C is spent")
    without = [str(e) for e, choice in choices.items() if choice is None]
    return notes + ([f"No mixture of {', '.join(without)} experts {fails} with this C"] if without else [])


def at_equal_cost(found: Found) -> Answer:
    """Loss-optimal mixtures of one cost, each with a budget of its own."""
    rows: list[dict[str, Any]] = []
    for e, choice in found.equal.items():
        row: dict[str, Any] = {"experts": str(e), "C": choice.flops if choice else None}
        if choice:
            row |= {"of C given": choice.flops / found.question.flops, "N": choice.params, "N, all": choice.total}
            row |= {"D": choice.tokens, "loss": choice.loss, "cost": choice.cost}
        rows.append(row)
    notes = ("Each with the budget for which it is loss-optimal at that cost: none is trained for longer",)
    return Answer("experts_equal_cost", f"Loss-optimal mixtures that cost {found.most_cost:.4g}", tuple(rows), notes)
