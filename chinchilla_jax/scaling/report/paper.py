"""What that Hoffmann et al. 2022 printed can be computed again, and where does the print contradict itself?

Its runs were not published, but the 245 final losses of Figure 4 can be read off the figure (`tables/SOURCE.md`), and
Tables 3 and A3 print the budget at which each size is optimal. Approach 1 needs training curves, which nobody has. The
power law through its printed rows takes their place; it only says how consistent the rows are.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from chinchilla_jax.base.files import read_text
from chinchilla_jax.base.words import Echo
from chinchilla_jax.scaling.answers.decide import given_params
from chinchilla_jax.scaling.fits.approach2.isoflop import fit_isoflop
from chinchilla_jax.scaling.fits.approach3.as_published import fit_as_published
from chinchilla_jax.scaling.fits.approach3.parametric import ParametricFit, fit_parametric
from chinchilla_jax.scaling.fits.frontier import PowerLaw, fit_power
from chinchilla_jax.scaling.fits.resample import PAPER, interval
from chinchilla_jax.scaling.fits.surface import Surface
from chinchilla_jax.scaling.read.load import load_runs
from chinchilla_jax.scaling.read.runs import Run
from chinchilla_jax.scaling.report.sections import Section, Table
from chinchilla_jax.scaling.report.text import tell

# Eq. 10 before rounding: the TeX source, as quoted by Besiroglu et al. 2024.
UNROUNDED = Surface(np.exp(0.5267228), np.exp(6.0073404), np.exp(6.0179186), 0.33917084, 0.2849083)
ROUNDED = Surface(1.69, 406.4, 410.7, 0.34, 0.28)
_TABLES = Path(__file__).parents[2] / "tables"
_MISPRINT = 0.5  # a printed budget further than this from 6 N D, as a share of it, is a slip of the pen
_LOOSE = 0.03


@dataclasses.dataclass(frozen=True)
class Allocation:
    """One row of Table 3 or A3: the budget in FLOPs and the tokens for which `params` is optimal.

    `printed_*` as in the paper, `six_nd` = 6 N D; `flops` and `tokens` as computed here by `how`; `note` names a slip.
    """

    approach: int
    table: str
    params: float
    printed_flops: float
    printed_tokens: float
    six_nd: float
    flops: float
    tokens: float
    how: str
    note: str


def figure_4(outliers: bool = False) -> tuple[Run, ...]:
    """The runs of Figure 4 with N, D, C by `table_a4` and nominal budgets; 245 with `outliers`, else 240.

    The five are the highest losses, all near 1e19 FLOPs with under half a token per parameter, which Besiroglu et al.
    2024 leave out.
    """
    path = _TABLES / "chinchilla_fig4_points.csv"
    rows = csv.DictReader(read_text(path).splitlines())
    runs = zip(load_runs(path).runs, rows, strict=True)
    return tuple(run for run, row in runs if outliers or row["outlier_top5_loss"] != "1")


def allocations() -> tuple[Allocation, ...]:
    """Tables 3 and A3, each row beside its recomputation."""
    printed = list(csv.DictReader(read_text(_TABLES / "chinchilla_allocation.csv").splitlines()))
    numbers = [tuple(float(row[key]) for key in ("params", "flops_printed", "tokens")) for row in printed]
    first = np.array([values for row, values in zip(printed, numbers, strict=True) if row["approach"] == "1"]).T
    isoflop = fit_isoflop(figure_4(), resampling=None)

    def surface(params: float) -> tuple[float, float]:
        choice = given_params(UNROUNDED, params)
        return float(choice.flops), float(choice.tokens)

    laws = fit_power(first[1], first[0]), fit_power(first[1], first[2])
    minima = isoflop.params_law, isoflop.tokens_law
    ways: dict[str, tuple[Callable[[float], tuple[float, float]], str]] = {
        "1": (functools.partial(_at, *laws), "power law through the printed rows"),
        "2": (functools.partial(_at, *minima), "approach 2 on Figure 4"),
        "3": (surface, "eq. 4 with the unrounded constants of eq. 10"),
    }
    result = []
    for row, (params, flops, tokens) in zip(printed, numbers, strict=True):
        (compute, how), six_nd = ways[row["approach"]], 6.0 * params * tokens
        here, note, off = compute(params), "", flops / six_nd - 1.0
        if abs(off) > _MISPRINT:
            note = f"misprint: {flops:.3g} printed, 6 N D is {six_nd:.3g}"
        elif abs(off) > _LOOSE:
            note = f"printed C is {off:+.0%} from 6 N D"
        result.append(Allocation(int(row["approach"]), row["table"], params, flops, tokens, six_nd, *here, how, note))
    return tuple(result)


def _at(sizes: PowerLaw, tokens: PowerLaw, params: float) -> tuple[float, float]:
    """C at which the power law N*(C) gives `params`, and D* there."""
    log_c = sizes.log_centre + (np.log(params) - sizes.log_value) / sizes.exponent
    return float(np.exp(log_c)), float(tokens.at(np.exp(log_c)))


def describe(echo: Echo) -> None:
    """Prints the tables side by side, the exponents of Table 2, and what averaging the objective does."""
    allocated = allocations()
    echo("Tables 3 and A3 of Hoffmann et al. 2022: the budget for which a size is optimal")
    tell([_allocations([row for row in allocated if row.approach == approach]) for approach in (1, 2, 3)], echo)
    runs = figure_4()
    profiles, optimum = fit_isoflop(runs, resampling=PAPER), fit_parametric(runs, resampling=PAPER)
    assert profiles.boot_params and optimum.boot, "both were resampled"
    lines = []
    for name, printed, value, boot in (
        ("2", "0.49 (0.462, 0.534)", profiles.params_law.exponent, profiles.boot_params.exponent),
        ("3", "0.46 (0.454, 0.455)", optimum.surface.a, optimum.boot.a),
    ):
        low, high = interval(boot, 0.8)
        lines.append(f"approach {name}: printed {printed}, here {float(value):.3f} ({low:.3f}, {high:.3f})")
    title = "Exponent a of N* ~ C^a on the 240 points of Figure 4 (80% interval: 100 subsets of 80%)"
    tell([Section(title, sentences=lines), _averaging(optimum)], echo)


def _allocations(rows: Sequence[Allocation]) -> Section:
    columns = {
        "N": "params",
        "C printed": "printed_flops",
        "C here": "flops",
        "D printed": "printed_tokens",
        "D here": "tokens",
    }
    cells = [{name: f"{getattr(row, key):.3g}" for name, key in columns.items()} | {"note": row.note} for row in rows]
    return Section(f"Approach {rows[0].approach}, {rows[0].table}; here: {rows[0].how}", tables=(Table(cells),))


def _averaging(optimum: ParametricFit) -> Section:
    """The objective summed against averaged, both from the published constants."""
    s = UNROUNDED
    start = np.array([[np.log(s.A), np.log(s.B), np.log(s.E), s.alpha, s.beta]])
    averaged, lines = fit_as_published(figure_4(), starts=start), []
    for name, fit in (("averaged, stops where it started", averaged), ("summed, brought to zero gradient", optimum)):
        assert fit.boot, "both were resampled"
        s, (low, high) = fit.surface, interval(fit.boot.a, 0.8)
        lines.append(
            f"{name}: E {s.E:.4f}, A {s.A:.1f}, B {s.B:.1f}, alpha {s.alpha:.4f}, beta {s.beta:.4f}; a {s.a:.4f} "
            f"({low:.4f}, {high:.4f}); objective {fit.objective:.4g}"
        )
    above = averaged.objective / optimum.objective - 1
    lines.append(
        f"averaged it stops {above:.0%} above the minimum; its interval is narrow because no replicate moves either"
    )
    title = "Approach 3, what averaging does: from the constants of eq. 10, L-BFGS-B at its default tolerance"
    return Section(title, sentences=lines)
