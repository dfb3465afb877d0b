"""How does each of several losses fall with compute? Small multiples on one compute axis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chinchilla_jax.scaling.answers.losses import LossFit
from chinchilla_jax.scaling.report.plots import style
from chinchilla_jax.scaling.report.plots.style import BLUE, BUDGET

_COLUMNS, _HEIGHT = 3, 2.6


def plot_losses(fits: Sequence[LossFit], budget: float, path: Path) -> Path | None:
    """A panel a loss: the minima of its profiles, the law and its 95% interval of one run up to `budget`."""
    shown = [fit for fit in fits if fit.fit is not None]
    if not shown:
        return None
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    with style.drawing(path, _HEIGHT * rows + 0.6, rows, columns, squeeze=False) as (_, panels):
        for axes, row in zip(panels.flat, shown, strict=False):
            fit = row.fit
            assert fit is not None
            c = np.geomspace(fit.profiles[0].budget, budget, 60)
            ends = np.array([fit.loss_law.interval(flops, 0.95) for flops in c]).T
            style.band(axes, c, ends)
            axes.plot(c, fit.loss_law.at(c), color=BLUE, lw=1.8)
            axes.plot([p.budget for p in fit.profiles], [p.params.lowest for p in fit.profiles], "o", color=BLUE, ms=5)
            axes.axvline(budget, **BUDGET)
            style.log_flops(axes)
            axes.set(title=row.name, ylabel=row.unit, xlabel="C (FLOPs)")
        for axes in list(panels.flat)[len(shown) :]:
            axes.set_visible(False)
    return path
