"""What is an arm worth that has one budget? Its runs there, against the reference's of the same size and seed.

Such an arm has no frontier. But the reference, trained at this budget and at others around it in a few sizes, says what
more compute is worth to models of these sizes: the gain is read off its ladder. What a pair of runs shares, batches and
validation rows, takes nothing from its difference.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence, Sized

import numpy as np

from chinchilla_jax.scaling.fits.resample import LEAST_NOISE
from chinchilla_jax.scaling.read.runs import FitRefused, Run, noise_of_repeats

_SAME = 0.03  # of ln C, and of ln N: budgets, and sizes, closer than this are the same
_RUNGS = 2  # budgets of the reference that make a ladder
_CLEAR = 3.0  # standard errors by which its loss must fall


@dataclasses.dataclass(frozen=True)
class CellFrontiers:
    """B draws of K arms at `budget` FLOPs. The first arm is the reference: `ladder` [P] ln C of its budgets and `level`
    [B, P] its mean ln loss there. `difference` [K, B]: mean ln loss of an arm less that of the reference.

    `correlation` [K, K] of errors with the reference's, and `shared` [K, K] pairs of runs, are known in the first row.
    """

    budget: float
    ladder: np.ndarray
    level: np.ndarray
    difference: np.ndarray
    sizes: np.ndarray
    correlation: np.ndarray
    shared: np.ndarray
    noise: float

    def loss(self, arm: int, flops: float | np.ndarray) -> np.ndarray:
        """[B]: the mean loss at C = flops, along the reference's ladder."""
        at = np.broadcast_to(np.log(flops), self.level.shape[:1])
        rung = np.clip(np.searchsorted(self.ladder, at) - 1, 0, len(self.ladder) - 2)
        draws = np.arange(len(at))
        along = self.level[draws, rung] + self._slopes()[draws, rung] * (at - self.ladder[rung])
        return np.exp(along + self.difference[arm])

    def flops(self, arm: int, loss: np.ndarray) -> np.ndarray:
        """[B]: the C that reaches `loss` [B]; beyond the ladder along its last step."""
        wanted = np.log(loss) - self.difference[arm]
        draws = np.arange(len(wanted))
        rung = np.clip((self.level > wanted[:, None]).sum(1) - 1, 0, len(self.ladder) - 2)
        return np.exp(self.ladder[rung] + (wanted - self.level[draws, rung]) / self._slopes()[draws, rung])

    def params(self, arm: int, flops: float | np.ndarray) -> np.ndarray:
        """[B]: the geometric mean of the arm's sizes."""
        return np.full(self.level.shape[0], self.sizes[arm])

    def _slopes(self) -> np.ndarray:
        """[B, P - 1]: d ln loss / d ln C between rungs, below zero."""
        return np.diff(self.level, axis=1) / np.diff(self.ladder)


def common_budget(arms: Sequence[Sequence[Run]]) -> float | None:
    """The budget of arms that have one only, if all but the first, the reference, are such and it is the same."""
    budgets = [_budgets(runs) for runs in arms[1:]]
    if not budgets or any(len(of_arm) != 1 for of_arm in budgets):
        return None
    single = budgets[0][0]
    return single if all(_is_same(of_arm[0], single) for of_arm in budgets) else None


def draw_cells(
    arms: Sequence[Sequence[Run]],
    budget: float,
    draws: int,
    seed: int,
    paired: bool = True,
    plain: Mapping[str, float] | None = None,
) -> CellFrontiers:
    """`draws` draws of all arms, the first of which is the reference; not `paired`: as if nothing were shared.

    `plain` says of runs, by name, which N the model has that is trained plainly; by default their own.

    Refused as `cells`: the reference has one budget only, or gains nothing from one to the next, an arm has not its
    sizes at `budget`, or no size was trained with several seeds.
    """
    sizes = [{run.name: (plain or {}).get(run.name, run.params) for run in runs} for runs in arms]
    rungs, ladder = _ladder(arms[0], sizes[0], budget)
    here = _cells(arms[0], sizes[0], budget)
    of_others = [_cells(runs, of_arm, budget) for runs, of_arm in zip(arms[1:], sizes[1:], strict=True)]
    pairs = [_pairs(here, cells, budget) for cells in of_others]
    groups = [list(cell.values()) for cells in [*ladder, *of_others] for cell in cells.values()]
    noise, freedom = noise_of_repeats(groups)
    if not freedom:
        raise FitRefused("cells", "no size was trained with two seeds: how far runs differ by luck is not known")
    noise = max(noise, LEAST_NOISE)

    rng = np.random.default_rng(seed)
    level = _levels(np.log(rungs), ladder, rungs.index(min(rungs, key=lambda c: abs(math.log(c / budget)))), noise,
                    _student(rng, freedom, draws))  # fmt: skip
    difference = [np.zeros(draws)]
    for of_arm in pairs:
        spread, degrees = _of_pairs(of_arm) if paired else (math.sqrt(2.0) * noise, freedom)
        middle = float(np.mean([np.mean(cell) for cell in of_arm]))
        difference.append(middle + spread / math.sqrt(_number(of_arm)) * _student(rng, degrees, draws))
    return CellFrontiers(
        budget=budget,
        ladder=np.log(rungs),
        level=level,
        difference=np.array(difference),
        sizes=np.array([math.exp(np.mean(np.log([run.params for run in _at(runs, budget)]))) for runs in arms]),
        correlation=_first_row([1.0, *(_correlation(of_arm, noise) for of_arm in pairs)]),
        shared=_first_row([_number(list(here.values())), *map(_number, pairs)]),
        noise=noise,
    )


