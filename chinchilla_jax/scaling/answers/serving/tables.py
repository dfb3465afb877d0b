"""How are the answers about served mixtures told: one table for each question?"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from chinchilla_jax.base.words import count, flops_text
from chinchilla_jax.scaling.answers.answers import Answer
from chinchilla_jax.scaling.answers.serving.experts import (
    Choice,
    Loss,
    Setting,
    bounded_cost,
    bounded_loss,
    loss_optimal,
    optimal_for_cost,
    width_times_layers,
)
from chinchilla_jax.scaling.answers.serving.law import ExpertsLaw
from chinchilla_jax.scaling.fits.resample import interval
from chinchilla_jax.scaling.read.runs import FitRefused

_ENOUGH = 20  # replicates for an interval


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
class Bounded:
    """Under one law, by number of experts, None where there is no such mixture: `best`, loss-optimal, the reference
    among them; `cheaper`, of a loss of at most `most_loss`; `better`, of a cost of at most `most_cost`."""

    best: Mapping[int, Choice]
    most_loss: float
    most_cost: float
    cheaper: Mapping[int, Choice | None]
    better: Mapping[int, Choice | None]

    def share_of_optimal(self, choice: Choice) -> float:
        """N' / N_E."""
        return choice.params / self.best[choice.experts].params


@dataclasses.dataclass(frozen=True)
class Found:
    """The answers to a question: `under` the law itself; `equal`, by number of experts the loss-optimal mixture of the
    bounded cost, with whatever budget that takes, or None; `drawn`, the same as `under` of replicates of the law."""

    question: Question
    setting: Setting
    under: Bounded
    equal: Mapping[int, Choice | None]
    drawn: tuple[Bounded, ...] = ()


def find(setting: Setting, question: Question, replicates: Iterable[Loss] = ()) -> Found:
    """Searches every answer; under the `replicates` of the law those of the bounds, which follow the reference there.

    FitRefused: `question`, numbers of experts that make no mixture, or a reference that no server holds; `no_optimum`.
    """
    for experts in (*question.experts, question.reference):
        setting.mixture.check(experts)
    under = _bounded(setting, question)
    equal = {e: optimal_for_cost(setting, e, under.most_cost, question.flops) for e in question.experts}
    drawn = []
    for law in replicates:
        with contextlib.suppress(FitRefused):  # a replicate without an optimum is no answer
            drawn.append(_bounded(dataclasses.replace(setting, law=law), question))
    return Found(question, setting, under, equal, tuple(drawn))


def _bounded(setting: Setting, question: Question) -> Bounded:
    flops = question.flops
    best = {e: loss_optimal(setting, e, flops) for e in dict.fromkeys((*question.experts, question.reference))}
    reference = best[question.reference]
    most_loss = reference.loss if question.max_loss is None else question.max_loss
    most_cost = reference.cost if question.max_cost is None else question.max_cost
    if not np.isfinite(most_cost):
        chips = f"{setting.server.largest} {setting.server.name} chips"
        why = f"its {count(reference.total)} parameters, loss-optimal, do not fit {chips}; give --serve=max_cost:COST"
        raise FitRefused("question", f"--reference={question.reference}: {why}")
    cheaper = {e: bounded_loss(setting, e, flops, most_loss) for e in question.experts}
    better = {e: bounded_cost(setting, e, flops, most_cost) for e in question.experts}
    return Bounded(best, most_loss, most_cost, cheaper, better)


def experts_text(experts: int) -> str:
    """`4 experts`, or `the dense model`."""
    return "the dense model" if experts == 1 else f"{experts} experts"


def lowest(choices: Mapping[int, Choice | None], key: Callable[[Choice], float]) -> Choice | None:
    """The mixture that is lowest in something, of those that there are and where that is finite."""
    there = [choice for choice in choices.values() if choice is not None and np.isfinite(key(choice))]
    return min(there, key=key, default=None)


