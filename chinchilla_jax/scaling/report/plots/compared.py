"""What do the frontiers of several arms look like, and the gain over compute?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from chinchilla_jax.base.words import flops_text, loss_label
from chinchilla_jax.scaling.answers.compare.compare import Comparison
from chinchilla_jax.scaling.report.plots import style
from chinchilla_jax.scaling.report.plots.style import BLUE, BUDGET, GREEN, GREY, ORANGE, PURPLE

COLOURS = (GREY, BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9", "#000000")
_MOST = 20.0  # a gain beyond it is drawn at the edge


def plot_comparison(comparison: Comparison, path: Path) -> Path:
    """Loss against compute of every arm, and below it the compute-equivalent gain over the reference, both with 95%
    bands; dots are what the minima of one budget give. Arms that have one budget are dots there."""
    at_cells = all(arm.correlation is not None and not arm.budgets for arm in comparison.arms)
    with style.drawing(path, 8.6, 2, 1) as (_, (losses, gains)):
        for number, arm in enumerate(comparison.arms):
            colour, name = COLOURS[number % len(COLOURS)], arm.name
            if at_cells and number:
                _dot(losses, comparison.budget, arm.loss, arm.loss_95, colour, name)
                _dot(gains, comparison.budget, arm.target.factor, arm.target.factor_95, colour, "_")
                continue
            low, middle, high = comparison.frontiers[name]
            style.band(losses, comparison.flops, (low, high), colour, label="_")
            losses.plot(
                comparison.flops, middle, color=colour, lw=2, label=name + (" (reference)" if not number else "")
            )
            low, middle, high = np.clip(comparison.gains[name], 1.0 / _MOST, _MOST)
            if number:
                style.band(gains, comparison.flops, (low, high), colour, label="_")
            gains.plot(comparison.flops, middle, color=colour, lw=2 if number else 1.2, label="_")
            for gain in arm.budgets if number else ():
                ends = np.clip([gain.factor - gain.factor_95[0], gain.factor_95[1] - gain.factor], 0.0, _MOST)
                look = {"color": colour, "fmt": "o", "ms": 6, "mec": "white", "capsize": 3}
                gains.errorbar(gain.budget, min(gain.factor, _MOST), yerr=ends[:, None], **look)
        for axes in (losses, gains):
            axes.axvline(comparison.budget, **BUDGET)
            style.log_flops(axes)
        losses.set(ylabel=loss_label(comparison.loss_unit), title="Loss frontiers")
        title = f"Compute-equivalent gain over {comparison.reference}"
        gains.set(ylabel="Gain (times the compute)", title=f"{title}, dashed: {flops_text(comparison.budget)} FLOPs")
        style.legend_below(losses, 2) if at_cells else losses.legend(loc="upper center")
    return path


def _dot(axes: Axes, x: float, y: float, ends: tuple[float, float], colour: str, label: str) -> None:
    low, high = np.clip(ends, 0.0, max(_MOST, y))
    look = {"color": colour, "fmt": "o", "ms": 7, "mec": "white", "capsize": 4}
    axes.errorbar(x, y, yerr=[[max(y - low, 0.0)], [max(high - y, 0.0)]], label=label, **look)
