"""What do the profiles, the frontier and the prediction look like? One PNG per question, written beside the report."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from chinchilla_jax.scaling.decide import per_token
from chinchilla_jax.scaling.estimates import Estimate
from chinchilla_jax.scaling.figures import BLUE, GREEN, GREY, ORANGE, RC, STYLE, log_counts, log_flops, plt, save
from chinchilla_jax.scaling.frontier import PowerLaw
from chinchilla_jax.scaling.heldout import held_out
from chinchilla_jax.scaling.predict import Prediction
from chinchilla_jax.scaling.runs import Run
from chinchilla_jax.scaling.surface import FlopsPerToken
from chinchilla_jax.scaling.words import flops_text


def plot_profiles(prediction: Prediction, runs: Sequence[Run], path: pathlib.Path) -> pathlib.Path:
    """IsoFLOP profiles: loss against N, one colour per budget, with parabolas and their minima."""
    with plt.rc_context(RC):
        figure, axes = plt.subplots(figsize=(9.0, 5.0))
        members = [run for run in runs if run.role == "isoflop" and run.budget is not None]
        budgets = sorted({run.budget for run in members})
        colours = dict(zip(budgets, plt.get_cmap("cividis")(np.linspace(0.0, 0.88, len(budgets))), strict=True))
        fitted = {p.budget: p for p in prediction.isoflop.profiles} if prediction.isoflop else {}
        for budget in budgets:
            own = [run for run in members if run.budget == budget]
            note = "" if budget in fitted else " (refused)"
            axes.plot(
                [r.params for r in own],
                [r.loss for r in own],
                "o",
                color=colours[budget],
                ms=6,
                mfc=colours[budget] if budget in fitted else "none",
                label=f"{flops_text(budget)} FLOPs{note}",
            )
            if budget in fitted:
                parabola = fitted[budget].params
                n = np.geomspace(parabola.low, parabola.high, 200)
                axes.plot(n, parabola.at(n), color=colours[budget], lw=1.8)
        minima = [(p.params.best, p.params.lowest) for p in fitted.values()]
        if minima:
            axes.plot(
                *np.array(minima).T, "--*", color=ORANGE, lw=1, ms=13, mec="white", mew=0.8, zorder=5, label="minimum"
            )
        log_counts(axes, "x")
        axes.set(xlabel="Parameters N", ylabel="Validation loss (nats per token)", title="IsoFLOP profiles")
        # Beside the axes: a bad run far above its profile would end up under a legend inside them.
        axes.legend(title="Budget", loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return save(figure, path)


def plot_frontier(prediction: Prediction, runs: Sequence[Run], path: pathlib.Path) -> pathlib.Path:
    """N*(C) and D*(C): minima, power laws with 95% bootstrap bands, approach 3 and the held-out runs."""
    with plt.rc_context(RC):
        figure, both = plt.subplots(1, 2, figsize=(11.4, 4.7))
        fit = prediction.isoflop
        budgets = [p.budget for p in fit.profiles] if fit else [run.flops for run in runs if run.role == "isoflop"]
        c = np.geomspace(min(budgets) / 1.5, prediction.budget * 1.5, 120)
        held = held_out(runs)
        best = min(held, key=lambda model: model.loss) if len(held) > 1 else None
        for axes, name, word, letter in ((both[0], "params", "Parameters", "N"), (both[1], "tokens", "Tokens", "D")):
            if fit:
                law: PowerLaw = getattr(fit, f"{name}_law")
                boot: PowerLaw | None = getattr(fit, f"boot_{name}")
                if boot is not None:
                    band = np.percentile(boot.at(c[:, None]), [2.5, 97.5], axis=1)
                    axes.fill_between(c, *band, color=BLUE, alpha=0.18, lw=0, label="95% bootstrap band")
                axes.plot(
                    c,
                    law.at(c),
                    color=BLUE,
                    lw=2,
                    label=f"approach 2: ${letter}^* \\propto C^{{{float(law.exponent):.3f}}}$",
                )
                axes.plot(
                    budgets,
                    [getattr(p, name).best for p in fit.profiles],
                    "o",
                    color=BLUE,
                    ms=7,
                    mec="white",
                    label="profile minima",
                )
            surface = prediction.estimates.get("parametric")
            if surface:
                axes.plot(
                    [prediction.budget],
                    [getattr(surface, name)],
                    "D",
                    color=ORANGE,
                    ms=9,
                    mfc="none",
                    mew=2,
                    zorder=4,
                    label="approach 3, predicted",
                )
            for model in held:
                axes.plot(
                    [prediction.budget],
                    [getattr(model, name)],
                    "*" if model is best else "x",
                    color=GREEN,
                    ms=13 if model is best else 8,
                    mew=2 if model is not best else 0.8,
                    zorder=5,
                    mec="white" if model is best else GREEN,
                    label="held out, lowest loss" if model is best else "_" if best else "held out",
                )
            if best:
                axes.plot([], [], "x", color=GREEN, ms=8, mew=2, label="held out, others")
            axes.axvline(prediction.budget, color=GREY, lw=1, ls=(0, (4, 3)))
            log_flops(axes)
            log_counts(axes, "y")
            axes.set(ylabel=f"{word} {letter}", title=f"Optimal {word.lower()}")
        both[0].legend(loc="upper left")
        both[1].legend(loc="upper left", handles=both[1].get_legend_handles_labels()[0][:2] if fit else None)
        return save(figure, path)


def plot_heldout(
    prediction: Prediction, runs: Sequence[Run], flops_per: FlopsPerToken, path: pathlib.Path
) -> pathlib.Path:
    """Loss against N at the held-out budget: the predicted profile and minima, and the runs trained there."""
    with plt.rc_context(RC):
        figure, axes = plt.subplots(figsize=(7.6, 5.0))
        held = sorted(held_out(runs), key=lambda model: model.params)
        centre = prediction.best.params
        sizes = [centre / 3.0, centre * 3.0] + [model.params * f for model in held for f in (0.8, 1.25)]
        n = np.geomspace(min(sizes), max(sizes), 160)
        if prediction.parametric:
            tokens = prediction.budget / per_token(n, flops_per)
            boot = prediction.parametric.boot
            if boot is not None:
                losses = boot.__class__(*(getattr(boot, f)[:, None] for f in ("E", "A", "B", "alpha", "beta"))).loss(
                    n, tokens
                )
                axes.fill_between(
                    n,
                    *np.percentile(losses, [2.5, 97.5], axis=0),
                    color=ORANGE,
                    alpha=0.16,
                    lw=0,
                    label="approach 3, 95% band of the law",
                )
            axes.plot(
                n, prediction.parametric.surface.loss(n, tokens), color=ORANGE, lw=1.8, label="approach 3 profile"
            )
        for name, estimate in prediction.estimates.items():
            _cross(axes, estimate, *STYLE[name], recommended=name == prediction.recommended)
        for model in held:
            if len(model.runs) > 1:  # the star is the mean
                losses = [run.loss for run in model.runs]
                axes.plot([model.params] * len(losses), losses, ".", color=GREEN, ms=7, zorder=6)
            axes.plot(
                model.params,
                model.loss,
                "*",
                color=GREEN,
                ms=16,
                mec="white",
                mew=0.9,
                zorder=6,
                label="trained" if model is held[0] else "_",
            )
            axes.annotate(
                f"{model.role}\n{model.loss:.4f}" + (f", {len(model.runs)} seeds" if len(model.runs) > 1 else ""),
                (model.params, model.loss),
                xytext=(11, -5),
                ha="left",
                textcoords="offset points",
                fontsize=9,
                color="#00664B",
                zorder=7,
            )
        log_counts(axes, "x")
        room = axes.get_ylim()
        axes.set_ylim(room[0] - 0.12 * (room[1] - room[0]), room[1] + 0.30 * (room[1] - room[0]))
        axes.set(
            xlabel="Parameters N",
            ylabel="Validation loss (nats per token)",
            title=f"{flops_text(prediction.budget)} FLOPs: predicted{' and trained' if held else ''}",
        )
        axes.legend(loc="upper center", ncols=2)
        return save(figure, path)


def plot_loss_frontier(prediction: Prediction, runs: Sequence[Run], path: pathlib.Path) -> pathlib.Path:
    """Minimum loss against compute: every run, the profile minima, the loss law of approach 2 and the held-out runs."""
    with plt.rc_context(RC):
        figure, axes = plt.subplots(figsize=(7.6, 5.0))
        own = [run for run in runs if run.role == "isoflop"]
        held = [run for run in runs if run.role != "isoflop"]
        axes.plot([r.flops for r in own], [r.loss for r in own], ".", color="#A9AFB8", ms=7, label="all runs")
        fit = prediction.isoflop
        if fit:
            offset = prediction.estimates["isoflop"].loss_law.startswith("E")
            law, boot = (fit.loss_offset, fit.boot_loss_offset) if offset else (fit.loss_power, fit.boot_loss_power)
            c = np.geomspace(fit.profiles[0].budget / 1.5, prediction.budget * 1.5, 120)
            if boot is not None:
                axes.fill_between(
                    c,
                    *np.percentile(boot.at(c[:, None]), [2.5, 97.5], axis=1),
                    color=BLUE,
                    alpha=0.18,
                    lw=0,
                    label="95% bootstrap band",
                )
            form = prediction.estimates["isoflop"].loss_law
            axes.plot(c, law.at(c), color=BLUE, lw=2, label=f"approach 2: $L^* = {form.replace('-g', '{-g}')}$")
            axes.plot(
                [p.budget for p in fit.profiles],
                [p.params.lowest for p in fit.profiles],
                "o",
                color=BLUE,
                ms=7,
                mec="white",
                label="profile minima",
            )
        if "parametric" in prediction.estimates:
            axes.plot(
                [prediction.budget],
                [prediction.estimates["parametric"].loss],
                "D",
                color=ORANGE,
                ms=9,
                mfc="none",
                mew=2,
                label="approach 3, predicted",
            )
        if held:
            axes.plot(
                [r.flops for r in held],
                [r.loss for r in held],
                "x",
                color=GREEN,
                ms=8,
                mew=2,
                label="held out, trained",
            )
        log_flops(axes)
        axes.set(ylabel="Validation loss (nats per token)", title="Loss frontier")
        axes.legend(loc="upper right")
        return save(figure, path)


def _cross(axes: Axes, estimate: Estimate, colour: str, marker: str, label: str, recommended: bool) -> None:
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
        label=f"{label} minimum, 95%{' (recommended)' if recommended else ''}",
        **spans,
    )
