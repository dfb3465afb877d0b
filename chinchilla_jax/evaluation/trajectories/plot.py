"""The same tokens in all sizes: their perplexity on the way, against FLOPs and against how good the model is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from chinchilla_jax.base.words import count, flops_text
from chinchilla_jax.evaluation.trajectories import classify
from chinchilla_jax.evaluation.trajectories.series import Trajectories
from chinchilla_jax.scaling.report.plots import style

_DRAWN = (classify.STAGNATED, classify.UPWARD, classify.DOWNWARD)


def plot(trajectories: Trajectories, path: Path, share: float = classify.SHARES[0]) -> None:
    """Draws a PNG: a column for each trend, which tokens follow in the smallest run after a `share` of its training.

    Perplexities are geometric means over these tokens: the upper row against executed FLOPs, the lower against the
    validation perplexity of the whole model, which falls to the right (Xia et al. 2023, figures 3, 4 and appendix B.5).
    Raises UsageError of too few checkpoints.
    """
    runs = trajectories.runs
    classes = classify.classify(runs[0].nats[classify.after(runs[0], share)])
    with style.drawing(path, 6.4, 2, len(_DRAWN), sharey="col") as (_, grid):
        for column, trend in enumerate(_DRAWN):
            chosen = classes == trend
            grid[0, column].set_title(f"{classify.CLASSES[trend]}: {chosen.mean():.1%}")
            for run, colour in zip(runs, style.shades_of(len(runs)), strict=True):
                nats = run.nats[:, chosen].mean(1, dtype=np.float64) if chosen.any() else np.full(len(run.step), np.nan)
                for axes, x in zip(grid[:, column], (run.flops, np.exp(run.loss)), strict=True):
                    axes.plot(x, np.exp(nats), color=colour, lw=1.4, label=count(run.params))
            grid[1, column].invert_xaxis()
            for axes, label, form in zip(
                *(grid[:, column], ("Training FLOPs", "Validation perplexity"), (flops_text, "{:.3g}".format)),
                strict=True,
            ):
                style.log_counts(axes, "x", form)
                style.log_counts(axes, "y", "{:.3g}".format)
                axes.set_xlabel(label)
        for axes in grid[:, 0]:
            axes.set_ylabel("Perplexity of these tokens")
        grid[0, 0].legend(title="Parameters")
