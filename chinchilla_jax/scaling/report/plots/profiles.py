"""What do the profiles look like, how do their minima grow with compute, and what lies at the held-out budget?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from chinchilla_jax.base.words import flops_text, loss_label
from chinchilla_jax.scaling.answers.recommended import recommended_law
from chinchilla_jax.scaling.fits.approach2.isoflop import Profile
from chinchilla_jax.scaling.predict.predict import Prediction
from chinchilla_jax.scaling.read.runs import HeldOut, Run, held_out
from chinchilla_jax.scaling.report.plots import style
from chinchilla_jax.scaling.report.plots.style import BLUE, BUDGET, GREEN, GREY, MARKERS, ORANGE, SIZE, STYLE

_HIGHEST = 10.0  # percent above its minimum: the upper end of the second panel
_NAMED = 14  # budgets, at most, with a line of their own in the legend
_Groups = dict[float, tuple[list[Run], Profile | None, tuple]]  # by budget: runs, profile if fitted, colour and marker
_MINIMA = {"color": BLUE, "ms": 7, "mec": "white", "label": "profile minima", "zorder": 4}
_THIRD = {"color": ORANGE, "ms": 9, "mfc": "none", "mew": 2, "zorder": 4, "label": "approach 3, predicted"}
_CROSS = {"color": GREEN, "ms": 8, "mew": 2}
_STAR = {"color": GREEN, "ms": 13, "mew": 0.8, "mec": "white"}


def plot_profiles(prediction: Prediction, runs: Sequence[Run], path: Path, unit: str) -> Path | None:
    """IsoFLOP profiles: loss against N, one colour per budget, with the curves and their minima; below, what lies above
    each minimum, in percent of it, against N / N*. Runs far above are arrows at the edge."""
    members: dict[float, list[Run]] = {}
    for run in prediction.fits.runs:
        if run.budget is not None:
            members.setdefault(run.budget, []).append(run)
    if not members:
        return None
    fitted = {p.budget: p for p in prediction.fits.isoflop.profiles} if prediction.fits.isoflop else {}
    groups: _Groups = {}
    for i, (budget, colour) in enumerate(zip(sorted(members), style.shades_of(len(members)), strict=True)):
        groups[budget] = members[budget], fitted.get(budget), (colour, MARKERS[i % len(MARKERS)])
    shape = {"squeeze": False, "layout": "constrained"}
    with style.drawing(path, 9.2 if fitted else 5.0, 2 if fitted else 1, 1, **shape) as (figure, panels):
        first = panels[0, 0]
        _losses(first, groups)
        first.set(xlabel="Parameters N", ylabel=loss_label(unit), title="IsoFLOP profiles")
        # Beside the axes: inside them it could hide a bad run far above its profile.
        figure.legend(*first.get_legend_handles_labels(), loc="outside right upper", title="Budget (FLOPs)")
        if fitted:
            _above(panels[1, 0], groups)
            panels[1, 0].set(xlabel="N / N* of the profile", ylabel="Loss above the minimum (%)")
            panels[1, 0].set(title="The same about their minima")
    return path


def _losses(axes: Axes, groups: _Groups) -> None:
    losses = [run.loss for runs, _, _ in groups.values() for run in runs]
    minima = np.array([(p.params.best, p.params.lowest) for _, p, _ in groups.values() if p]).reshape(-1, 2)
    lowest = minima[:, 1]
    low, high = min([*lowest, *losses]), max(losses)
    if len(minima):
        high = min(high, lowest.max() + max(0.35 * np.ptp(lowest), 0.06 * lowest.max()))
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    every = int(np.ceil(len(groups) / _NAMED))
    for left, (budget, (runs, profile, (colour, marker))) in zip(range(len(groups))[::-1], groups.items(), strict=True):
        if profile:
            n = np.geomspace(profile.params.low, profile.params.high, 200)
            axes.plot(n, profile.params.at(n), color=colour, lw=1.5, zorder=3)
        filled = colour if profile else "none"
        points = [r.params for r in runs], [r.loss for r in runs]
        style.clipped(axes, *points, colour, marker, ms=5.5, mfc=filled, zorder=4)
        label = flops_text(budget) if profile else f"{flops_text(budget)} (refused)"
        label = label if not profile or left % every == 0 else "_"
        axes.plot([], [], marker, color=colour, mfc=filled, ls="none", ms=6, label=label)
    axes.set_xscale("log")
    if len(minima):
        # Rings below the runs: a star on top would hide the runs near the minimum.
        axes.plot(*minima.T, "--o", color=ORANGE, lw=1, ms=12, mfc="none", mew=1.6, zorder=2, label="minimum")
    style.log_counts(axes, "x")


def _above(axes: Axes, groups: _Groups) -> None:
    points = []
    for runs, profile, marks in groups.values():
        if profile:
            curve, (params, losses) = profile.params, np.array([(run.params, run.loss) for run in runs]).T
            points.append((params / curve.best, 100.0 * (losses / curve.lowest - 1.0), curve, marks))
    every = np.concatenate([above for _, above, _, _ in points])
    high, low = min(_HIGHEST, every.max()), max(-_HIGHEST, min(0.0, every.min()))
    axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    near = np.concatenate([ratio[above <= high] for ratio, above, _, _ in points] + [[0.8, 1.25]])
    axes.set_xlim(near.min() / 1.15, near.max() * 1.15)  # runs beyond are in the other panel
    axes.axhline(0.0, color=GREY, lw=1)
    axes.axvline(1.0, color=GREY, lw=1)
    for ratio, above, curve, (colour, marker) in points:
        x = np.geomspace(curve.low, curve.high, 200)
        axes.plot(x / curve.best, 100.0 * (curve.at(x) / curve.lowest - 1.0), color=colour, lw=1.2, alpha=0.8)
        style.clipped(axes, ratio, above, colour, marker, ms=5.5, zorder=3)
    style.log_counts(axes, "x", lambda value: f"{value:g}")


def plot_heldout(prediction: Prediction, runs: Sequence[Run], path: Path, unit: str) -> Path | None:
    """Loss against N at the held-out budget: the recommended law's profile with the interval of one run, the minima of
    all approaches, and the runs trained there."""
    best, budget = prediction.best, prediction.budget
    held = sorted(held_out(runs), key=lambda model: model.params)
    sizes = [best.params / 3.0, best.params * 3.0] + [model.params * f for model in held for f in (0.8, 1.25)]
    n = np.geomspace(min(sizes), max(sizes), 160)
    law = recommended_law(prediction)
    if law is None:
        return None
    profile = law.loss(n, budget)
    colour, _, name = STYLE[prediction.recommended]
    with style.drawing(path, 6.2) as (_, axes):
        if "loss" in best.intervals:  # carried along the profile as a factor
            ends = [end * profile / best.loss for end in best.intervals["loss"][0.95]]
            style.band(axes, n, ends, colour, alpha=0.14, label=f"{name}, 95% of one run")
        axes.plot(n, profile, color=colour, lw=1.8, label=f"{name} (recommended), profile")
        for approach, estimate in prediction.estimates.items():
            colour, marker, name = STYLE[approach]
            bars = {}
            for axis, value, quantity in (("xerr", estimate.params, "params"), ("yerr", estimate.loss, "loss")):
                if quantity in estimate.intervals:
                    low, high = estimate.intervals[quantity][0.95]
                    bars[axis] = [[max(0.0, value - low)], [max(0.0, high - value)]]
            look = {"color": colour, "ms": 7, "capsize": 4, "lw": 1.6, "zorder": 5, **bars}
            axes.errorbar(estimate.params, estimate.loss, fmt=marker, label=f"{name}, minimum with 95%", **look)
        _trained(axes, held, middle=2.0 * np.sqrt(n[0] * n[-1]))
        style.log_counts(axes, "x")
        title = f"{flops_text(budget)} FLOPs: predicted{' and trained' if held else ''}"
        axes.set(xlabel="Parameters N", ylabel=loss_label(unit), title=title)
        style.legend_below(axes, 2)
    return path


def _trained(axes: Axes, held: Sequence[HeldOut], middle: float) -> None:
    """The held-out models with their names, which stand on the left of a model beyond `middle`."""
    star = {"color": GREEN, "ms": 15, "mec": "white", "mew": 0.9, "zorder": 6}
    for model in held:
        if len(model.runs) > 1:  # the star is the mean
            losses = [run.loss for run in model.runs]
            axes.plot([model.params] * len(losses), losses, ".", color=GREEN, ms=7, zorder=6)
        axes.plot(model.params, model.loss, "*", label="trained" if model is held[0] else "_", **star)
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.06 * (high - low), high + 0.12 * (high - low))
    words = {"xytext": (10, 6), "textcoords": "offset points", "fontsize": SIZE, "color": "#00664B", "zorder": 7}
    words["bbox"] = {"fc": "white", "ec": "none", "alpha": 0.75, "pad": 1.0}
    for model in held:
        seeds = f", {len(model.runs)} seeds" if len(model.runs) > 1 else ""
        side = "left" if model.params < middle else "right"
        axes.annotate(f"{model.role} {model.loss:.4f}{seeds}", (model.params, model.loss), ha=side, **words)


def plot_frontier(prediction: Prediction, runs: Sequence[Run], path: Path, unit: str) -> Path:
    """N*(C) and D*(C): minima, power laws with 95% bootstrap bands, approach 3 and the held-out runs."""
    fit, budget = prediction.fits.isoflop, prediction.budget
    budgets = [p.budget for p in fit.profiles] if fit else [run.flops for run in prediction.fits.runs]
    c = np.geomspace(min(budgets) / 1.5, budget * 1.5, 120)
    with style.drawing(path, 5.6, 1, 2) as (_, both):
        for axes, name, word, letter in ((both[0], "params", "Parameters", "N"), (both[1], "tokens", "Tokens", "D")):
            if fit:
                law, boot = getattr(fit, f"{name}_law"), getattr(fit, f"boot_{name}")
                if boot is not None:
                    style.band(axes, c, np.percentile(boot.at(c[:, None]), [2.5, 97.5], axis=1))
                label = f"approach 2: ${letter}^* \\propto C^{{{float(law.exponent):.3f}}}$"
                axes.plot(c, law.at(c), color=BLUE, lw=2, label=label)
                axes.plot(budgets, [getattr(p, name).best for p in fit.profiles], "o", **_MINIMA)
            else:
                axes.set_xlim(c[0], c[-1])
            if "parametric" in prediction.estimates:
                axes.plot([budget], [getattr(prediction.estimates["parametric"], name)], "D", **_THIRD)
            _held_out(axes, held_out(runs), name, budget)
            axes.axvline(budget, **BUDGET)
            style.log_flops(axes)
            style.log_counts(axes, "y")
            axes.set(ylabel=f"{word} {letter}", title=f"Optimal {word.lower()}")
            style.legend_below(axes, 1)
    return path


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


def plot_loss_frontier(prediction: Prediction, runs: Sequence[Run], path: Path, unit: str) -> Path:
    """Minimum loss against compute: every run, the profile minima, the loss law of approach 2 and the held-out runs."""
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
            c = np.geomspace(fit.profiles[0].budget / 1.5, prediction.budget * 1.5, 120)
            if fit.boot_params is not None:
                ends = [fit.loss_law.interval(budget, 0.95, one_run=False) for budget in c]
                style.band(axes, c, np.array(ends).T)
            label = f"approach 2: L* = {prediction.estimates['isoflop'].loss_law}"
            axes.plot(c, fit.loss_law.at(c), color=BLUE, lw=2, label=label)
            axes.plot([p.budget for p in fit.profiles], [p.params.lowest for p in fit.profiles], "o", **_MINIMA)
        if "parametric" in prediction.estimates:
            axes.plot([prediction.budget], [prediction.estimates["parametric"].loss], "D", **_THIRD)
        if held:
            points = [r.flops for r in held], [r.loss for r in held]
            axes.plot(*points, "x", zorder=5, label="held out, trained", **_CROSS)
        style.log_flops(axes)
        axes.set(ylabel=loss_label(unit), title="Loss frontier")
        style.legend_below(axes)
    return path
