"""Every figure as it is drawn: words inside and apart, one size, colours that stand out and mean one thing."""

import numpy as np
import pytest
from matplotlib.text import Text

from chinchilla_jax.base.words import change, count, in_unit, loss_label, percent, unit_of
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.predict.analysis import analyse
from chinchilla_jax.scaling.predict.predict import predict
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import Curve, Run
from chinchilla_jax.scaling.report.plots import fitted, profiles, style

WIDE = Surface(2.0, 300.0, 400.0, 0.35, 0.33)
UNIT = "taken as nats per token: the numbers cannot tell"


def wide_table():
    """Eight budgets with sizes from 1/30 to 30 times the optimum, some of them outside what is shown."""
    rng = np.random.default_rng(0)
    runs = []
    for budget in 1e17 * 2.0 ** np.arange(8):
        for i, n in enumerate(float(WIDE.optimum(budget)[0]) * np.geomspace(1 / 30, 30, 9)):
            d = budget / 6 / n
            seen = np.linspace(0.05, 1.0, 40) * d
            loss = float(WIDE.loss(n, d)) * (1 + 0.002 * rng.standard_normal())
            curve = Curve(seen, WIDE.loss(n, seen))
            runs.append(Run(f"{budget:g}-{i}", n, d, budget, loss, budget, curve=curve))
    return tuple(runs)


@pytest.fixture(scope="module")
def sets(tmp_path_factory, write_study, figure_4):
    """Runs and predictions of a study with held-out runs, of a published table and of a wide one."""
    root = tmp_path_factory.mktemp("figures")
    write_study(root)
    study = load_runs(root).runs
    return [
        (runs, predict(analyse(runs, replicates=20), target))
        for runs, target in ((study, 4 * 2.7e12), (figure_4, 5.76e23), (wide_table(), 1e20))
    ]


@pytest.fixture
def drawn(monkeypatch):
    """Figures as they are when saved, by file name."""
    found = {}

    def keep(figure, path):
        if figure.get_layout_engine() is None:
            figure.tight_layout()
        figure.canvas.draw()
        found[path.name] = figure

    monkeypatch.setattr(style, "save", keep)
    yield found
    for figure in found.values():
        style.plt.close(figure)


def draw_all(runs, prediction, folder):
    profiles.plot_profiles(prediction, runs, folder / "profiles", UNIT)
    profiles.plot_heldout(prediction, runs, folder / "heldout", UNIT)
    profiles.plot_frontier(prediction, runs, folder / "frontier", UNIT)
    profiles.plot_loss_frontier(prediction, runs, folder / "loss_frontier", UNIT)
    fitted.plot_contours(prediction, runs, folder / "contours", UNIT)
    fitted.plot_residuals(prediction, runs, folder / "residuals", UNIT)
    fitted.plot_coverage(prediction, runs, folder / "coverage", UNIT)
    if prediction.fits.envelope:
        fitted.plot_envelope(prediction, runs, folder / "envelope", UNIT)


def words_of(figure):
    """(text, box) of all words that are seen."""
    ticks = {}
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks() + axis.get_minor_ticks():
                inside = low * (1 - 1e-9) <= tick.get_loc() <= high * (1 + 1e-9) or low <= tick.get_loc() <= high
                for label in (tick.label1, tick.label2):
                    ticks[label] = inside
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and ticks.get(text, True):
            yield text, text.get_window_extent()


@pytest.mark.parametrize("which", [0, 1, 2], ids=["study", "published", "wide"])
def test_words_are_inside_apart_and_of_one_size(sets, drawn, tmp_path, which):
    runs, prediction = sets[which]
    draw_all(runs, prediction, tmp_path)
    assert len(drawn) == (8 if prediction.fits.envelope else 7)
    for name, figure in drawn.items():
        page, seen = figure.bbox, list(words_of(figure))
        assert len(seen) > 6 and figure.get_size_inches()[0] == style.WIDTH
        for text, box in seen:
            assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1, (name, text)
            assert page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1, (name, text)
            assert text.get_fontsize() == style.SIZE, (name, text)
            if text.get_text().startswith("D/N"):
                inner = text.axes.bbox
                assert inner.x0 <= box.x0 and box.x1 <= inner.x1 and inner.y0 <= box.y0 and box.y1 <= inner.y1
        for i, (text, box) in enumerate(seen):
            for other, its in seen[:i]:
                apart = min(box.x1, its.x1) - max(box.x0, its.x0) < 1 or min(box.y1, its.y1) - max(box.y0, its.y0) < 1
                # A line's label leans; its box does not.
                assert apart or "D/N" in text.get_text() or "D/N" in other.get_text(), (name, text, other)


