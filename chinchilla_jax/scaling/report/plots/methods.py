"""How does the loss of different ways to train fall with compute, and with the experts that are left out?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from chinchilla_jax.base.files import read_json
from chinchilla_jax.config import RunConfig
from chinchilla_jax.ledger import flops_at
from chinchilla_jax.method import legs_of
from chinchilla_jax.scaling.read.directories import read_curve
from chinchilla_jax.scaling.read.runs import LoadedRuns, Run
from chinchilla_jax.scaling.report.plots import style
from chinchilla_jax.scaling.report.plots.compared import COLOURS

_WINDOW = 0.04  # of a run's points, over which its training loss is averaged


def plot_on_the_way(study: Path, arms: Mapping[str, LoadedRuns], path: Path) -> Path:
    """Training loss of the next token against C executed, a line a run, averaged over a part of it; stages that predict
    something else are left out."""
    with style.drawing(path, 5.6) as (_, axes):
        lowest = []
        for number, (name, loaded) in enumerate(arms.items()):
            for i, run in enumerate(loaded.role("isoflop")):
                flops, loss = _curve(study, run)
                if len(loss):
                    look = {"color": COLOURS[number % len(COLOURS)], "lw": 0.9, "alpha": 0.7}
                    axes.plot(flops, loss, **look, label=name if i == 0 else "_")
                    lowest.append(loss[len(loss) // 4])
        style.log_flops(axes)
        axes.set_ylim(top=max(lowest, default=1.0))
        axes.set(ylabel="Training loss (nats per token)", title="Loss against compute on the way")
        style.legend_below(axes, 2)
    return path


def _curve(study: Path, run: Run) -> tuple[np.ndarray, np.ndarray]:
    """FLOPs and averaged training loss of a run, where it is that of next tokens."""
    folder = study / "runs" / run.name
    config = RunConfig.from_dict(read_json(folder / "config.json")["config"])
    curve, _ = read_curve(run, folder / "metrics.jsonl")
    if curve is None:
        return np.zeros(0), np.zeros(0)
    kept, start = np.zeros(len(curve.tokens), bool), 0
    for leg in legs_of(config):
        end = start + leg.config.train.train_tokens
        kept |= (curve.tokens > start) & (curve.tokens <= end) & (leg.patch == 1)
        start = end
    tokens, loss = curve.tokens[kept], curve.loss[kept]
    width = max(1, int(_WINDOW * len(loss)))
    smooth = np.convolve(loss, np.ones(width) / width, mode="valid") if len(loss) >= width else loss
    at = tokens[width - 1 :] if len(loss) >= width else tokens
    return np.array([flops_at(config, t, "executed") for t in at]), smooth


def plot_by_experts(experts: Mapping[str, Any], path: Path) -> Path:
    """Validation loss against the share of experts that are used."""
    with style.drawing(path, 4.4) as (_, axes):
        for number, (name, rows) in enumerate(experts.items()):
            ordered = sorted(rows, key=lambda row: row["used"])
            used, loss = ([row[key] for row in ordered] for key in ("used", "loss"))
            axes.plot(used, loss, "o-", color=COLOURS[(number + 1) % len(COLOURS)], label=name)
        axes.set_xscale("log")
        axes.set(xlabel="Share of experts used", ylabel="Validation loss (nats per token)",
                 title="Trained with all experts, evaluated with fewer")  # fmt: skip
        axes.legend(loc="upper right")
    return path
