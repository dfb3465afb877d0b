"""What stands behind the fits: the envelope, the fitted surface, its residuals, and where in N and D the runs were?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize

from chinchilla_jax.base.words import count, flops_text, loss_label, unit_of
from chinchilla_jax.scaling.fits.approach1.curves import smooth
from chinchilla_jax.scaling.predict.predict import Prediction
from chinchilla_jax.scaling.read.runs import Run
from chinchilla_jax.scaling.report.plots import style
from chinchilla_jax.scaling.report.plots.style import BLUE, BUDGET, GREEN, GREY, ORANGE, PALE, PURPLE, SIZE, plt

_OUTLYING = 5.0  # times the typical residual: beyond it a run is an arrow at the edge


def plot_envelope(prediction: Prediction, runs: Sequence[Run], path: Path, unit: str) -> Path | None:
    """Smoothed training curves with their lower envelope, and the sizes it picks with the law through them."""
    if (fit := prediction.fits.envelope) is None:
        return None
    points, sizes = fit.points, np.unique([run.params for run in fit.runs])
    scale = LogNorm(sizes[0], sizes[-1])
    with style.drawing(path, 5.6, 1, 2, layout="constrained") as (figure, (left, right)):
        for run in fit.runs:
            x, loss = smooth(run, fit.preset.curve)
            left.plot(np.exp(x), loss, color=style.shades()(scale(run.params)), lw=0.8, alpha=0.8)
        left.plot(points.flops, points.loss, color=PURPLE, lw=2.2, label="envelope")
        low, high = points.loss.min(), np.quantile(points.loss, 0.98)
        left.set(xlim=(points.flops[0] / 4, points.flops[-1] * 1.3), title="Training curves")
        left.set(ylim=(low - 0.08 * (high - low), high + 0.6 * (high - low)), ylabel=f"Training loss ({unit_of(unit)})")
        style.log_flops(left)
        left.legend(loc="upper right")
        style.bar(figure, left, scale, "Parameters N")
        for words, colour in (("winner at an edge", PALE), ("winner", PURPLE)):
            chosen = (points.edge == "") == (words == "winner")
            right.plot(points.flops[chosen], points.params[chosen], ".", color=colour, ms=3, label=words)
        if fit.preset.curve != "winner":
            right.plot(*fit.optima.T, color=GREEN, lw=2, label="smooth optimum")
        label = f"$N^* \\propto C^{{{float(fit.params_law.exponent):.3f}}}$"
        right.plot(points.flops, fit.params_law.at(points.flops), "--", color=PURPLE, lw=1.6, label=label)
        style.log_flops(right)
        style.log_counts(right, "y")
        right.set(ylabel="Parameters N", title="Approach 1: best size")
        right.legend(loc="upper left")
    return path


def plot_contours(prediction: Prediction, runs: Sequence[Run], path: Path, unit: str) -> Path | None:
    """Loss over compute and size by approach 3, the efficient frontier along its valley, and the runs; none where
    the runs do not determine the surface."""
    fits, c = prediction.fits, prediction.flops_per
    if fits.parametric is None or not fits.parametric.known.determined:
        return None
    surface = fits.parametric.surface
    flops, params, losses = np.array([(run.flops, run.params, run.loss) for run in fits.runs]).T
    x = np.geomspace(flops.min() / 1.6, max(flops.max(), prediction.budget) * 1.6, 160)
    y = np.geomspace(params.min() / 1.6, max(params.max(), prediction.best.params) * 2.0, 160)
    tokens = x[None] / (c(y[:, None]) if callable(c) else c * y[:, None])
    loss = surface.loss(y[:, None], tokens)
    best = np.array([surface.optimum(one, c) for one in x]).T
    low, high = best[2].min() * 1.001, np.quantile(losses, 0.95) * 1.02
    levels = low + (high - low) * np.linspace(0.0, 1.0, 14) ** 1.5  # closer where the valley is flat
    with style.drawing(path, 6.4) as (figure, axes):
        drawn = axes.contour(x, y, loss, levels=levels, cmap=style.shades(reverse=True), linewidths=1.1)
        # Read off a bar: labels on the lines end up under runs and across the edges.
        lines = plt.cm.ScalarMappable(drawn.norm, style.shades(reverse=True))
        figure.colorbar(lines, ax=axes, label=loss_label(unit), pad=0.02, ticks=levels[::3], format="%.2f")
        axes.plot(x, best[0], color=ORANGE, lw=2.4, label="efficient frontier, approach 3")
        if fits.isoflop:
            axes.plot(x, fits.isoflop.params_law.at(x), "--", color=BLUE, lw=1.8, label="approach 2")
        if fits.envelope:
            axes.plot(x, fits.envelope.params_law.at(x), ":", color=PURPLE, lw=2, label="approach 1")
        axes.plot(flops, params, "o", color=GREY, ms=3.5, alpha=0.8, label="runs")
        axes.axvline(prediction.budget, **BUDGET)
        axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), title="Loss surface and efficient frontier")
        axes.set(ylabel="Parameters N")
        style.log_flops(axes)
        style.log_counts(axes, "y")
        style.legend_below(axes, 4)
    return path


def plot_residuals(prediction: Prediction, runs: Sequence[Run], path: Path, unit: str) -> Path | None:
    """Measured over predicted loss of approach 3 against C, N and D: a pattern shows where the form is wrong."""
    if (fit := prediction.fits.parametric) is None:
        return None
    runs = prediction.fits.runs
    flops, params, tokens, loss = np.array([(run.flops, run.params, run.tokens, run.loss) for run in runs]).T
    residual, ratio = 100 * np.log(loss / fit.surface.loss(params, tokens)), tokens / params
    scale = LogNorm(ratio.min(), ratio.max())
    edge = max(1e-3, min(np.abs(residual).max(), _OUTLYING * np.median(np.abs(residual)) / 0.67))
    with style.drawing(path, 4.6, 1, 3, sharey=True, layout="constrained") as (figure, panels):
        panels[0].set_ylim(-1.1 * edge, 1.1 * edge)
        for axes, x, word in zip(panels, (flops, params, tokens), ("C (FLOPs)", "N", "D"), strict=True):
            axes.axhline(0.0, color=GREY, lw=1)
            axes.axhspan(-100 * fit.scatter, 100 * fit.scatter, color=ORANGE, alpha=0.12, lw=0)
            axes.set_xscale("log")
            colours = style.shades()(scale(ratio))
            style.clipped(axes, x, residual, colours, s=30, edgecolors="white", lw=0.4, zorder=3)
            style.log_counts(axes, "x", flops_text if x is flops else count)
            axes.set_xlabel(word)
        panels[0].set(ylabel="Measured over predicted loss (%)", title="Residuals of approach 3, scatter shaded")
        style.bar(figure, panels, scale, "Tokens per parameter", pad=0.01)
    return path


def plot_coverage(prediction: Prediction, runs: Sequence[Run], path: Path, unit: str) -> Path:
    """Where in N and D the runs were, and how far beyond them the prediction lies."""
    best, asked = prediction.best, f"predicted for {flops_text(prediction.budget)} FLOPs"
    fitted = np.array([(run.params, run.tokens) for run in prediction.fits.runs])
    held = np.array([(run.params, run.tokens) for run in runs if run.role != "isoflop"]).reshape(-1, 2)
    losses = np.array([run.loss for run in prediction.fits.runs])
    # A few bad runs shall not take most of the colours.
    scale = Normalize(losses.min(), np.quantile(losses, 0.9))
    dots = {"norm": scale, "cmap": style.shades(reverse=True), "s": 32, "edgecolors": "white", "lw": 0.5}
    with style.drawing(path, 6.4) as (figure, axes):
        drawn = axes.scatter(*fitted.T, c=losses, zorder=3, **dots)
        figure.colorbar(drawn, ax=axes, label=loss_label(unit), pad=0.02, extend="max")
        if len(held):
            axes.plot(*held.T, "*", color=GREEN, ms=12, mec="white", label="held out, trained", zorder=4)
        predicted = [best.params], [prediction.tokens_at_budget]
        axes.plot(*predicted, "D", color=ORANGE, ms=9, mfc="none", mew=2, zorder=5, label=asked)
        shown = np.vstack([fitted, held, np.transpose(predicted)])
        (left, low), (right, high) = shown.min(0), shown.max(0)
        axes.set(xlim=(left / 1.5, right * 1.5), ylim=(low / 1.6, high * 1.6), xscale="log", yscale="log")
        style.log_counts(axes, "x")
        style.log_counts(axes, "y")
        axes.set(xlabel="Parameters N", ylabel="Training tokens D", title="Runs in N and D")
        style.legend_below(axes)
        figure.tight_layout()  # before the labels, which lie along the lines: the layout sets their angle
        _ratios(axes, np.log10(np.vstack([fitted, held])))
    return path


def _ratios(axes: Axes, points: np.ndarray) -> None:
    """Lines of equal D/N, each with its label along it, inside the axes and away from the `points` [K, 2]."""
    (left, right), (low, high) = np.log10(axes.get_xlim()), np.log10(axes.get_ylim())
    size = np.array([right - left, high - low])
    (x0, y0), (x1, y1) = axes.transAxes.transform([(0.0, 0.0), (1.0, 1.0)])
    angle = np.degrees(np.arctan2((y1 - y0) / size[1], (x1 - x0) / size[0]))
    words = {"fontsize": SIZE, "color": GREY, "ha": "center", "va": "center", "rotation": angle, "zorder": 2}
    words |= {"rotation_mode": "anchor", "bbox": {"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1.0}}
    for power in range(-3, 8):
        ends = max(left, low - power), min(right, high - power)  # of log10 N, where the line is inside
        if ends[1] - ends[0] < 0.3 * min(size):
            continue
        axes.plot(10.0 ** np.array(ends), 10.0 ** (np.array(ends) + power), color=PALE, lw=1, zorder=1)
        places = ends[0] + (ends[1] - ends[0]) * np.linspace(0.0, 1.0, 41)
        edge = np.minimum(places - ends[0], ends[1] - places) / size.min()
        gaps = np.linalg.norm((np.stack([places, places + power], 1)[:, None] - points) / size, axis=2).min(1)
        x = places[np.where(edge > 0.13, gaps, -1.0).argmax()]
        axes.annotate(f"D/N = {10.0**power:g}", (10.0**x, 10.0 ** (x + power)), **words)
