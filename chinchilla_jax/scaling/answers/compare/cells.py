"""What is an arm worth that has one budget? Its runs there, against the reference's of the same size and seed.

Such an arm has no frontier. But the reference, trained at this budget and at others around it in a few sizes, says what
more compute is worth to models of these sizes: the gain is read off its ladder. What a pair of runs shares, batches and
validation rows, takes nothing from its difference.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence, Sized

import numpy as np

from chinchilla_jax.scaling.fits.resample import LEAST_NOISE
from chinchilla_jax.scaling.read.runs import FitRefused, Run, noise_of_repeats

_SAME = 0.03  # of ln C: budgets closer than this are the same budget
_RUNGS = 2  # budgets of the reference that make a ladder


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
        steps = self._slopes()
        rung = np.clip(np.searchsorted(self.ladder, at) - 1, 0, len(self.ladder) - 2)
        draws = np.arange(len(at))
        along = self.level[draws, rung] + steps[draws, rung] * (at - self.ladder[rung])
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
        """[B, P - 1]: d ln loss / d ln C between rungs; more compute is never worth nothing at all."""
        return np.minimum(np.diff(self.level, axis=1) / np.diff(self.ladder), -1e-9)


def common_budget(arms: Sequence[Sequence[Run]]) -> float | None:
    """The one budget of arms that have no other, if it is the same in all of these; else None."""
    single = [budgets[0] for runs in arms if len(budgets := _budgets(runs)) == 1]
    return single[0] if single and all(_is_same(budget, single[0]) for budget in single) else None


def draw_cells(
    arms: Sequence[Sequence[Run]], budget: float, draws: int, seed: int, paired: bool = True
) -> CellFrontiers:
    """`draws` draws of all arms, the first of which is the reference; not `paired`: as if nothing were shared.

    Refused as `cells`: the reference has one budget only, or an arm has not the reference's sizes at `budget`, or no
    size was trained with several seeds.
    """
    reference, *others = arms
    rungs, ladder = _ladder(reference, budget)
    of_others = [_cells(runs, budget) for runs in others]
    pairs = [_pairs(_cells(reference, budget), cells, budget) for cells in of_others]
    groups = [list(cell.values()) for cells in [*ladder, *of_others] for cell in cells]
    noise, freedom = noise_of_repeats(groups)
    if not freedom:
        raise FitRefused("cells", "no size was trained with two seeds: how far runs differ by luck is not known")
    noise = max(noise, LEAST_NOISE)

    rng = np.random.default_rng(seed)
    spread, degrees = _of_pairs(pairs) if paired else (math.sqrt(2.0) * noise, freedom)
    means = np.array([_mean(cells) for cells in ladder])
    middle = np.array([np.mean([np.mean(cell) for cell in of_arm]) for of_arm in pairs])
    of_level = noise * _student(rng, freedom, draws, len(ladder)) / np.sqrt([_number(cells) for cells in ladder])
    error = spread * _student(rng, degrees, draws, len(others)) / np.sqrt([_number(of_arm) for of_arm in pairs])
    return CellFrontiers(
        budget=budget,
        ladder=np.log(rungs),
        level=means + of_level,
        difference=np.concatenate([np.zeros((1, draws)), (middle + error).T]),
        sizes=np.array([math.exp(np.mean(np.log([run.params for run in _at(runs, budget)]))) for runs in arms]),
        correlation=_first_row([1.0, *(_correlation(of_arm, noise) for of_arm in pairs)]),
        shared=_first_row([_number(_cells(reference, budget)), *map(_number, pairs)]),
        noise=noise,
    )


def _ladder(reference: Sequence[Run], budget: float) -> tuple[list[float], list[list[dict[str, float]]]]:
    """The budgets of the reference and its cells at each; refused unless they tell what more or less compute does."""
    rungs = _budgets(reference)
    if len(rungs) < _RUNGS or not any(_is_same(rung, budget) for rung in rungs):
        have = ", ".join(f"{rung:.3g}" for rung in rungs)
        raise FitRefused("cells", f"the reference needs runs at {budget:.3g} FLOPs and at another budget, has {have}")
    ladder = [_cells(reference, rung) for rung in rungs]
    if len({len(cells) for cells in ladder}) > 1:
        raise FitRefused("cells", "the reference has other numbers of sizes at other budgets: no ladder to read off")
    return rungs, ladder


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


def _cells(runs: Sequence[Run], budget: float) -> list[dict[str, float]]:
    """For each size at a budget, the smallest first, the losses by seed."""
    by_size: dict[float, dict[str, float]] = {}
    for run in _at(runs, budget):
        of_size = by_size.setdefault(run.params, {})
        of_size[run.seed or str(len(of_size))] = run.loss
    return [by_size[params] for params in sorted(by_size)]


def _pairs(reference: list[dict[str, float]], arm: list[dict[str, float]], budget: float) -> list[list[float]]:
    """ln loss less that of the reference, for every size, in their order, and every seed that both have."""
    if len(reference) != len(arm):
        told = f"{len(arm)} sizes at {budget:.3g} FLOPs against {len(reference)} of the reference"
        raise FitRefused("cells", f"an arm has {told}: sizes are compared in their order")
    pairs = [[math.log(b[s] / a[s]) for s in a if s in b] for a, b in zip(reference, arm, strict=True)]
    if not all(pairs):
        raise FitRefused("cells", f"an arm shares no seed with the reference at {budget:.3g} FLOPs")
    return pairs


def _mean(cells: Sequence[dict[str, float]]) -> float:
    """Mean ln loss, every size counting once."""
    return float(np.mean([np.mean(np.log(list(cell.values()))) for cell in cells]))


def _of_pairs(arms: Sequence[list[list[float]]]) -> tuple[float, int]:
    """The standard deviation of a pair's difference about the mean of its size, pooled; its degrees of freedom."""
    squares = sum(float(((np.array(cell) - np.mean(cell)) ** 2).sum()) for pairs in arms for cell in pairs)
    freedom = sum(len(cell) - 1 for pairs in arms for cell in pairs)
    if not freedom:
        raise FitRefused("cells", "no arm has two pairs of one size: how far differences vary by luck is not known")
    return max(math.sqrt(squares / freedom), LEAST_NOISE), freedom


def _correlation(pairs: list[list[float]], noise: float) -> float:
    """Of the errors of paired runs: 1 - var(difference) / 2 var(run), kept within -1 and 1."""
    spread, _ = _of_pairs([pairs]) if any(len(cell) > 1 for cell in pairs) else (math.sqrt(2.0) * noise, 0)
    return max(-1.0, 1.0 - spread**2 / (2.0 * noise**2))


def _first_row(values: Sequence[float]) -> np.ndarray:
    matrix = np.diag(np.ones(len(values)))
    matrix[0] = matrix[:, 0] = values
    return matrix


def _student(rng: np.random.Generator, freedom: int, draws: int, columns: int) -> np.ndarray:
    """[B, columns] of Student's t, all columns of a draw with the same error of the scale."""
    scale = np.sqrt(freedom / rng.chisquare(freedom, (draws, 1)))
    return rng.standard_normal((draws, columns)) * scale
