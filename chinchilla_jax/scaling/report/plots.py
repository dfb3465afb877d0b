"""How do the best size, the best number of tokens and the lowest loss grow with compute? One PNG for each question."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from chinchilla_jax.base.words import loss_label
from chinchilla_jax.scaling.answers.recommended import isoflop_loss, isoflop_loss_band
from chinchilla_jax.scaling.fits.frontier import PowerLaw
from chinchilla_jax.scaling.predict.predict import Prediction
from chinchilla_jax.scaling.read.heldout import held_out
from chinchilla_jax.scaling.read.runs import Run
from chinchilla_jax.scaling.report.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RC,
    WIDTH,
    clipped,
    legend_below,
    log_counts,
    log_flops,
    plt,
    save,
)

_MINIMA = {"color": BLUE, "ms": 7, "mec": "white", "label": "profile minima", "zorder": 4}
_THIRD = {"color": ORANGE, "ms": 9, "mfc": "none", "mew": 2, "zorder": 4, "label": "approach 3, predicted"}


def plot_frontier(prediction: Prediction, runs: Sequence[Run], path: pathlib.Path) -> pathlib.Path:
    """N*(C) and D*(C): minima, power laws with 95% bootstrap bands, approach 3 and the held-out runs."""
    with plt.rc_context(RC):
        figure, both = plt.subplots(1, 2, figsize=(WIDTH, 5.6))
        fit = prediction.isoflop
        budgets = [p.budget for p in fit.profiles] if fit else [run.flops for run in runs if run.role == "isoflop"]
        c = np.geomspace(min(budgets) / 1.5, prediction.budget * 1.5, 120)
        held = held_out(runs)
        best = min(held, key=lambda model: model.loss) if len(held) > 1 else None
        surface = prediction.estimates.get("parametric")
        for axes, name, word, letter in ((both[0], "params", "Parameters", "N"), (both[1], "tokens", "Tokens", "D")):
            if fit:
                law: PowerLaw = getattr(fit, f"{name}_law")
                boot: PowerLaw | None = getattr(fit, f"boot_{name}")
                if boot is not None:
                    band = np.percentile(boot.at(c[:, None]), [2.5, 97.5], axis=1)
                    axes.fill_between(c, *band, color=BLUE, alpha=0.18, lw=0, label="95% bootstrap band")
                form = f"approach 2: ${letter}^* \\propto C^{{{float(law.exponent):.3f}}}$"
                axes.plot(c, law.at(c), color=BLUE, lw=2, label=form)
                axes.plot(budgets, [getattr(p, name).best for p in fit.profiles], "o", **_MINIMA)
            if surface:
                axes.plot([prediction.budget], [getattr(surface, name)], "D", **_THIRD)
            for model in held:
                first = model is best
                axes.plot(
                    [prediction.budget],
                    [getattr(model, name)],
                    "*" if first else "x",
                    color=GREEN,
                    zorder=5,
                    ms=13 if first else 8,
                    mew=0.8 if first else 2,
                    mec="white" if first else GREEN,
                    label="held out, lowest loss" if first else "_" if best else "held out",
                )
            if best:
                axes.plot([], [], "x", color=GREEN, ms=8, mew=2, label="held out, others")
            axes.axvline(prediction.budget, color=GREY, lw=1, ls=(0, (4, 3)))
            log_flops(axes)
            log_counts(axes, "y")
            axes.set(ylabel=f"{word} {letter}", title=f"Optimal {word.lower()}")
            legend_below(axes, 1)
        return save(figure, path)


def plot_loss_frontier(
    prediction: Prediction, runs: Sequence[Run], path: pathlib.Path, loss_unit: str = "nats per token"
) -> pathlib.Path:
    """Minimum loss against compute: every run, the profile minima, the loss law of approach 2 and the held-out runs.

    Runs far above the minima are arrows at the edge.
    """
    with plt.rc_context(RC):
        figure, axes = plt.subplots(figsize=(WIDTH, 5.8))
        own = [run for run in runs if run.role == "isoflop"]
        held = [run for run in runs if run.role != "isoflop"]
        fit = prediction.isoflop
        shown = [estimate.loss for estimate in prediction.estimates.values()] + [run.loss for run in held]
        shown += [p.params.lowest for p in fit.profiles] if fit else []
        low, high = min(shown), max(run.loss for run in own)
        if fit:
            high = min(high, max(shown) + 0.25 * (max(shown) - low))
        axes.set_ylim(low - 0.12 * (high - low), high + 0.04 * (high - low))
        clipped(axes, [r.flops for r in own], [r.loss for r in own], "#9AA1AC", ".", ms=7, label="all runs")
        if fit:
            c = np.geomspace(fit.profiles[0].budget / 1.5, prediction.budget * 1.5, 120)
            band = isoflop_loss_band(prediction, c)
            if band is not None:
                axes.fill_between(c, *band, color=BLUE, alpha=0.18, lw=0, label="95% bootstrap band")
            form = prediction.estimates["isoflop"].loss_law
            axes.plot(c, isoflop_loss(prediction, c), color=BLUE, lw=2, label=f"approach 2: L* = {form}")
            axes.plot([p.budget for p in fit.profiles], [p.params.lowest for p in fit.profiles], "o", **_MINIMA)
        if "parametric" in prediction.estimates:
            axes.plot([prediction.budget], [prediction.estimates["parametric"].loss], "D", **_THIRD)
        if held:
            axes.plot(
                [r.flops for r in held],
                [r.loss for r in held],
                "x",
                color=GREEN,
                ms=8,
                mew=2,
                zorder=5,
                label="held out, trained",
            )
        log_flops(axes)
        axes.set(ylabel=loss_label(loss_unit), title="Loss frontier")
        legend_below(axes)
        return save(figure, path)