Cells = dict[float, dict[str, float]]  # by size the losses by seed


def _ladder(reference: Sequence[Run], sizes: Mapping[str, float], budget: float) -> tuple[list[float], list[Cells]]:
    """The budgets of the reference and its cells at each; refused unless they tell what more or less compute does."""
    rungs = _budgets(reference)
    if len(rungs) < _RUNGS or not any(_is_same(rung, budget) for rung in rungs):
        have = ", ".join(f"{rung:.3g}" for rung in rungs)
        raise FitRefused("cells", f"the reference needs runs at {budget:.3g} FLOPs and at another budget, has {have}")
    ladder = [_cells(reference, sizes, rung) for rung in rungs]
    if any(list(cells) != list(ladder[0]) for cells in ladder):
        raise FitRefused("cells", "the reference has other sizes at other budgets: there is no ladder to read off")
    return rungs, ladder


def _levels(x: np.ndarray, ladder: Sequence[Cells], here: int, noise: float, student: np.ndarray) -> np.ndarray:
    """[B, P]: ln loss along the ladder in each draw. Its steps are those of the means, all steeper or flatter together
    by the error of the slope: drawn one by one, noise would turn some of them round."""
    means, numbers = np.array([_mean(cells) for cells in ladder]), [_number(list(cells.values())) for cells in ladder]
    slope = float(np.polyfit(x, means, 1)[0])
    error = noise / math.sqrt(sum(n * (at - x.mean()) ** 2 for n, at in zip(numbers, x, strict=True)))
    if slope > -_CLEAR * error:
        told = f"d ln loss / d ln C is {slope:.3g} +- {error:.2g}"
        raise FitRefused(
            "cells", f"the reference gains no more from its smallest to its largest budget than luck: {told}"
        )
    steps = np.diff(means) / np.diff(x)
    steps = steps if steps.max() < 0.3 * slope else np.full_like(steps, slope)
    flatter = np.maximum(1.0 + error / abs(slope) * student, 0.2)
    rises = np.concatenate([[0.0], np.cumsum(steps * np.diff(x))])
    return means[here] + flatter[:, None] * (rises - rises[here])


def _number(cells: Sequence[Sized]) -> int:
    """How many runs, or pairs of runs, there are in all cells."""
    return sum(map(len, cells))


def _budgets(runs: Sequence[Run]) -> list[float]:
    budgets = sorted({run.budget or run.flops for run in runs})
    return [b for i, b in enumerate(budgets) if i == 0 or not _is_same(b, budgets[i - 1])]


def _is_same(one: float, other: float) -> bool:
    return abs(math.log(one / other)) < _SAME


def _at(runs: Sequence[Run], budget: float) -> list[Run]:
    return [run for run in runs if _is_same(run.budget or run.flops, budget)]


def _cells(runs: Sequence[Run], sizes: Mapping[str, float], budget: float) -> Cells:
    """The losses at a budget, the smallest size first. Seeds that are not told apart are numbered."""
    by_size: Cells = {}
    for run in sorted(_at(runs, budget), key=lambda run: sizes[run.name]):
        of_size = by_size.setdefault(sizes[run.name], {})
        seed = run.seed or str(len(of_size))
        of_size[seed if seed not in of_size else f"{seed}, {len(of_size)}"] = run.loss
    return by_size


def _pairs(reference: Cells, arm: Cells, budget: float) -> list[list[float]]:
    """ln loss less that of the reference, for every size and every seed that both have."""
    told = f"at {budget:.3g} FLOPs it has N = {_words(arm)}, the reference {_words(reference)}"
    if len(reference) != len(arm) or not all(_is_same(a, b) for a, b in zip(reference, arm, strict=True)):
        raise FitRefused("cells", f"an arm has other sizes than the reference: {told}")
    cells = zip(reference.values(), arm.values(), strict=True)
    pairs = [[math.log(b[seed] / a[seed]) for seed in a if seed in b] for a, b in cells]
    if not all(pairs):
        raise FitRefused("cells", f"an arm shares no seed with the reference at {budget:.3g} FLOPs")
    return pairs


def _words(cells: Cells) -> str:
    return ", ".join(f"{size:.4g}" for size in cells) or "no runs"


def _mean(cells: Cells) -> float:
    """Mean ln loss, every size counting once."""
    return float(np.mean([np.mean(np.log(list(cell.values()))) for cell in cells.values()]))


def _of_pairs(pairs: list[list[float]]) -> tuple[float, int]:
    """The standard deviation of a pair's difference about the mean of its size, and its degrees of freedom."""
    squares = sum(float(((np.array(cell) - np.mean(cell)) ** 2).sum()) for cell in pairs)
    freedom = sum(len(cell) - 1 for cell in pairs)
    if not freedom:
        raise FitRefused("cells", "an arm has no two pairs of one size: how far differences vary by luck is not known")
    return max(math.sqrt(squares / freedom), LEAST_NOISE), freedom


def _correlation(pairs: list[list[float]], noise: float) -> float:
    """Of the errors of paired runs: 1 - var(difference) / 2 var(run), kept within -1 and 1."""
    return max(-1.0, 1.0 - _of_pairs(pairs)[0] ** 2 / (2.0 * noise**2))


def _first_row(values: Sequence[float]) -> np.ndarray:
    matrix = np.diag(np.ones(len(values)))
    matrix[0] = matrix[:, 0] = values
    return matrix


def _student(rng: np.random.Generator, freedom: int, draws: int) -> np.ndarray:
    """[B] of Student's t."""
    return rng.standard_normal(draws) * np.sqrt(freedom / rng.chisquare(freedom, draws))