def test_the_minima_fill_the_panels_and_runs_beyond_are_arrows(sets, drawn, tmp_path):
    runs, prediction = sets[2]
    profiles.plot_profiles(prediction, runs, tmp_path / "profiles", UNIT)
    losses, above = drawn["profiles"].axes[:2]
    lowest = [p.params.lowest for p in prediction.fits.isoflop.profiles]
    low, high = losses.get_ylim()
    assert (max(lowest) - min(lowest)) / (high - low) > 0.35 and max(run.loss for run in runs) > high
    assert above.get_ylim()[1] < 12 and above.get_ylim()[0] <= 0
    for axes in (losses, above):
        arrows = [dots for dots in axes.collections if dots.get_offset_transform() == axes.get_xaxis_transform()]
        assert arrows and all(y > 0.9 for dots in arrows for _, y in dots.get_offsets())
    far = [x for dots in losses.collections for x, y in dots.get_offsets() if 0.9 < y < 1]
    assert len(far) == sum(run.loss > high for run in runs)
    assert losses.get_xlim()[0] <= min(far) and max(far) <= losses.get_xlim()[1]
    dots = [
        line
        for line in losses.lines
        if line.get_marker() in style.MARKERS and len(line.get_xdata()) > 2 and line.get_linestyle() == "None"
    ]
    rings = next(line for line in losses.lines if line.get_label() == "minimum")
    assert rings.get_zorder() < min(line.get_zorder() for line in dots) and rings.get_markerfacecolor() == "none"


def test_the_held_out_plot_follows_the_recommended_law(sets, drawn, tmp_path):
    runs, prediction = sets[0]
    profiles.plot_heldout(prediction, runs, tmp_path / "heldout", UNIT)
    axes = drawn["heldout"].axes[0]
    colour, _, name = style.STYLE[prediction.recommended]
    curve = next(line for line in axes.lines if line.get_label() == f"{name} (recommended), profile")
    assert curve.get_color() == colour
    assert curve.get_ydata().min() == pytest.approx(prediction.best.loss, rel=1e-3)
    assert axes.get_ylabel() == "Loss (taken as nats per token)"


def luminance(colour):
    rgb = np.array(colour[:3])
    return float(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


def test_shades_stand_out_on_white_and_darken_one_way():
    for number in (2, 4, 9, 14):
        light = [luminance(colour) for colour in style.shades_of(number)]
        assert all(1.05 / (value + 0.05) >= 2.95 for value in light)
        assert all(one > other for one, other in zip(light, light[1:], strict=False))
    assert style.shades()(1.0) == style.shades(reverse=True)(0.0)


def test_what_is_far_beyond_300_percent_is_a_factor():
    assert [percent(v) for v in (0.0123, 2.99, 231.3729, 4.0, 3.2e12, np.inf)] == [
        "1.23%",
        "299.00%",
        "x232",
        "x5",
        "x3.2e12",
        "never",
    ]
    assert [change(v) for v in (0.01, -0.5, 9.0)] == ["+1.00%", "-50.00%", "x10"] and count(1e9) == "1B"


def test_the_unit_that_was_read_is_the_unit_that_is_shown():
    assert loss_label("nats per token, on held-out text") == "Validation loss (nats per token)"
    assert loss_label(UNIT) == "Loss (taken as nats per token)" and unit_of("bits per byte; stated") == "bits per byte"
    assert in_unit("bits per byte") == "in bits per byte" and in_unit(UNIT) == "taken as nats per token"
