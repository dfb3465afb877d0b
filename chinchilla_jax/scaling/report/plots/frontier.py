"""How do the best size, the best number of tokens and the lowest loss grow with compute?"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from chinchilla_jax.base.words import loss_label
from chinchilla_jax.scaling.fits.approach2.isoflop import IsoflopFit
from chinchilla_jax.scaling.predict.predict import Prediction
from chinchilla_jax.scaling.read.heldout import HeldOut, held_out
from chinchilla_jax.scaling.read.runs import Run
from chinchilla_jax.scaling.report.plots import style
from chinchilla_jax.scaling.report.plots.style import BLUE, GREEN, ORANGE

_MINIMA = {"color": BLUE, "ms": 7, "mec": "white", "label": "profile minima", "zorder": 4}
_THIRD = {"color": ORANGE, "ms": 9, "mfc": "none", "mew": 2, "zorder": 4, "label": "approach 3, predicted"}
_CROSS = {"color": GREEN, "ms": 8, "mew": 2}
_STAR = {"color": GREEN, "ms": 13, "mew": 0.8, "mec": "white"}


def plot_frontier(prediction: Prediction, runs: Sequence[Run], path: pathlib.Path, loss_unit: str = "") -> pathlib.Path:
    """N*(C) and D*(C): minima, power laws with 95% bootstrap bands, approach 3 and the held-out runs."""
    fit, budget = prediction.fits.isoflop, prediction.budget
    budgets = [p.budget for p in fit.profiles] if fit else [run.flops for run in prediction.fits.runs]
    c = np.geomspace(min(budgets) / 1.5, budget * 1.5, 120)
    with style.drawing(path, 5.6, 1, 2) as (_, both):
        for axes, name, word, letter in ((both[0], "params", "Parameters", "N"), (both[1], "tokens", "Tokens", "D")):
            if fit:
                _law(axes, fit, name, letter, c)
            if "parametric" in prediction.estimates:
                axes.plot([budget], [getattr(prediction.estimates["parametric"], name)], "D", **_THIRD)
            _held_out(axes, held_out(runs), name, budget)
            style.mark_budget(axes, budget)
            style.log_flops(axes)
            style.log_counts(axes, "y")
            axes.set(ylabel=f"{word} {letter}", title=f"Optimal {word.lower()}")
            style.legend_below(axes, 1)
    return path


def _law(axes: Axes, fit: IsoflopFit, name: str, letter: str, c: np.ndarray) -> None:
    law, boot = getattr(fit, f"{name}_law"), getattr(fit, f"boot_{name}")
    if boot is not None:
        style.band(axes, c, np.percentile(boot.at(c[:, None]), [2.5, 97.5], axis=1))
    label = f"approach 2: ${letter}^* \\propto C^{{{float(law.exponent):.3f}}}$"
    axes.plot(c, law.at(c), color=BLUE, lw=2, label=label)
    axes.plot([p.budget for p in fit.profiles], [getattr(p, name).best for p in fit.profiles], "o", **_MINIMA)


def _held_out(axes: Axes, models: Sequence[HeldOut], name: str, budget: float) -> None:
    """A star for the model of the lowest loss, where there are several, and crosses for the others."""
    best = min(models, key=lambda model: model.loss) if len(models) > 1 else None
    for model in models:
        value = getattr(model, name)
        if model is best:
            axes.plot([budget], [value], "*", zorder=5, label="held out, lowest loss", **_STAR)
        else:
            axes.plot([budget], [value], "x", zorder=5, label="_" if best else "held out", **_CROSS)
    if best:
        axes.plot([], [], "x", label="held out, others", **_CROSS)


def plot_loss_frontier(
    prediction: Prediction, runs: Sequence[Run], path: pathlib.Path, loss_unit: str = "nats per token"
) -> pathlib.Path:
    """Minimum loss against compute: every run, the profile minima, the loss law of approach 2 and the held-out runs.

    Runs far above the minima are arrows at the edge.
    """
    fits, fit = prediction.fits, prediction.fits.isoflop
    held = [run for run in runs if run.role != "isoflop"]
    with style.drawing(path, 5.8) as (_, axes):
        shown = [estimate.loss for estimate in prediction.estimates.values()] + [run.loss for run in held]
        shown += [p.params.lowest for p in fit.profiles] if fit else []
        low, high = min(shown), max(run.loss for run in fits.runs)
        if fit:
            high = min(high, max(shown) + 0.25 * (max(shown) - low))
        axes.set_ylim(low - 0.12 * (high - low), high + 0.04 * (high - low))
        points = [r.flops for r in fits.runs], [r.loss for r in fits.runs]
        style.clipped(axes, *points, "#9AA1AC", ".", ms=7, label="all runs")
        if fit:
            _loss_law(axes, prediction)
        if "parametric" in prediction.estimates:
            axes.plot([prediction.budget], [prediction.estimates["parametric"].loss], "D", **_THIRD)
        if held:
            points = [r.flops for r in held], [r.loss for r in held]
            axes.plot(*points, "x", zorder=5, label="held out, trained", **_CROSS)
        style.log_flops(axes)
        axes.set(ylabel=loss_label(loss_unit), title="Loss frontier")
        style.legend_below(axes)
    return path


def _loss_law(axes: Axes, prediction: Prediction) -> None:
    """L*(C) of approach 2 with its 95% band, and the minima it goes through."""
    fit = prediction.fits.isoflop
    c = np.geomspace(fit.profiles[0].budget / 1.5, prediction.budget * 1.5, 120)
    if fit.boot_params is not None:
        ends = [fit.loss_law.interval(budget, 0.95, one_run=False) for budget in c]
        style.band(axes, c, np.array(ends).T)
    label = f"approach 2: L* = {prediction.estimates['isoflop'].loss_law}"
    axes.plot(c, fit.loss_law.at(c), color=BLUE, lw=2, label=label)
    axes.plot([p.budget for p in fit.profiles], [p.params.lowest for p in fit.profiles], "o", **_MINIMA)
