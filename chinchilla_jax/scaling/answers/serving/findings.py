"""What do this law and server say of the questions that Yun et al. 2024 (arXiv 2404.02852) answered with theirs?

The paper's figures are printed beside, not asserted: its law's constants are published nowhere, its servers were
profiled, and its models are others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from chinchilla_jax.scaling.answers.answers import Answer
from chinchilla_jax.scaling.answers.serving.experts import bounded_loss, optimal_for_loss
from chinchilla_jax.scaling.answers.serving.tables import Found, best_of, cheapest_of, experts_text, lowest

_FEW, _MANY, _FLOPS = 4, 16, (0.237, 0.428)  # FLOPs of many experts for the loss of few
# (E, reference): cost of a token at the reference's loss, as a share of the reference's.
_COSTS = {(8, 1): (0.316, 0.381), (8, 4): (0.477, 0.510), (16, 4): (0.47, 0.52)}


def findings(found: Found) -> Answer:
    """One sentence for each finding that the numbers of experts asked about can speak to."""
    notes = (*_at_equal_cost(found), *_training(found), *_costs(found), *_recommended(found))
    return Answer("experts_paper", "Beside the findings of Yun et al. 2024, which depend on its law", (), notes)


def _at_equal_cost(found: Found) -> Iterator[str]:
    there = [choice for choice in found.equal.values() if choice]
    winner = lowest(found.equal, lambda choice: choice.loss)
    if winner is None or len(there) < 2:
        return
    words, widest = experts_text(winner.experts), max(choice.experts for choice in there)
    if winner.experts != widest:
        same = optimal_for_loss(found.setting, widest, winner.loss, winner.flops)
        if same:
            words += f", with {winner.flops / same.flops:.3g} times the training that {widest} need for that loss"
    yield f"Lowest loss of loss-optimal mixtures at equal cost: {words}; the paper: 4 or 8, with 2.5 to 3.5 times"


def _training(found: Found) -> Iterator[str]:
    if {_FEW, _MANY} <= set(found.question.experts):
        same = optimal_for_loss(found.setting, _MANY, found.under.best[_FEW].loss, found.question.flops)
        here = "not reached" if same is None else f"{same.flops / found.question.flops:.1%}"
        yield f"Training FLOPs of {_MANY} experts for the loss of {_FEW}: {here}; the paper: {_span(_FLOPS)}"


def _costs(found: Found) -> Iterator[str]:
    for (many, few), printed in _COSTS.items():
        if {many, few} <= set(found.question.experts) and np.isfinite(found.under.best[few].cost):
            same = bounded_loss(found.setting, many, found.question.flops, found.under.best[few].loss)
            here = "not reached" if same is None else f"{same.cost / found.under.best[few].cost:.1%}"
            words = f"Cost of {many} experts at the loss of {experts_text(few)}, over the cost of the latter"
            yield f"{words}: {here}; the paper: {_span(printed)}"


def _recommended(found: Found) -> Iterator[str]:
    for winner, bound, printed in (
        (best_of(found.under), "cost", "32 experts at 30%"),
        (cheapest_of(found.under), "loss", "16 experts at 16%"),
    ):
        if winner is not None:
            here = f"{experts_text(winner.experts)} at {found.under.share_of_optimal(winner):.0%}"
            yield f"Best at a bounded {bound}: {here} of the loss-optimal size; the paper: {printed}"


def _span(pair: Sequence[float]) -> str:
    return f"{pair[0]:.1%} to {pair[1]:.1%}"
