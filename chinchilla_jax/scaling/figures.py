"""How do all figures look, and how are they written?

Colours: ordered budgets take a perceptually uniform map (cividis, made for colour-blind readers); categories take the
palette of Okabe and Ito (2008), and differ in marker as well.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from chinchilla_jax.scaling.words import count, flops_text

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#5F6670"
STYLE = {
    "envelope": (PURPLE, "^", "approach 1"),
    "isoflop": (BLUE, "s", "approach 2"),
    "parametric": (ORANGE, "D", "approach 3"),
}
RC = {
    "font.size": 11,
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E6EA",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.dpi": 130,
    "axes.edgecolor": GREY,
    "svg.hashsalt": "0",
}


def log_counts(axes: Axes, which: str, form: Callable[[float], str] = count) -> None:
    """Log axis with ticks at 1, 2 and 5 written as 200k, 1M ..., or as `form` has it."""
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    low, high = getattr(axes, f"get_{which}lim")()
    decades = np.log10(high / low)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
    axis.set_minor_formatter(NullFormatter())


def log_flops(axes: Axes) -> None:
    """The x axis of compute: logarithmic, 3e12 rather than powers of ten when it spans little."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if np.log10(high / low) < 2.5:
        log_counts(axes, "x", flops_text)
        axes.tick_params(axis="x", labelsize=9)
    axes.set_xlabel("Training compute C (FLOPs)")


def save(figure: Figure, path: pathlib.Path, tight: bool = True) -> pathlib.Path:
    """Writes and closes the figure; the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    if tight:
        figure.tight_layout()
    figure.savefig(temporary, format="png", facecolor="white", bbox_inches=None if tight else "tight")
    plt.close(figure)
    os.replace(temporary, path)
    return path
