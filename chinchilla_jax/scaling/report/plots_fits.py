"""What stands behind the fits: the envelope, the surface with its frontier, what it leaves over, where runs were?"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from chinchilla_jax.base.words import flops_text, loss_label, unit_of
from chinchilla_jax.scaling.fits.approach1.curves import smooth
from chinchilla_jax.scaling.fits.approach1.envelope import EnvelopeFit
from chinchilla_jax.scaling.fits.approach3.parametric import ParametricFit
from chinchilla_jax.scaling.fits.surface import FlopsPerToken
from chinchilla_jax.scaling.predict.predict import Prediction
from chinchilla_jax.scaling.read.runs import Run
from chinchilla_jax.scaling.report.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    PURPLE,
    RC,
    SIZE,
    WIDTH,
    clipped,
    legend_below,
    log_counts,
    log_flops,
    plt,
    save,
    shades,
)

_OUTLYING = 5.0  # times the typical residual: beyond it a run is an arrow at the edge


def plot_envelope(fit: EnvelopeFit, path: pathlib.Path, loss_unit: str = "nats per token") -> pathlib.Path:
    """Smoothed training curves with their lower envelope, and the sizes it picks with the law through them."""
    with plt.rc_context(RC):
        figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 5.6), layout="constrained")
        sizes = np.unique([run.params for run in fit.runs])
        scale = plt.matplotlib.colors.LogNorm(sizes[0], sizes[-1])
        for run in fit.runs:
            x, loss = smooth(run, fit.preset.smoothing)
            left.plot(np.exp(x), loss, color=shades()(scale(run.params)), lw=0.8, alpha=0.8)
        points = fit.points
        left.plot(points.flops, points.loss, color=PURPLE, lw=2.2, label="envelope")
        ends = np.array([points.loss.min(), np.quantile(points.loss, 0.98)])
        left.set_ylim(ends[0] - 0.08 * np.ptp(ends), ends[1] + 0.6 * np.ptp(ends))
        left.set(ylabel=f"Training loss ({unit_of(loss_unit)})", title="Training curves",
                 xlim=(points.flops[0] / 4, points.flops[-1] * 1.3))  # fmt: skip
        log_flops(left)
        left.legend(loc="upper right")
        bar = figure.colorbar(plt.cm.ScalarMappable(scale, shades()), ax=left, label="Parameters N")
        log_counts(bar.ax, "y")
        free, edge = points.edge == "", points.edge != ""
        right.plot(points.flops[edge], points.params[edge], ".", color=PALE, ms=3, label="winner at an edge")
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
    fit: ParametricFit, prediction: Prediction, runs: Sequence[Run], path: pathlib.Path,
    loss_unit: str = "nats per token",
) -> pathlib.Path:  # fmt: skip
    """Loss over compute and size by approach 3, the efficient frontier along its valley, and the runs."""
    c = prediction.flops_per
    with plt.rc_context(RC):
        figure, axes = plt.subplots(figsize=(WIDTH, 6.4))
        own = [run for run in runs if run.role == "isoflop"]
        flops = np.array([run.flops for run in own])
        params = np.array([run.params for run in own])
        x = np.geomspace(flops.min() / 1.6, max(flops.max(), prediction.budget) * 1.6, 160)
        y = np.geomspace(params.min() / 1.6, max(params.max(), prediction.best.params) * 2.0, 160)
        tokens = x[None] / (c(y[:, None]) if callable(c) else c * y[:, None])
        loss = fit.surface.loss(y[:, None], tokens)
        best = fit.surface.optimum(x, c) if not callable(c) else _frontier(fit, x, c)
        low, high = best[2].min() * 1.001, np.quantile([run.loss for run in own], 0.95) * 1.02
        levels = low + (high - low) * np.linspace(0.0, 1.0, 14) ** 1.5  # closer where the valley is flat
        drawn = axes.contour(x, y, loss, levels=levels, cmap=shades(reverse=True), linewidths=1.1)
        # Read off a bar: labels on the lines end up under runs and across the edges.
        lines = plt.cm.ScalarMappable(drawn.norm, shades(reverse=True))
        figure.colorbar(lines, ax=axes, label=loss_label(loss_unit), pad=0.02, ticks=levels[::3], format="%.2f")
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
        legend_below(axes, 4)
        return save(figure, path)


def _frontier(fit: ParametricFit, flops: np.ndarray, c: FlopsPerToken) -> tuple[np.ndarray, ...]:
    return tuple(np.array(values) for values in zip(*(fit.surface.optimum(one, c) for one in flops), strict=True))


def plot_residuals(fit: ParametricFit, runs: Sequence[Run], path: pathlib.Path) -> pathlib.Path:
    """Measured over predicted loss of approach 3 against C, N and D: any pattern left is what the form cannot say."""
    own = [run for run in runs if run.role == "isoflop"]
    values = {name: np.array([getattr(run, name) for run in own]) for name in ("flops", "params", "tokens", "loss")}
    residual = 100 * np.log(values["loss"] / fit.surface.loss(values["params"], values["tokens"]))
    ratio = values["tokens"] / values["params"]
    scale = plt.matplotlib.colors.LogNorm(ratio.min(), ratio.max())
    edge = max(1e-3, min(np.abs(residual).max(), _OUTLYING * np.median(np.abs(residual)) / 0.67))
    with plt.rc_context(RC):
        figure, panels = plt.subplots(1, 3, figsize=(WIDTH, 4.6), sharey=True, layout="constrained")
        panels[0].set_ylim(-1.1 * edge, 1.1 * edge)
        for axes, name, word in zip(panels, ("flops", "params", "tokens"), ("C (FLOPs)", "N", "D"), strict=True):
            axes.axhline(0.0, color=GREY, lw=1)
            axes.axhspan(-100 * fit.scatter, 100 * fit.scatter, color=ORANGE, alpha=0.12, lw=0)
            axes.set_xscale("log")
            clipped(axes, values[name], residual, shades()(scale(ratio)), s=30, edgecolors="white", lw=0.4, zorder=3)
            log_flops(axes) if name == "flops" else log_counts(axes, "x")
            axes.set_xlabel(word)
        panels[0].set(ylabel="Measured over predicted loss (%)", title="Residuals of approach 3, scatter shaded")
        bar = figure.colorbar(plt.cm.ScalarMappable(scale, shades()), ax=panels, pad=0.01, label="Tokens per parameter")
        log_counts(bar.ax, "y")
        return save(figure, path)


def plot_coverage(
    prediction: Prediction, runs: Sequence[Run], path: pathlib.Path, loss_unit: str = "nats per token"
) -> pathlib.Path:
    """Where in N and D the runs were, and how far beyond them the prediction lies."""
    with plt.rc_context(RC):
        figure, axes = plt.subplots(figsize=(WIDTH, 6.4))
        own = [run for run in runs if run.role == "isoflop"]
        params, tokens, losses = np.array([(run.params, run.tokens, run.loss) for run in own]).T
        # The colours are spread over the usual losses, whatever a few bad runs reached.
        scale = plt.matplotlib.colors.Normalize(losses.min(), np.quantile(losses, 0.9))
        dots = axes.scatter(params, tokens, c=losses, norm=scale, cmap=shades(reverse=True), s=32, edgecolors="white",
                            lw=0.5, zorder=3)  # fmt: skip
        figure.colorbar(dots, ax=axes, label=loss_label(loss_unit), pad=0.02, extend="max")
        held = [run for run in runs if run.role != "isoflop"]
        if held:
            axes.plot([r.params for r in held], [r.tokens for r in held], "*", color=GREEN, ms=12, mec="white",
                      label="held out, trained", zorder=4)  # fmt: skip
        best = prediction.best
        axes.plot([best.params], [prediction.tokens_at_budget], "D", color=ORANGE, ms=9, mfc="none", mew=2, zorder=5,
                  label=f"predicted for {flops_text(prediction.budget)} FLOPs")  # fmt: skip
        shown = [*params, *(run.params for run in held), best.params]
        left, right = min(shown) / 1.5, max(shown) * 1.5
        shown = [*tokens, *(run.tokens for run in held), prediction.tokens_at_budget]
        low, high = min(shown) / 1.6, max(shown) * 1.6
        axes.set(xlim=(left, right), ylim=(low, high), xscale="log", yscale="log")
        log_counts(axes, "x")
        log_counts(axes, "y")
        axes.set(xlabel="Parameters N", ylabel="Training tokens D", title="Runs in N and D")
        legend_below(axes)
        figure.tight_layout()  # before the labels, whose angle is that of the lines on the page
        _ratios(axes, np.log10([*zip(params, tokens, strict=True), *((run.params, run.tokens) for run in held)]))
        return save(figure, path)


def _ratios(axes: Axes, points: np.ndarray) -> None:
    """Lines of equal D/N, each with its label along it, inside the axes and where the `points` [K, 2] leave room."""
    (left, right), (low, high) = np.log10(axes.get_xlim()), np.log10(axes.get_ylim())
    size = np.array([right - left, high - low])
    (x0, y0), (x1, y1) = axes.transAxes.transform([(0.0, 0.0), (1.0, 1.0)])
    angle = np.degrees(np.arctan2((y1 - y0) / size[1], (x1 - x0) / size[0]))
    for power in range(-3, 8):
        ends = max(left, low - power), min(right, high - power)  # of log10 N, where the line is inside
        if ends[1] - ends[0] < 0.3 * min(size):
            continue
        axes.plot(10.0 ** np.array(ends), 10.0 ** (np.array(ends) + power), color=PALE, lw=1, zorder=1)
        places = ends[0] + (ends[1] - ends[0]) * np.linspace(0.0, 1.0, 41)
        edge = np.minimum(places - ends[0], ends[1] - places) / size.min()
        gaps = np.linalg.norm((np.stack([places, places + power], 1)[:, None] - points) / size, axis=2).min(1)
        x = places[np.where(edge > 0.13, gaps, -1.0).argmax()]
        axes.annotate(f"D/N = {10.0**power:g}", (10.0**x, 10.0 ** (x + power)), fontsize=SIZE, color=GREY, ha="center",
                      va="center", rotation=angle, rotation_mode="anchor", zorder=2,
                      bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1.0})  # fmt: skip
