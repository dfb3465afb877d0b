"""What does a loss cost to serve, for each number of experts, when the whole budget is spent on any size?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from chinchilla_jax.base.words import flops_text
from chinchilla_jax.scaling.answers.serving.tables import Found
from chinchilla_jax.scaling.report.plots import style
from chinchilla_jax.scaling.report.plots.style import BUDGET, MARKERS

_SIZES = 200
_SMALLEST = 0.02  # of the loss-optimal size, where a curve begins at the latest


def plot_served(found: Found, unit: str, path: Path) -> Path:
    """Loss against the cost of a served token, by number of experts: the marker is loss-optimal, to the left of it
    mixtures are smaller and trained for longer. Dashed: the bounds."""
    under, flops = found.under, found.question.flops
    smallest = {e: c.params for e, c in under.cheaper.items() if c}
    with style.drawing(path, 5.6) as (_, axes):
        for number, (e, colour) in enumerate(
            zip(found.question.experts, style.shades_of(len(found.question.experts)), strict=True)
        ):
            best = under.best[e]
            first = min(smallest.get(e, best.params), best.params * _SMALLEST)
            sizes = np.geomspace(first, best.params, _SIZES)
            cost = found.setting.serving(sizes, e).cost
            look = {"color": colour, "marker": MARKERS[number % len(MARKERS)]}
            axes.plot(cost, found.setting.loss(sizes, e, flops), lw=1.8, ms=8, markevery=[-1], label=str(e), **look)
        axes.axhline(under.most_loss, **BUDGET)
        axes.axvline(under.most_cost, **BUDGET)
        style.log_counts(axes, "x", "{:.3g}".format)
        axes.set(xlabel=f"Cost, {unit}", ylabel="Loss", title=f"All of C = {flops_text(flops)} FLOPs on any size")
        axes.legend(title="Experts")
    return path
