"""Which further runs narrow the answer of approach 2 the most?

The fit near the minima (`near_minimum`) is a linear regression about its solution: what a further run tells of the
minima does not depend on its loss (Fedorov 1972; Atkinson and Donev 1992, chapters 9 to 12). So the covariance of the
minima with the run is known beforehand, and with it the interval of the law through them: the minima are kept where the
present law has them, and how far laws are off (the discrepancy) is not learnt in advance.

A budget has a minimum from its fourth size on. Therefore runs at a new budget come as blocks of four about the N*
expected there, in one of several widths. To one block after the other, wherever it helps most, single runs are added
greedily: a run with row r, unknowns with covariance V and a prediction that moves by g with the minima changes the
variance by (g V r)^2 / (1 + r V r). They are exchanged as long as that helps. Of designs within 1% of the narrowest the
cheapest is taken.

Far from the target a minimum is worth little, since laws are off by more with every factor of compute: that is what
makes large budgets worth their price.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.special import stdtr

from chinchilla_jax.scaling.answers.decide import per_token
from chinchilla_jax.scaling.answers.suggest.cells import LEVEL, Cell, added, cost
from chinchilla_jax.scaling.fits.approach2.isoflop import IsoflopFit
from chinchilla_jax.scaling.fits.approach2.near_minimum import NOISE_FREEDOM, NearFit, NearProblem
from chinchilla_jax.scaling.fits.approach2.table import MIN_POINTS, read_profiles
from chinchilla_jax.scaling.fits.frontier import AveragedLaw, OptimumLaw, fit_loss_law, fit_optimum
from chinchilla_jax.scaling.fits.surface import FlopsPerToken
from chinchilla_jax.scaling.read.runs import Run

_STEP, _STEPS = 1.25, 5  # sizes among the candidates: this factor apart, so many on either side of N*
_BUDGETS = 14  # new budgets among the candidates, besides those that spend the purse on one profile
_APART = 1.15  # factor by which a new budget differs from those there are
_SAME_SIZE = 0.03  # of ln N: a size that is there already
_WIDTHS = (1.4, 1.7, 2.1, 2.6, 3.5)  # factors between the sizes of a block
_SIZES = (4, 6)  # how many they are
_TRIED = 5  # sets of blocks, the best by themselves, that are filled up with single runs
_BRACKET = 0.2  # of ln N: how far the outermost sizes of a block must lie beyond N* on either side
_WORTH = 0.005  # relative narrowing for which a further block, or an exchange, is made
_SLACK = 1.01  # designs so near to the narrowest are as good; the cheapest of them is taken
_EVEN = np.linspace(-1.4, 1.4, 7)  # ln N / N* of the even grid: seven sizes within a factor 4
_ROUND = 1.0 + 1e-9  # of the purse
_Law = AveragedLaw | OptimumLaw


@dataclasses.dataclass(frozen=True)
class _State:
    """What a choice leaves: the `law`, its `deviation` at the target, the `covariance` of the unknowns `columns` of the
    frame, and `moment` [p, p], of which g^T moment g is the variance that the minima bring to the prediction."""

    law: _Law
    deviation: float
    covariance: np.ndarray
    columns: np.ndarray
    moment: np.ndarray


class MinimaDesign:
    """The design of approach 2. As `cells.Design`.

    Args:
      fit: approach 2, preset `corrected`; `runs` what it was fitted to.
      target: budget in FLOPs; `quantity` there: `loss` or `params`.
      flops_per: training FLOPs of a token, as in `Surface.optimum`.
      cells: the candidates, each with a budget; by default a grid as far as `purse` reaches.
    """

    def __init__(
        self,
        fit: IsoflopFit,
        runs: Sequence[Run],
        target: float,
        quantity: str,
        flops_per: FlopsPerToken,
        purse: float,
        cells: Sequence[Cell] | None = None,
        most: float = np.inf,
    ):
        table, _ = read_profiles(runs, "near")
        self.fit, self.near, self.target, self.quantity = fit, table.near["params"], target, quantity
        profiles = table.budgets
        with_budget = [run for run in runs if run.budget is not None]
        highest = min(target, most)
        self.cells = list(cells) if cells is not None else _grid(fit, with_budget, profiles, flops_per, purse, highest)
        others = [run.budget for run in with_budget] + [cell.budget for cell in self.cells]
        self.budgets = np.unique(np.array([*others, *profiles], np.float64))
        self.total = sum(run.flops for run in with_budget)
        self.profiles = np.isin(self.budgets, profiles)
        self._theta = self._expected(table.near["params"], profiles)
        near = {id(run) for profile in fit.profiles for run in profile.near}
        pending = [run for run in with_budget if not np.isin(run.budget, profiles)]
        self._pending = self._place([(run.budget, run.params) for run in pending])
        fitted = [(run.budget, run.params) for run in with_budget if id(run) in near]
        self._present = self._rows(*self._place(fitted + [(run.budget, run.params) for run in pending]))
        self._of_cell = self._place([(cell.budget, cell.params) for cell in self.cells])
        self._further = self._rows(*self._of_cell)
        self._states: dict[tuple[int, ...], _State] = {}

    def _place(self, points: Sequence[tuple[float | None, float]]) -> tuple[np.ndarray, np.ndarray]:
        """Index of the budget and ln N, [n] each."""
        budgets, params = np.array(points, np.float64).reshape(-1, 2).T
        return np.searchsorted(self.budgets, budgets), np.log(params)

    def _expected(self, near: NearFit, profiles: np.ndarray) -> np.ndarray:
        """The unknowns of `NearProblem` for all budgets: as fitted, and as the laws say where nothing is."""
        m, x = len(profiles), np.log(self.budgets)
        low, best = np.log(self.fit.loss_law.at(self.budgets)), np.log(self.fit.params_law.at(self.budgets))
        middle, slope = near.theta[3 * m + 1 :]
        curvature = middle + slope * (x - np.log(profiles).mean())
        fitted = near.theta[: 3 * m].reshape(3, m)
        for values, known in zip((low, best, curvature), fitted, strict=True):
            values[self.profiles] = known
        return np.concatenate([low, best, curvature, near.theta[3 * m :]])

    def _rows(self, place: np.ndarray, log_params: np.ndarray) -> np.ndarray:
        """[n, P]: what a run there says of the unknowns, in units of its error."""
        order = np.argsort(place, kind="stable")
        x, near = np.zeros((len(self.budgets), len(place))), np.zeros((len(self.budgets), len(place)), bool)
        x[place, np.arange(len(place))] = log_params
        near[place, np.arange(len(place))] = True
        problem = NearProblem(x, x, near, np.log(self.budgets))
        rows = np.empty((len(place), problem.size))
        rows[order] = problem.runs(self._theta, self.near.noise)[1]
        return rows

    def _prior(self, active: np.ndarray) -> np.ndarray:
        """[p, p]: what is known of the unknowns of the active budgets before any run."""
        centred = np.log(self.budgets[active]) - np.log(self.budgets[self.profiles]).mean()
        none = np.zeros((len(active), 0))
        prior = NearProblem(none, none, none.astype(bool), centred).prior
        return prior.T @ prior + 1e-9 * np.eye(prior.shape[1])

    def active(self, chosen: Sequence[int]) -> np.ndarray:
        """Which budgets have a profile, or enough sizes with the chosen runs; indices. One that was refused
        stays refused without any.
        """
        sizes: dict[int, set[float]] = {}
        of_cell = (values[list(chosen)] for values in self._of_cell)
        for part in (self._pending, tuple(of_cell)):
            for place, log_params in zip(*(values.tolist() for values in part), strict=True):
                sizes.setdefault(place, set()).add(log_params)
        more = set(self._of_cell[0][list(chosen)].tolist())
        enough = [place for place, values in sizes.items() if len(values) >= MIN_POINTS and place in more]
        return np.union1d(np.flatnonzero(self.profiles), np.array(enough, int))

    def state(self, chosen: Sequence[int]) -> _State:
        """What the chosen runs leave."""
        key = tuple(sorted(chosen))
        if key not in self._states:
            self._states[key] = self._with(self.active(key), self._further[list(key)])
        return self._states[key]

    def _with(self, active: np.ndarray, rows: np.ndarray, weight: float = 1.0, present: float = 1.0) -> _State:
        """The state with further `rows`, `weight` runs each, and as many of each present one as `present` says."""
        total = len(self.budgets)
        columns = np.concatenate([active, total + active, 2 * total + active, 3 * total + np.arange(3)])
        parts = [
            (r[(r[:, active] != 0.0).any(1)][:, columns], w) for r, w in ((self._present, present), (rows, weight))
        ]
        information = sum(w * r.T @ r for r, w in parts)
        covariance = np.linalg.inv(self._prior(active) + information)
        spare = sum(w * len(r) for r, w in parts) - float((information * covariance).sum())
        freedom = max(0.5, spare) + NOISE_FREEDOM
        law, block, moment = self._law(active, covariance, freedom)
        within = np.zeros_like(covariance)
        within[block, block] = moment
        return _State(law, law.deviation(self.target), covariance, columns, within)

    def _law(self, active: np.ndarray, covariance: np.ndarray, freedom: float) -> tuple[_Law, slice, np.ndarray]:
        """The law through the minima of the active budgets, which unknowns it reads, and how they move it."""
        m, budgets, target = len(active), self.budgets[active], self.target
        low, size = slice(0, m), slice(m, 2 * m)
        if self.quantity == "loss":
            lowest = np.exp(self._theta[active])
            law = fit_loss_law(budgets, lowest, covariance[low, low], self.near.noise, freedom)
            law = law.with_discrepancies(self.fit.loss_law.weight.sum(0))
            pulls = law.pulls(target)
            return law, low, np.einsum("ed,edm,edn->mn", law.weight, pulls, pulls, optimize=True)
        best, sd = self._theta[len(self.budgets) + active], np.sqrt(np.diag(covariance)[size])
        optimum = fit_optimum(budgets, best, sd)
        assert isinstance(self.fit.params_law, OptimumLaw)  # of the preset corrected
        optimum = optimum.rescaled(self.fit.params_law.scale)  # what minima scatter by is not learnt in advance either
        return optimum, size, np.diag(optimum.pulls(target) ** 2)

    # What is left of the interval.

    def _half(self, state: _State) -> float:
        low, high = state.law.interval(self.target, LEVEL)
        return (high - low) / 2.0 / float(state.law.at(self.target))

    def half_width(self, chosen: Sequence[int]) -> float:
        return self._half(self.state(chosen))

    def repeated(self, flops: float) -> float:
        active = np.flatnonzero(self.profiles)
        return self._half(self._with(active, self._further[:0], present=1.0 + flops / self.total))

    def even_grid(self, chosen: Sequence[int]) -> float:
        active = self.active(chosen)
        best = self._theta[len(self.budgets) + active]
        rows = self._rows(np.repeat(active, len(_EVEN)), (best[:, None] + _EVEN).ravel())
        weight = cost(self.cells, chosen) / (len(_EVEN) * float(self.budgets[active].sum()))
        return self._half(self._with(active, rows, weight))

    # The search.

    def choose(self, purse: float, count: int) -> list[int]:
        blocks: list[list[int]] = []
        designs = [chosen := self._filled([], purse, count)]
        while True:
            frames = [kept for new in self._new_blocks(blocks) for kept in self._frames(blocks, new, purse, count)]
            frames = sorted(frames, key=lambda frame: self.expected(sum(frame, [])))[:_TRIED]
            filled = [self._filled(sum(frame, []), purse, count) for frame in frames]
            best = min(range(len(filled)), key=lambda k: self.expected(filled[k]), default=None)
            if best is None or self.expected(filled[best]) > (1.0 - _WORTH) * self.expected(chosen):
                break
            designs += filled
            chosen, blocks = filled[best], frames[best]
        designs.append(self._exchanged(chosen, purse))
        enough = _SLACK * min(self.expected(design) for design in designs)
        good = [design for design in designs if self.expected(design) <= enough]
        return min(good, key=lambda design: cost(self.cells, design))

    def expected(self, chosen: Sequence[int]) -> float:
        """The root of the variance at the target that is expected of the chosen runs.

        A new budget has a profile only if its minimum lies inside the sizes tried. The errors of N* at several budgets
        are one, that of the line: where the likelier blocks fail, so do the others.
        """
        blocks = self._blocks(chosen)
        likely = sorted(
            ((self._inside(place, block), block) for place, block in blocks.items()), key=lambda pair: -pair[0]
        )
        made = [i for i in chosen if self.profiles[self._of_cell[0][i]]]
        chances = [1.0, *(chance for chance, _ in likely), 0.0]
        variance = (chances[0] - chances[1]) * self.state(made).deviation ** 2
        for number, (_, block) in enumerate(likely, 1):
            made = made + block
            variance += (chances[number] - chances[number + 1]) * self.state(made).deviation ** 2
        return float(np.sqrt(variance))

    def _inside(self, place: int, block: Sequence[int]) -> float:
        """Probability that the minimum of a budget lies inside the sizes of a block and those there are."""
        sizes = np.append(self._of_cell[1][list(block)], self._pending[1][self._pending[0] == place])
        law, budget = self.fit.params_law, float(self.budgets[place])
        assert isinstance(law, OptimumLaw)  # of the preset corrected
        ends = (np.array([sizes.min(), sizes.max()]) - np.log(law.at(budget))) / law.deviation(budget)
        return float(np.diff(stdtr(law.freedom, ends))[0])

    def _blocks(self, chosen: Sequence[int]) -> dict[int, list[int]]:
        """The chosen runs at budgets that have no profile without them, by budget."""
        blocks: dict[int, list[int]] = {}
        for i in chosen:
            place = int(self._of_cell[0][i])
            if not self.profiles[place]:
                blocks.setdefault(place, []).append(i)
        return blocks

    def _new_blocks(self, blocks: Sequence[Sequence[int]]) -> list[list[int]]:
        """For each budget that has no profile, nor one of the `blocks`, the best block of every number of sizes."""
        chosen = [i for block in blocks for i in block]
        new = []
        for place in np.setdiff1d(np.unique(self._of_cell[0]), self.active(chosen)).tolist():
            by_count: dict[int, list[list[int]]] = {}
            for sizes, width in itertools.product(_SIZES, _WIDTHS):
                if block := self._block(place, width, sizes):
                    by_count.setdefault(len(block), []).append(block)
            new += [min(tried, key=self.expected) for tried in by_count.values()]
        return new

    def _frames(
        self, blocks: Sequence[list[int]], new: list[int], purse: float, count: int
    ) -> Iterator[list[list[int]]]:
        """The blocks together with a new one, or with it in the place of another, if purse and count allow that."""
        for left_out in range(-1, len(blocks)):
            frame = [*(block for k, block in enumerate(blocks) if k != left_out), new]
            runs = sum(frame, [])
            if len(runs) <= count and cost(self.cells, runs) <= purse * _ROUND:
                yield frame

    def _block(self, place: int, width: float, count: int = MIN_POINTS) -> list[int]:
        """The cells nearest to `count` sizes `width` apart about N*, without those there are; [] if they make none."""
        best = self._theta[len(self.budgets) + place]
        there = list(self._pending[1][self._pending[0] == place])
        free = np.flatnonzero(self._of_cell[0] == place).tolist()
        sizes, chosen = self._of_cell[1], []
        offsets = np.arange(count) - 0.5 * (count - 1)
        for size in best + np.log(width) * offsets[np.argsort(np.abs(offsets), kind="stable")]:
            if min((abs(x - size) for x in there), default=np.inf) > 0.5 * np.log(width) and free:
                nearest = min(free, key=lambda i: abs(sizes[i] - size))
                free.remove(nearest)
                chosen.append(nearest)
                there.append(sizes[nearest])
        brackets = there and min(there) < best - _BRACKET and max(there) > best + _BRACKET
        return chosen if brackets and len(set(there)) >= MIN_POINTS else []

    def _filled(self, chosen: list[int], purse: float, count: int) -> list[int]:
        """`chosen` and single runs at budgets that have a profile then, greedily; the better of two greeds."""
        filled = (self._greedy(chosen, purse, count, power) for power in (0.0, 1.0))
        return min(filled, key=self.expected)

    def _greedy(self, chosen: list[int], purse: float, count: int, power: float) -> list[int]:
        """By gain / FLOPs^power."""
        state, chosen = self.state(chosen), list(chosen)
        left, covariance = purse - cost(self.cells, chosen), state.covariance
        while len(chosen) < count:
            gains = self._gains(state, covariance, chosen, left)
            best = int((gains / self._flops**power).argmax()) if len(gains) else 0
            if not len(gains) or not gains[best] > 0.0:
                break
            covariance = added(covariance, self._further[best][state.columns])
            left -= self.cells[best].flops
            chosen.append(best)
        return chosen

    def _gains(self, state: _State, covariance: np.ndarray, chosen: Sequence[int], left: float) -> np.ndarray:
        """[n]: what each cell takes off the variance; -inf of those chosen, too expensive, or without a profile."""
        rows = self._further[:, state.columns]
        along = rows @ covariance
        gains = ((along @ state.moment) * along).sum(1) / (1.0 + (along * rows).sum(1))
        usable = (rows[:, : (len(state.columns) - 3) // 3] != 0.0).any(1) & (self._flops <= left * _ROUND)
        usable[list(chosen)] = False
        return np.where(usable, gains, -np.inf)

    def _exchanged(self, chosen: list[int], purse: float) -> list[int]:
        """`chosen` after replacing single runs by better ones; a budget never loses its profile by it."""
        for i in list(chosen):
            others = [j for j in chosen if j != i]
            if len(self.active(others)) < len(self.active(chosen)):
                continue
            state = self.state(others)
            gains = self._gains(state, state.covariance, others, purse - cost(self.cells, others))
            other = [*others, int(gains.argmax())]
            if self.expected(other) < (1.0 - 0.1 * _WORTH) * self.expected(chosen):
                chosen = other
        return chosen

    def in_order(self, chosen: Sequence[int]) -> list[int]:
        made: list[int] = []
        left = [[i] for i in chosen if self.profiles[self._of_cell[0][i]]] + list(self._blocks(chosen).values())
        while left:
            now, after = self.state(made).deviation ** 2, [self.state(made + unit).deviation ** 2 for unit in left]
            worth = [(now - then) / cost(self.cells, unit) for then, unit in zip(after, left, strict=True)]
            best = left[int(np.argmax(worth))]
            left.remove(best)
            made += best
        return made

    @functools.cached_property
    def _flops(self) -> np.ndarray:
        return np.array([cell.flops for cell in self.cells])


def _grid(
    fit: IsoflopFit, runs: Sequence[Run], profiles: np.ndarray, flops_per: FlopsPerToken, purse: float, highest: float
) -> list[Cell]:
    """Sizes about N* at the budgets that there are, with a profile or not yet, and at new ones up to what four runs of
    the purse pay for, none above `highest`."""
    there = np.unique([run.budget for run in runs if run.budget is not None])
    top, low = min(purse / MIN_POINTS, highest), float(there.min())
    new = np.concatenate([np.geomspace(low, top, _BUDGETS), purse / np.arange(5.0, 9.0)]) if top > low else np.empty(0)
    apart = np.abs(np.log(new[:, None] / there)).min(1, initial=np.inf) > np.log(_APART)
    new = np.unique(new[apart & (new >= low) & (new <= highest)])
    cells = []
    for budget in (*there.tolist(), *new.tolist()):
        if budget > min(purse, max(highest, float(profiles.max()))):
            continue
        sizes = np.log([run.params for run in runs if run.budget == budget] or [np.inf])
        for step in range(-_STEPS, _STEPS + 1):
            params = float(fit.params_law.at(budget)) * _STEP**step
            if np.abs(np.log(params) - sizes).min() > _SAME_SIZE:
                cells.append(Cell(params, budget / float(per_token(params, flops_per)), budget, budget))
    return cells