def optimal(found: Found, law: ExpertsLaw, unit: str) -> Answer:
    """The loss-optimal mixtures and what they cost; `unit`, in words, is that of the cost of a million tokens."""
    best = {e: found.under.best[e] for e in found.question.experts}
    rows = []
    for e, choice in best.items():
        served = choice.serving
        row: dict[str, Any] = {"experts": str(e), "N": choice.params, "N, all": choice.total}
        row |= {"N, active": choice.active, "D": choice.tokens, "loss": choice.loss}
        if ends := law.interval(choice.params, choice.tokens, e):
            row["loss, 95%"] = ends
        if np.isfinite(choice.cost):
            row |= {"chips": float(served.chips), "batch": float(served.batch), "tokens/s": float(served.rate)}
        rows.append(row | {"cost": choice.cost})
    title = f"Loss-optimal mixtures for C = {found.question.flops:.4g} FLOPs, and what they cost to serve"
    notes = [*_premises(found.setting, unit), *_beyond(law, best)]
    if homeless := [str(e) for e, choice in best.items() if not np.isfinite(choice.cost)]:
        notes.append(f"Too large for the memory of {found.setting.server.largest} chips: {', '.join(homeless)} experts")
    return Answer("experts_optimal", title, tuple(rows), tuple(notes))


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
    under, reference = found.under, found.question.reference

    def of_reference(bounded: Bounded, choice: Choice) -> float:
        return choice.cost / bounded.best[reference].cost

    rows = []
    for e, choice in under.cheaper.items():
        row = _shrunk(e, choice, under)
        if choice:
            row |= _interval("N/N_E", [b.share_of_optimal(c) for b in found.drawn if (c := b.cheaper[e])])
            row |= {"cost, at N_E": under.best[e].cost, "cost, of reference": of_reference(under, choice)}
            row |= _interval("cost, of reference", [of_reference(b, c) for b in found.drawn if (c := b.cheaper[e])])
        rows.append(row)
    title = f"Cheapest to serve at a loss of at most {under.most_loss:.4f}"
    winners = [cheapest_of(bounded) for bounded in (under, *found.drawn)]
    notes = _notes("Cheapest", winners, found, found.question.max_loss, under.cheaper, "reaches it")
    return Answer("experts_bounded_loss", title, tuple(rows), (*notes, *_beyond(law, under.cheaper)))


def at_bounded_cost(found: Found, law: ExpertsLaw) -> Answer:
    """Algorithm 2: what has the lowest loss at the bound of the cost."""
    under, rows = found.under, []
    for e, choice in under.better.items():
        row = _shrunk(e, choice, under)
        if choice:
            row |= _interval("N/N_E", [b.share_of_optimal(c) for b in found.drawn if (c := b.better[e])])
            row |= {"loss, at N_E": under.best[e].loss}
            row |= _interval("loss", [c.loss for b in found.drawn if (c := b.better[e])])
        rows.append(row)
    title = f"Lowest loss at a cost of at most {under.most_cost:.4g}"
    winners = [best_of(bounded) for bounded in (under, *found.drawn)]
    notes = _notes("Best", winners, found, found.question.max_cost, under.better, "is that cheap")
    return Answer("experts_bounded_cost", title, tuple(rows), (*notes, *_beyond(law, under.better)))


def cheapest_of(bounded: Bounded) -> Choice | None:
    """Of the bounded loss."""
    return lowest(bounded.cheaper, lambda choice: choice.cost)


def best_of(bounded: Bounded) -> Choice | None:
    """Of the bounded cost."""
    return lowest(bounded.better, lambda choice: choice.loss)


def _shrunk(e: int, choice: Choice | None, under: Bounded) -> dict[str, Any]:
    """A row of a mixture that is smaller than the loss-optimal one."""
    if choice is None:
        return {"experts": str(e), "N": None}
    row: dict[str, Any] = {"experts": str(e), "N": choice.params, "N, all": choice.total, "N, active": choice.active}
    row |= {"D": choice.tokens, "D/N": choice.tokens / choice.params, "loss": choice.loss, "cost": choice.cost}
    return row | {"N/N_E": under.share_of_optimal(choice)}


def _interval(column: str, values: Sequence[float]) -> dict[str, tuple[float, float]]:
    """A column of 95% intervals over replicates; none where there are few."""
    finite = [value for value in values if np.isfinite(value)]
    return {f"{column}, 95%": interval(np.array(finite), 0.95)} if len(finite) >= _ENOUGH else {}


def _notes(
    word: str,
    winners: Sequence[Choice | None],
    found: Found,
    given: float | None,
    choices: Mapping[int, Choice | None],
    fails: str,
) -> list[str]:
    """The best row, and how many replicates agree on it; whose the bound is; which rows are empty."""
    best, *others = winners
    notes = []
    if best:
        notes.append(f"{word}: {experts_text(best.experts)} at N/N_E = {found.under.share_of_optimal(best):.3g}")
    if best and others:
        same = sum(other is not None and other.experts == best.experts for other in others)
        notes[0] += f"; so many experts in {same} of {len(others)} replicates of the law"
    whose = "as given" if given is not None else f"that of {experts_text(found.question.reference)}, loss-optimal"
    notes.append(f"The bound is {whose}. N/N_E: of its loss-optimal size; all of C is spent")
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
    return Answer(
        "experts_equal_cost", f"Loss-optimal mixtures that cost {found.under.most_cost:.4g}", tuple(rows), notes
    )
