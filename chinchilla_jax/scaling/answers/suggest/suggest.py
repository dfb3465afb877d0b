"""Which runs next? Those that narrow the recommended prediction for a target budget the most, within a purse.

What is narrowed is the 95% interval that `predict` prints for the loss of one trained run or for N*: of approach 2
where it has two profiles or more (a third one makes it the recommended one), else of approach 3. It does not depend on
the losses the new runs will have, only on where they are, as far as the laws hold (`minima_design` for approach 2,
`surface_design` for approach 3). The same FLOPs on repeats of the present runs, and on an even grid, are stated beside.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from chinchilla_jax.scaling.answers.answers import Answer
from chinchilla_jax.scaling.answers.suggest.cells import Cell, Design, cost
from chinchilla_jax.scaling.answers.suggest.minima_design import MinimaDesign
from chinchilla_jax.scaling.answers.suggest.surface_design import SurfaceDesign
from chinchilla_jax.scaling.predict.analysis import Analysis
from chinchilla_jax.scaling.predict.predict import recommend
from chinchilla_jax.scaling.read.runs import FitRefused, flops_of

QUANTITIES = ("loss", "params")


@dataclasses.dataclass(frozen=True)
class NextRun(Cell):
    """A run to add; `half_width` is what it and those before leave, half of the 95% interval over the quantity."""

    half_width: float = math.nan


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """Further runs for a narrower prediction at `target` FLOPs, in the order in which to train them.

    `quantity` is `loss` (the lowest at the target) or `params` (N* there), `value` its value now by the `approach` that
    the interval is from. `before`, `after`, `repeated` and `even_grid` are halves of the 95% interval relative to it:
    now, with the runs, and with their FLOPs spent on repeats of all present runs or on an even grid.
    """

    target: float
    purse: float
    quantity: str
    approach: str
    value: float
    runs: tuple[NextRun, ...]
    before: float
    after: float
    repeated: float
    even_grid: float

    @property
    def flops(self) -> float:
        """FLOPs of all runs together."""
        return sum(run.flops for run in self.runs)


def suggest(
    fits: Analysis,
    target: float,
    purse: float,
    count: int = 8,
    quantity: str = "loss",
    cells: Sequence[Cell] | None = None,
    most: float = math.inf,
) -> Suggestion:
    """The at most `count` runs within `purse` FLOPs that leave the narrowest interval at the budget `target`.

    Args:
      fits: preset `corrected`, of the finished runs.
      purse: FLOPs for all new runs together, counted as the runs count theirs.
      quantity: `loss` or `params`.
      cells: the runs to choose from; with approach 2 each needs a budget. By default any size and budget up to the
        target and to `most` FLOPs a run.

    Raises:
      FitRefused: `preset`; `quantity`, `count`, `target` or `purse` cannot be met; `undetermined` (no law to go by);
        `cells` (one has no budget).
    """
    design, chosen, value, approach = chosen_design(fits, target, purse, count, quantity, cells, most)
    if not chosen:
        raise FitRefused("purse", f"no run within {purse:.4g} FLOPs narrows the interval; raise --purse")
    chosen = design.in_order(chosen)
    runs = tuple(
        NextRun(**vars(design.cells[i]), half_width=design.half_width(chosen[: number + 1]))
        for number, i in enumerate(chosen)
    )
    others = design.repeated(cost(design.cells, chosen)), design.even_grid(chosen)
    halves = design.half_width(()), design.half_width(chosen)
    return Suggestion(target, purse, quantity, approach, value, runs, *halves, *others)


def chosen_design(
    fits: Analysis,
    target: float,
    purse: float,
    count: int,
    quantity: str,
    cells: Sequence[Cell] | None = None,
    most: float = math.inf,
) -> tuple[Design, list[int], float, str]:
    """The design, what it chooses in no order, the quantity now and the approach; arguments as of `suggest`."""
    if fits.preset != "corrected":
        raise FitRefused("preset", f"further runs are chosen for the preset corrected, not {fits.preset}")
    if quantity not in QUANTITIES:
        raise FitRefused("quantity", f"unknown quantity {quantity!r}; one of {', '.join(QUANTITIES)}")
    if count < 1:
        raise FitRefused("count", f"at least one run must be asked for, got {count}")
    for name, value in (("target", target), ("purse", purse)):
        if not 0.0 < value < math.inf:
            raise FitRefused(name, f"the {name} must be a positive number of FLOPs, got {value:g}")
    # Two profiles carry no recommendation yet; what they need most is a third one.
    approach = "isoflop" if fits.isoflop else recommend(fits)[0]
    design, value = _design(fits, approach, target, quantity, purse, cells, most)
    cheapest = min((cell.flops for cell in design.cells), default=min(run.flops for run in fits.runs))
    if not cheapest <= purse or not design.cells:
        words = f"a purse of {purse:.4g} FLOPs does not pay for one more run: the cheapest costs {cheapest:.4g}"
        raise FitRefused("purse", words)
    return design, design.choose(purse, count), value, approach


def _design(
    fits: Analysis, approach: str, target: float, quantity: str, purse: float, cells: Sequence[Cell] | None, most: float
) -> tuple[Design, float]:
    """The design of the recommended approach, and the quantity by its law."""
    asked = target, quantity, flops_of(fits.runs), purse, cells, most
    if approach == "parametric":
        assert fits.parametric is not None  # what was not fitted is not recommended
        if why := fits.parametric.known.why:
            raise FitRefused("undetermined", f"no law to choose runs by: approach 3 is not determined: {why}")
        params, _, loss = fits.parametric.surface.optimum(target, flops_of(fits.runs))
        return SurfaceDesign(fits.parametric, fits.runs, *asked), float(loss if quantity == "loss" else params)
    assert fits.isoflop is not None
    if cells is not None and any(cell.budget is None for cell in cells):
        raise FitRefused("cells", "approach 2 chooses among runs of IsoFLOP profiles: every cell needs a budget")
    law = fits.isoflop.loss_law if quantity == "loss" else fits.isoflop.params_law
    return MinimaDesign(fits.isoflop, fits.runs, *asked), float(law.at(target))


def answer(suggestion: Suggestion) -> Answer:
    """The runs with what each leaves of the interval."""
    what = {"loss": "loss", "params": "N*"}[suggestion.quantity]
    name = {"isoflop": "approach 2", "parametric": "approach 3"}[suggestion.approach]
    title = (
        f"Next runs, for the {what} at C = {suggestion.target:.4g}: {suggestion.value:.5g} "
        f"+-{suggestion.before:.2%} now (95%, {name})"
    )
    rows = []
    for number, run in enumerate(suggestion.runs, 1):
        row = {"run": str(number), "N": run.params, "D": run.tokens, "D/N": run.tokens / run.params, "C": run.flops}
        rows.append(row | {"95% after it": f"+-{run.half_width:.2%}"})
    these = "this run" if len(rows) == 1 else f"these {len(rows)} runs"
    left = {
        f"With {these}, {suggestion.flops:.3g} of {suggestion.purse:.3g} FLOPs": suggestion.after,
        "The same FLOPs on repeats of the present runs": suggestion.repeated,
        "On an even grid of budgets and sizes": suggestion.even_grid,
    }
    notes = [f"{way}: +-{half:.2%}, {1.0 - half / suggestion.before:.0%} narrower" for way, half in left.items()]
    if min(suggestion.repeated, suggestion.even_grid) < suggestion.after:
        notes.append("Repeats, or an even grid, narrow it more: raise --number, or spend the purse on them")
    if suggestion.approach == "isoflop":
        notes.append("A new budget counts from its fourth size on, and if the runs come out as the law expects")
    return Answer("suggestion", title, tuple(rows), tuple(notes))
