"""What do the profiles look like, from their minima up, and what lies at the held-out budget?"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from chinchilla_jax.base.words import flops_text, loss_label
from chinchilla_jax.scaling.answers.recommended import SizeLaw, recommended_law
from chinchilla_jax.scaling.predict.estimates import Estimate
from chinchilla_jax.scaling.predict.predict import Prediction
from chinchilla_jax.scaling.read.heldout import held_out
from chinchilla_jax.scaling.read.runs import Run
from chinchilla_jax.scaling.report.figures import (
    GREEN,
    GREY,
    MARKERS,
    ORANGE,
    RC,
    SIZE,
    STYLE,
    WIDTH,
    clipped,
    legend_below,
    log_counts,
    plt,
    save,
    shades_of,
)

_HIGHEST = 10.0  # percent above its minimum: the upper end of the second panel
_NAMED = 14  # budgets, at most, with a line of their own in the legend


def plot_profiles(
    prediction: Prediction, runs: Sequence[Run], path: pathlib.Path, loss_unit: str = "nats per token"
) -> pathlib.Path:
    """IsoFLOP profiles: loss against N, one colour per budget, with the curves and their minima; below, what lies above
    each minimum, in percent of it, against N / N*. Runs far above are arrows at the edge."""
    members = [run for run in runs if run.role == "isoflop" and run.budget is not None]
    budgets = sorted({run.budget for run in members})
    fitted = {p.budget: p for p in prediction.isoflop.profiles} if prediction.isoflop else {}
    styles = {
        budget: (colour, MARKERS[i % len(MARKERS)])
        for i, (budget, colour) in enumerate(zip(budgets, shades_of(len(budgets)), strict=True))
    }
    groups = {budget: [run for run in members if run.budget == budget] for budget in budgets}
    with plt.rc_context(RC):
        figure, panels = plt.subplots(
            2 if fitted else 1, 1, figsize=(WIDTH, 9.2 if fitted else 5.0), squeeze=False, layout="constrained"
        )
        _losses(panels[0, 0], groups, fitted, styles)
        panels[0, 0].set(xlabel="Parameters N", ylabel=loss_label(loss_unit), title="IsoFLOP profiles")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        # Beside the axes: a bad run far above its profile would end up under a legend inside them.
        figure.legend(handles, labels, loc="outside right upper", title="Budget (FLOPs)")
        if fitted:
            _above(panels[1, 0], groups, fitted, styles)
            panels[1, 0].set(
                xlabel="N / N* of the profile", ylabel="Loss above the minimum (%)", title="The same about their minima"
            )
        return save(figure, path)


def _losses(axes: Axes, groups: dict, fitted: dict, styles: dict) -> None:
    losses = [run.loss for own in groups.values() for run in own]
    lowest = [p.params.lowest for p in fitted.values()]
    low, high = min([*lowest, *losses]), max(losses)
    if lowest:
        high = min(high, max(lowest) + max(0.35 * (max(lowest) - min(lowest)), 0.06 * max(lowest)))
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    every = int(np.ceil(len(groups) / _NAMED))
    for index, (budget, own) in enumerate(groups.items()):
        colour, marker = styles[budget]
        note = "" if budget in fitted else " (refused)"
        named = note or (len(groups) - 1 - index) % every == 0
        if budget in fitted:
            curve = fitted[budget].params
            n = np.geomspace(curve.low, curve.high, 200)
            axes.plot(n, curve.at(n), color=colour, lw=1.5, zorder=3)
        filled = colour if budget in fitted else "none"
        clipped(axes, [r.params for r in own], [r.loss for r in own], colour, marker, ms=5.5, mfc=filled, zorder=4)
        axes.plot(
            [],
            [],
            marker,
            color=colour,
            mfc=filled,
            ls="none",
            ms=6,
            label=f"{flops_text(budget)}{note}" if named else "_",
        )
    axes.set_xscale("log")
    if fitted:
        minima = np.array([(p.params.best, p.params.lowest) for p in fitted.values()])
        # Rings below the runs: a star on top would hide the very runs that decide.
        axes.plot(*minima.T, "--o", color=ORANGE, lw=1, ms=12, mfc="none", mew=1.6, zorder=2, label="minimum")
    log_counts(axes, "x")


def _above(axes: Axes, groups: dict, fitted: dict, styles: dict) -> None:
    points = {
        budget: (
            np.array([r.params for r in own]) / fitted[budget].params.best,
            100.0 * (np.array([r.loss for r in own]) / fitted[budget].params.lowest - 1.0),
        )
        for budget, own in groups.items()
        if budget in fitted
    }
    every = np.concatenate([above for _, above in points.values()])
    high, low = min(_HIGHEST, every.max()), max(-_HIGHEST, min(0.0, every.min()))
    axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    near = np.concatenate([ratio[above <= high] for ratio, above in points.values()] + [[0.8, 1.25]])
    axes.set_xlim(near.min() / 1.15, near.max() * 1.15)  # runs beyond are in the other panel
    axes.axhline(0.0, color=GREY, lw=1)
    axes.axvline(1.0, color=GREY, lw=1)
    for budget, (ratio, above) in points.items():
        colour, marker = styles[budget]
        curve = fitted[budget].params
        x = np.geomspace(curve.low, curve.high, 200)
        axes.plot(x / curve.best, 100.0 * (curve.at(x) / curve.lowest - 1.0), color=colour, lw=1.2, alpha=0.8)
        clipped(axes, ratio, above, colour, marker, ms=5.5, zorder=3)
    log_counts(axes, "x", lambda value: f"{value:g}")


def plot_heldout(
    prediction: Prediction, runs: Sequence[Run], path: pathlib.Path, loss_unit: str = "nats per token"
) -> pathlib.Path:
    """Loss against N at the held-out budget: the recommended law's profile with the interval of one run, the minima of
    all approaches, and the runs trained there."""
    law, budget = recommended_law(prediction), prediction.budget
    held = sorted(held_out(runs), key=lambda model: model.params)
    centre = prediction.best.params
    sizes = [centre / 3.0, centre * 3.0] + [model.params * f for model in held for f in (0.8, 1.25)]
    n = np.geomspace(min(sizes), max(sizes), 160)
    colour, _, name = STYLE[prediction.recommended]
    with plt.rc_context(RC):
        figure, axes = plt.subplots(figsize=(WIDTH, 6.2))
        band = _band(prediction, law, n)
        if band is not None:
            axes.fill_between(n, *band, color=colour, alpha=0.14, lw=0, label=f"{name}, 95% of one run")
        axes.plot(n, law.loss(n, budget), color=colour, lw=1.8, label=f"{name} (recommended), profile")
        for approach, estimate in prediction.estimates.items():
            _cross(axes, estimate, *STYLE[approach])
        for model in held:
            if len(model.runs) > 1:  # the star is the mean
                losses = [run.loss for run in model.runs]
                axes.plot([model.params] * len(losses), losses, ".", color=GREEN, ms=7, zorder=6)
            axes.plot(
                model.params,
                model.loss,
                "*",
                color=GREEN,
                ms=15,
                mec="white",
                mew=0.9,
                zorder=6,
                label="trained" if model is held[0] else "_",
            )
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.06 * (high - low), high + 0.12 * (high - low))
        for model in held:
            seeds = f", {len(model.runs)} seeds" if len(model.runs) > 1 else ""
            axes.annotate(
                f"{model.role} {model.loss:.4f}{seeds}",
                (model.params, model.loss),
                xytext=(10, 6),
                textcoords="offset points",
                fontsize=SIZE,
                color="#00664B",
                zorder=7,
                ha="left" if model.params < np.sqrt(n[0] * n[-1] * 4) else "right",
                bbox={"fc": "white", "ec": "none", "alpha": 0.75, "pad": 1.0},
            )
        log_counts(axes, "x")
        axes.set(
            xlabel="Parameters N",
            ylabel=loss_label(loss_unit),
            title=f"{flops_text(budget)} FLOPs: predicted{' and trained' if held else ''}",
        )
        legend_below(axes, 2)
        return save(figure, path)


def _band(prediction: Prediction, law: SizeLaw, n: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The recommended estimate's 95% interval of the loss, carried along the profile as a factor."""
    if "loss" not in prediction.best.intervals:
        return None
    along = law.loss(n, prediction.budget) / prediction.best.loss
    low, high = prediction.best.intervals["loss"][0.95]
    return low * along, high * along


def _cross(axes: Axes, estimate: Estimate, colour: str, marker: str, label: str) -> None:
    spans = {}
    for axis, value, quantity in (("xerr", estimate.params, "params"), ("yerr", estimate.loss, "loss")):
        if quantity in estimate.intervals:
            low, high = estimate.intervals[quantity][0.95]
            spans[axis] = [[max(0.0, value - low)], [max(0.0, high - value)]]
    axes.errorbar(
        estimate.params,
        estimate.loss,
        fmt=marker,
        color=colour,
        ms=7,
        capsize=4,
        lw=1.6,
        zorder=5,
        label=f"{label}, minimum with 95%",
        **spans,
    )
