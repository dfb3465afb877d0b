"""What stands behind the fits: the envelope, the surface with its frontier, what it leaves over, where runs were?"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from chinchilla_jax.scaling.envelope import EnvelopeFit
from chinchilla_jax.scaling.envelope_curves import smooth
from chinchilla_jax.scaling.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RC, log_counts, log_flops, plt, save
from chinchilla_jax.scaling.parametric import ParametricFit
from chinchilla_jax.scaling.predict import Prediction
from chinchilla_jax.scaling.runs import Run
from chinchilla_jax.scaling.surface import FlopsPerToken
from chinchilla_jax.scaling.words import flops_text

_PALE = "#C9CED6"


def plot_envelope(fit: EnvelopeFit, path: pathlib.Path) -> pathlib.Path:
    """Smoothed training curves with their lower envelope, and the sizes it picks with the law through them."""
    with plt.rc_context(RC):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11.4, 4.7))
        sizes = np.unique([run.params for run in fit.runs])
        shade = dict(zip(sizes, plt.get_cmap("cividis")(np.linspace(0.0, 0.9, len(sizes))), strict=True))
        for run in fit.runs:
            x, loss = smooth(run, fit.preset.smoothing)
            left.plot(np.exp(x), loss, color=shade[run.params], lw=0.8, alpha=0.8)
        points = fit.points
        left.plot(points.flops, points.loss, color=PURPLE, lw=2.2, label="envelope")
        ends = np.array([points.loss.min(), np.quantile(points.loss, 0.98)])
        left.set_ylim(ends[0] - 0.08 * np.ptp(ends), ends[1] + 0.6 * np.ptp(ends))
        left.set(ylabel="Training loss (nats per token)", title="Training curves",
                 xlim=(points.flops[0] / 4, points.flops[-1] * 1.3))  # fmt: skip
        log_flops(left)
        left.legend(loc="upper right")
        bar = plt.cm.ScalarMappable(plt.matplotlib.colors.LogNorm(sizes[0], sizes[-1]), "cividis")
        scale = figure.colorbar(bar, ax=left, label="Parameters N")
        log_counts(scale.ax, "y")
        free, edge = points.edge == "", points.edge != ""
        right.plot(points.flops[edge], points.params[edge], ".", color=_PALE, ms=3, label="winner at an edge")
        right.plot(points.flops[free], points.params[free], ".", color=PURPLE, ms=3, label="winner")
        if fit.preset.optimum != "winner":
            used = fit.optima.weight > 0
            right.plot(fit.optima.flops[used], fit.optima.params[used], color=GREEN, lw=2, label="smooth optimum")
        law = fit.params_law
        right.plot(points.flops, law.at(points.flops), "--", color=PURPLE, lw=1.6,
                   label=f"$N^* \\propto C^{{{float(law.exponent):.3f}}}$")  # fmt: skip
        log_flops(right)
        log_counts(right, "y")
        right.set(ylabel="Parameters N", title="Approach 1: best size")
        right.legend(loc="upper left")
        return save(figure, path)


def plot_contours(
    fit: ParametricFit, prediction: Prediction, runs: Sequence[Run], c: FlopsPerToken, path: pathlib.Path
) -> pathlib.Path:
    """Loss over compute and size by approach 3, the efficient frontier along its valley, and the runs."""
    with plt.rc_context(RC):
        figure, axes = plt.subplots(figsize=(8.6, 5.4))
        own = [run for run in runs if run.role == "isoflop"]
        flops = np.array([run.flops for run in own])
        params = np.array([run.params for run in own])
        x = np.geomspace(flops.min() / 1.6, max(flops.max(), prediction.budget) * 1.6, 160)
        y = np.geomspace(params.min() / 1.6, max(params.max(), prediction.best.params) * 2.0, 160)
        tokens = x[None] / (c(y[:, None]) if callable(c) else c * y[:, None])
        loss = fit.surface.loss(y[:, None], tokens)
        best = fit.surface.optimum(x, c) if not callable(c) else _frontier(fit, x, c)
        levels = np.linspace(best[2].min() * 1.001, np.quantile([run.loss for run in own], 0.95) * 1.02, 14)
        drawn = axes.contour(x, y, loss, levels=levels, cmap="cividis", linewidths=1.1)
        axes.clabel(drawn, levels[::3], fmt="%.2f", fontsize=7.5)
        axes.plot(x, best[0], color=ORANGE, lw=2.4, label="efficient frontier, approach 3")
        if prediction.isoflop:
            axes.plot(x, prediction.isoflop.params_law.at(x), "--", color=BLUE, lw=1.8, label="approach 2")
        if prediction.envelope:
            axes.plot(x, prediction.envelope.params_law.at(x), ":", color=PURPLE, lw=2, label="approach 1")
        axes.plot(flops, params, "o", color=GREY, ms=3.5, alpha=0.8, label="runs")
        axes.axvline(prediction.budget, color=GREY, lw=1, ls=(0, (4, 3)))
        axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), ylabel="Parameters N",
                 title="Loss surface and efficient frontier")  # fmt: skip
        log_flops(axes)
        log_counts(axes, "y")
        axes.legend(loc="upper left", framealpha=0.9, frameon=True)
        return save(figure, path)


def _frontier(fit: ParametricFit, flops: np.ndarray, c: FlopsPerToken) -> tuple[np.ndarray, ...]:
    return tuple(np.array(values) for values in zip(*(fit.surface.optimum(one, c) for one in flops), strict=True))


def plot_residuals(fit: ParametricFit, runs: Sequence[Run], path: pathlib.Path) -> pathlib.Path:
    """Measured over predicted loss of approach 3 against C, N and D: any pattern left is what the form cannot say."""
    with plt.rc_context(RC):
        figure, panels = plt.subplots(1, 3, figsize=(12.6, 4.0), sharey=True)
        own = [run for run in runs if run.role == "isoflop"]
        values = {name: np.array([getattr(run, name) for run in own]) for name in ("flops", "params", "tokens", "loss")}
        residual = 100 * np.log(values["loss"] / fit.surface.loss(values["params"], values["tokens"]))
        colours = values["tokens"] / values["params"]
        scale = plt.matplotlib.colors.LogNorm(colours.min(), colours.max())
        for axes, name, word in zip(panels, ("flops", "params", "tokens"), ("C (FLOPs)", "N", "D"), strict=True):
            axes.axhline(0.0, color=GREY, lw=1)
            band = axes.axhspan(-100 * fit.scatter, 100 * fit.scatter, color=ORANGE, alpha=0.12, lw=0)
            dots = axes.scatter(values[name], residual, c=colours, norm=scale, cmap="cividis", s=22,
                                edgecolors="white", lw=0.4)  # fmt: skip
            log_flops(axes) if name == "flops" else log_counts(axes, "x")
            axes.tick_params(axis="x", labelsize=8.5)
            axes.set_xlabel(word)
        panels[0].set(ylabel="Measured over predicted loss (%)", title="Residuals of approach 3")
        panels[0].legend([band], ["scatter"], loc="best")
        bar = figure.colorbar(dots, ax=panels, pad=0.01, label="Tokens per parameter")
        log_counts(bar.ax, "y")
        return save(figure, path, tight=False)


def plot_coverage(prediction: Prediction, runs: Sequence[Run], path: pathlib.Path) -> pathlib.Path:
    """Where in N and D the runs were, and how far beyond them the prediction lies."""
    with plt.rc_context(RC):
        figure, axes = plt.subplots(figsize=(7.6, 5.2))
        own = [run for run in runs if run.role == "isoflop"]
        params, tokens = (np.array([getattr(run, name) for run in own]) for name in ("params", "tokens"))
        dots = axes.scatter(params, tokens, c=[run.loss for run in own], cmap="cividis_r", s=30, edgecolors="white",
                            lw=0.5, zorder=3)  # fmt: skip
        figure.colorbar(dots, ax=axes, label="Loss (nats per token)")
        held = [run for run in runs if run.role != "isoflop"]
        if held:
            axes.plot([r.params for r in held], [r.tokens for r in held], "*", color=GREEN, ms=12, mec="white",
                      label="held out, trained", zorder=4)  # fmt: skip
        best = prediction.best
        axes.plot([best.params], [best.tokens], "D", color=ORANGE, ms=9, mfc="none", mew=2, zorder=5,
                  label=f"predicted for {flops_text(prediction.budget)} FLOPs")  # fmt: skip
        shown = [*runs, best]
        x = np.geomspace(min(r.params for r in shown) / 1.5, max(r.params for r in shown) * 1.5, 60)
        low, high = min(r.tokens for r in shown) / 1.6, max(r.tokens for r in shown) * 1.6
        for ratio in (0.1, 1, 10, 100, 1000, 10000):
            inside = (x * ratio > low) & (x * ratio < high)
            if inside.sum() > 1:
                axes.plot(x[inside], x[inside] * ratio, color=_PALE, lw=1, zorder=1)
                end = np.flatnonzero(inside)[-1]
                axes.annotate(f"D/N = {ratio:g}", (x[end], x[end] * ratio), fontsize=8, color=GREY, ha="right",
                              va="top")  # fmt: skip
        axes.set(xlim=(x[0], x[-1]), ylim=(low, high))
        log_counts(axes, "x")
        log_counts(axes, "y")
        axes.set(xlabel="Parameters N", ylabel="Training tokens D", title="Runs in N and D")
        axes.legend(loc="lower left", framealpha=0.9, frameon=True)
        return save(figure, path)
