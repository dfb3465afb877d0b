"""How do all figures look, and how are they written?

One width and one font size for all, since the page shows them at one width. Ordered values (budgets, losses) take
the part of viridis that stands out on white, and darker is always more compute, a larger model or a lower loss;
categories take the palette of Okabe and Ito (2008), and differ in marker as well.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from chinchilla_jax.base.files import write_bytes
from chinchilla_jax.base.words import count, flops_text

BLUE, ORANGE, GREEN, PURPLE, GREY, PALE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#5F6670", "#C9CED6"
STYLE = {
    "envelope": (PURPLE, "^", "approach 1"),
    "isoflop": (BLUE, "s", "approach 2"),
    "parametric": (ORANGE, "D", "approach 3"),
}
BUDGET = {"color": GREY, "lw": 1, "ls": (0, (4, 3))}  # a dashed line at the budget asked about
WIDTH = 9.6  # inches, of every figure
SIZE = 11.0  # points, of every word
MARKERS = "osD^v"  # in turn for neighbouring budgets
_WORDS = "font.size axes.titlesize axes.labelsize xtick.labelsize ytick.labelsize legend.fontsize legend.title_fontsize"
RC = dict.fromkeys(_WORDS.split(), SIZE) | {
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E6EA",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 130,
    "axes.edgecolor": GREY,
}
_LIGHTEST = 0.6  # of viridis; beyond it the contrast with white is below 3 to 1
_SUBS = ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3))  # ticks of a decade, the densest first
_MARGIN = 0.03  # share of an axis: the arrows for runs beyond it are this far inside its edge


def shades(reverse: bool = False) -> Colormap:
    """The colours of an ordered value, dark where it is large; reversed, dark where it is small (a loss)."""
    steps = np.linspace(0.0, _LIGHTEST, 256)
    return ListedColormap(plt.get_cmap("viridis")(steps if reverse else steps[::-1]))


def shades_of(number: int) -> np.ndarray:
    """[number, 4]: as many colours, the darkest last."""
    return shades()(np.linspace(0.0, 1.0, number) if number > 1 else [1.0])


def log_counts(axes: Axes, which: str, form: Callable[[float], str] = count) -> None:
    """Log axis with as many ticks as there is room for, at 1, 2 and 5 say; `form` writes them, as 200k or 1M."""
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    low, high = getattr(axes, f"get_{which}lim")()
    decades = abs(np.log10(high / low))
    width, height = axes.figure.get_size_inches() * (axes.get_position().width, axes.get_position().height)
    room, needed = (height, 0.32) if which == "y" else (width, 0.74 if form is flops_text else 0.6)
    closest = {subs: float(np.diff(np.log10([*subs, 10.0])).min()) for subs in _SUBS}
    fitting = (subs for subs in _SUBS if closest[subs] / decades * room > needed and len(subs) * decades < 12)
    subs = next(fitting, (1,))
    axis.set_major_locator(LogLocator(subs=subs, numticks=max(3, int(room / needed)) if subs == (1,) else 100))
    axis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
    axis.set_minor_formatter(NullFormatter())
    if subs != (1,):
        axis.set_minor_locator(NullLocator())


def log_flops(axes: Axes) -> None:
    """The x axis of compute: logarithmic, with ticks as 3e12."""
    log_counts(axes, "x", flops_text)
    axes.set_xlabel("Training compute C (FLOPs)")


def clipped(
    axes: Axes, x: Sequence[float], y: Sequence[float], colour: str | np.ndarray, marker: str = "o", **options: Any
) -> None:
    """Dots, and arrows at the edge for those beyond the limits of y; `colour` is one for all, or [K, 4]."""
    x, y = np.asarray(x), np.asarray(y)
    low, high = axes.get_ylim()
    colours = colour if np.ndim(colour) == 2 else None
    seen = (y >= low) & (y <= high)
    if colours is None:
        axes.plot(x[seen], y[seen], marker, color=colour, ls="none", **options)
    else:
        axes.scatter(x[seen], y[seen], c=colours[seen], marker=marker, **options)
    for beyond, place, arrow in ((y > high, 1.0 - _MARGIN, "$\\uparrow$"), (y < low, _MARGIN, "$\\downarrow$")):
        if beyond.any():
            axes.plot(x[beyond], np.full(beyond.sum(), 0.5 * (low + high)), ls="none")  # so that x reaches them
            look = {"color": colour if colours is None else colours[beyond], "marker": arrow, "s": 80, "lw": 0.8}
            axes.scatter(x[beyond], np.full(beyond.sum(), place), transform=axes.get_xaxis_transform(), **look)


def band(axes: Axes, x: np.ndarray, ends: Sequence[np.ndarray], colour: str = BLUE, **options: Any) -> None:
    """Shades between the two `ends` [2, K] at `x` [K]."""
    axes.fill_between(x, *ends, color=colour, lw=0, **{"alpha": 0.18, "label": "95% bootstrap band"} | options)


def bar(figure: Figure, axes: Axes | Sequence[Axes], scale: LogNorm, label: str, **options: Any) -> None:
    """A bar of the shades of a count on a logarithmic `scale`."""
    drawn = figure.colorbar(plt.cm.ScalarMappable(scale, shades()), ax=axes, label=label, **options)
    log_counts(drawn.ax, "y")


def legend_below(axes: Axes, columns: int = 3) -> None:
    """A legend under the axes, where it hides nothing."""
    inches = axes.figure.get_size_inches()[1] * axes.get_position().height
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.62 / inches), ncols=columns)


@contextlib.contextmanager
def drawing(path: Path, height: float, *grid: int, **options: Any) -> Iterator[tuple[Figure, Any]]:
    """A figure `height` inches high and its axes, one or a `grid` of rows and columns; saved at the end."""
    with plt.rc_context(RC):
        figure, axes = plt.subplots(*grid, figsize=(WIDTH, height), **options)
        yield figure, axes
        save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Writes and closes the figure."""
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    content = io.BytesIO()
    figure.savefig(content, format="png", facecolor="white")
    plt.close(figure)
    write_bytes(path, content.getvalue())
