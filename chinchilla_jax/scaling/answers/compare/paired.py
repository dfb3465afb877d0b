"""How do the frontiers of several arms vary together?

Runs of two arms at one budget and size see the same batches in the same order and are evaluated on the same rows, so
they are lucky together. What they share must not count when they are compared: it takes nothing from their difference.
How much they share is read off the residuals about the profiles: their correlation over the cells that two arms have in
common. It is itself known from few degrees of freedom, so every draw has a covariance of its own, from an inverse
Wishart distribution; the marginals are those of Student's t.

A draw goes from errors of the runs to minima through `Moves`, which is a product of matrices and not another fit. From
the minima it goes on as `AveragedLaw` does, with one E and one discrepancy for all arms: E belongs to the data that the
arms are evaluated on, and what bends one frontier (a recipe, a tokenizer) bends the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from chinchilla_jax.scaling.fits.approach2.near_minimum import NearFit
from chinchilla_jax.scaling.fits.approach2.table import ProfileTable, read_profiles
from chinchilla_jax.scaling.fits.frontier import DISCREPANCIES, fit_loss_law, log_prior, optimum_weights
from chinchilla_jax.scaling.fits.resample import LEAST_NOISE
from chinchilla_jax.scaling.read.runs import Run

_SAME = 0.03  # of ln N and of ln C: cells of two arms closer than this are the same cell

_LEAST_FREEDOM = 3.0  # of the covariance; below that intervals have no end


@dataclasses.dataclass(frozen=True)
class Arm:
    """The profiles of one arm: `budgets` [M], the minima, and for each near run its cell (ln C, ln N, replicate)."""

    budgets: np.ndarray
    near: NearFit
    cells: tuple[tuple[float, float, int], ...]

    @property
    def log_lowest(self) -> np.ndarray:
        """[M]: ln of the minimum losses."""
        return np.log(self.near.lowest[0])

    @property
    def noise(self) -> tuple[float, float]:
        """One run's relative noise by the residuals, and its degrees of freedom."""
        noise, freedom = self.near.moves.noise(self.near.noise)
        return max(noise, LEAST_NOISE), freedom

    @property
    def residual(self) -> np.ndarray:
        """[R]: the residuals in standard deviations of noise and misfit."""
        return self.near.moves.residual / self.deviations(self.noise[0])

    def deviations(self, noise: float) -> np.ndarray:
        """[R]: standard deviations of the runs' errors about their curves."""
        return np.sqrt(noise**2 + self.near.moves.misfit**2)


def arm_of(runs: Sequence[Run]) -> Arm:
    """The arm of these runs. Refused as `read_profiles`."""
    table, _ = read_profiles(runs, "near")
    near = table.near["params"]
    return Arm(table.budgets, near, _cells(table, near))


def _cells(table: ProfileTable, near: NearFit) -> tuple[tuple[float, float, int], ...]:
    cells, seen = [], dict[tuple[float, float], int]()
    for m, n in np.argwhere(near.near):
        place = float(np.log(table.budgets[m])), float(table.x["params"][m, n])
        seen[place] = seen.get(place, -1) + 1
        cells.append((*place, seen[place]))
    return tuple(cells)


def shared_cells(one: Arm, other: Arm) -> list[tuple[int, int]]:
    """Pairs of near runs, by their places, of the same cell: the nearest size of the same budget."""
    pairs = []
    taken: set[int] = set()
    for i, (c, n, replicate) in enumerate(one.cells):
        near = [
            (abs(n - n2), j)
            for j, (c2, n2, replicate2) in enumerate(other.cells)
            if j not in taken and replicate == replicate2 and abs(c - c2) < _SAME and abs(n - n2) < _SAME
        ]
        if near:
            j = min(near)[1]
            taken.add(j)
            pairs.append((i, j))
    return pairs


def same_budgets(arms: Sequence[Arm]) -> tuple[list[np.ndarray], int]:
    """For each arm [M]: the number of each budget, the same for the same budget of other arms; how many there are."""
    every = np.sort(np.log(np.concatenate([arm.budgets for arm in arms])))
    first = every[np.insert(np.diff(every) > _SAME, 0, True)]
    return [np.searchsorted(first, np.log(arm.budgets), side="right") - 1 for arm in arms], len(first)


def correlations(arms: Sequence[Arm]) -> tuple[np.ndarray, np.ndarray]:
    """[K, K]: the correlation of the runs' errors, and the number of cells that two arms share."""
    count = len(arms)
    correlation, shared = np.eye(count), np.diag([len(arm.cells) for arm in arms])
    for k, one in enumerate(arms):
        for j in range(k):
            other = arms[j]
            pairs = shared_cells(one, other)
            shared[k, j] = shared[j, k] = len(pairs)
            if pairs:
                at, at_other = np.array(pairs).T
                x, y = one.residual[at], other.residual[at_other]
                share = len(pairs) / max(len(one.cells), len(other.cells))
                value = float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))
                correlation[k, j] = correlation[j, k] = value * share
    # Pairs of arms may share different cells: the nearest matrix that can be a correlation.
    values, vectors = np.linalg.eigh(correlation)
    mended = (vectors * np.maximum(values, 1e-6)) @ vectors.T
    scale = 1.0 / np.sqrt(np.diag(mended))
    return mended * scale[:, None] * scale, shared


@dataclasses.dataclass(frozen=True)
class Frontiers:
    """B draws of the frontiers of K arms: `irreducible` [B]; for each arm its `log_lowest` [B, M], and `loss_line` and
    `params_line` [B, 2], ln(L - E) and ln N* at ln C = `log_largest` with their slopes; `correlation` [K, K]."""

    arms: tuple[Arm, ...]
    irreducible: np.ndarray
    log_lowest: tuple[np.ndarray, ...]
    loss_line: np.ndarray
    params_line: np.ndarray
    correlation: np.ndarray
    shared: np.ndarray

    @property
    def log_largest(self) -> np.ndarray:
        """[K]: ln of the largest budget."""
        return np.log([arm.budgets[-1] for arm in self.arms])

    def loss(self, arm: int, flops: float | np.ndarray) -> np.ndarray:
        """[B]: the minimum loss at C = flops, a number or one for each draw."""
        ahead = np.log(flops) - self.log_largest[arm]
        return self.irreducible_of(arm) + np.exp(self.loss_line[arm, :, 0] + self.loss_line[arm, :, 1] * ahead)

    def flops(self, arm: int, loss: np.ndarray) -> np.ndarray:
        """[B]: the C that reaches `loss` [B]; infinite at or below the irreducible loss."""
        left = loss - self.irreducible_of(arm)
        value, slope = self.loss_line[arm].T
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ahead = (np.log(np.maximum(left, 0.0)) - value) / np.minimum(slope, -1e-9)
            return np.exp(ahead + self.log_largest[arm])

    def params(self, arm: int, flops: float | np.ndarray) -> np.ndarray:
        """[B]: N* at C = flops."""
        ahead = np.log(flops) - self.log_largest[arm]
        return np.exp(self.params_line[arm, :, 0] + self.params_line[arm, :, 1] * ahead)

    def irreducible_of(self, arm: int) -> np.ndarray:
        """[B]: E of the arm, which is that of all where draws are paired."""
        return self.irreducible if self.irreducible.ndim == 1 else self.irreducible[arm]


def draw_frontiers(arms: Sequence[Arm], draws: int = 1000, seed: int = 0, *, paired: bool = True) -> Frontiers:
    """`draws` joint draws, an even number; not `paired`: as if the arms had nothing in common, to see what pairing is
    worth."""
    rng = np.random.default_rng(seed)
    correlation, shared = correlations(arms)
    if not paired:
        correlation = np.eye(len(arms))
    moved = _errors(arms, correlation, draws, rng, paired)
    irreducible, discrepancy = _form(arms, draws, rng, paired)
    bends = _bends(arms, draws, rng, paired)
    lowest, loss_line, params_line = [], [], []
    for k, arm in enumerate(arms):
        m, form = len(arm.budgets), k if not paired else 0
        back = np.log(arm.budgets) - np.log(arm.budgets[-1])
        log_lowest = arm.log_lowest + moved[k][:, :m] + DISCREPANCIES[discrepancy[form], None] * back * bends[k]
        lowest.append(log_lowest)
        loss_line.append(_loss_lines(arm, log_lowest, irreducible[form], discrepancy[form]))
        weight, basis = optimum_weights(arm.budgets, arm.near.log_best_sd)
        solve = np.linalg.solve(basis.T @ (weight[:, None] * basis), basis.T * weight)
        params_line.append((arm.near.log_best[0] + moved[k][:, m:]) @ solve.T)
    common = irreducible[0] if paired else irreducible
    return Frontiers(
        tuple(arms), common, tuple(lowest), np.stack(loss_line), np.stack(params_line), correlation, shared
    )


def _normal(draws: int, *shape: int, rng: np.random.Generator) -> np.ndarray:
    """[B, *shape] of standard normal numbers; the second half is the first with its sign turned, which takes the error
    of the first order out of every mean."""
    half = rng.standard_normal((draws // 2, *shape))
    return np.concatenate([half, -half])


def _errors(
    arms: Sequence[Arm], correlation: np.ndarray, draws: int, rng: np.random.Generator, paired: bool
) -> list[np.ndarray]:
    """For each arm [B, 2M]: how its minima move, by the errors of its runs and by the priors."""
    count = len(arms)
    factors = _covariances(arms, correlation, draws, rng)
    # Every cell of all arms has standard normal numbers [B, K], one for each arm, of which shared cells use the same.
    place: list[list[int]] = []
    total = 0
    for k, arm in enumerate(arms):
        places = [-1] * len(arm.cells)
        for j in range(k if paired else 0):
            for i, other in shared_cells(arm, arms[j]):
                if places[i] < 0:
                    places[i] = place[j][other]
        fresh = [i for i, at in enumerate(places) if at < 0]
        for i in fresh:
            places[i], total = total, total + 1
        place.append(places)
    normal = _normal(draws, total, count, rng=rng)
    errors = np.einsum("bkj,bcj->bkc", factors, normal)
    budgets, different = same_budgets(arms)
    priors = _normal(draws, count, different + 3, rng=rng)
    moved = []
    for k, arm in enumerate(arms):
        prior = priors[:, 0 if paired else k][:, [*budgets[k], *(different + np.arange(3))]]
        error = errors[:, k, place[k]] * arm.deviations(arm.noise[0])
        moved.append(error @ arm.near.moves.by_run.T + prior @ arm.near.moves.by_prior.T)
    return moved


def _covariances(arms: Sequence[Arm], correlation: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """[B, K, K]: lower factors of covariances of one run's errors in all arms, in standard deviations of each."""
    count = len(arms)
    freedom = max(_LEAST_FREEDOM, min(arm.noise[1] for arm in arms))
    # The marginals of an inverse Wishart distribution have fewer degrees of freedom, by K - 1.
    degrees = max(count + 1, round(freedom + count - 1))
    precision = np.linalg.cholesky(np.linalg.inv(correlation * freedom))
    samples = rng.standard_normal((draws // 2, degrees, count)) @ precision.T
    factors = np.linalg.cholesky(np.linalg.inv(np.einsum("bik,bij->bkj", samples, samples)))
    return np.concatenate([factors, factors])


def _form(arms: Sequence[Arm], draws: int, rng: np.random.Generator, paired: bool) -> tuple[np.ndarray, np.ndarray]:
    """E [1 or K, B] and the place of the discrepancy [1 or K, B] in each draw.

    Paired, all arms have both in common: the likelihoods are multiplied, and the prior counts once.
    """
    lowest = min(float(arm.near.lowest.min()) for arm in arms)
    laws = [
        fit_loss_law(arm.budgets, arm.near.lowest[0], arm.near.covariance, arm.near.noise, arm.near.freedom, lowest)
        for arm in arms
    ]
    log_weight = np.log(np.maximum([law.weight for law in laws], 1e-300))
    joint = log_weight.sum(0) - (len(arms) - 1) * log_prior()  # which is in every law's weights
    weights = [np.exp(joint - joint.max())] if paired else list(np.exp(log_weight))
    irreducible, discrepancy = [], []
    for weight in weights:
        chosen = rng.choice(weight.size, draws // 2, p=(weight / weight.sum()).ravel())
        e, d = np.unravel_index(np.concatenate([chosen, chosen]), weight.shape)
        irreducible.append(laws[0].irreducible[e])
        discrepancy.append(d)
    return np.array(irreducible), np.array(discrepancy)


def _bends(arms: Sequence[Arm], draws: int, rng: np.random.Generator, paired: bool) -> list[np.ndarray]:
    """For each arm [B, M]: standard normal numbers, by which the minima may be off any law; those of one budget are the
    same in all arms."""
    budgets, different = same_budgets(arms)
    normal = _normal(draws, len(arms), different, rng=rng)
    return [normal[:, 0 if paired else k][:, place] for k, place in enumerate(budgets)]


def _loss_lines(arm: Arm, log_lowest: np.ndarray, irreducible: np.ndarray, discrepancy: np.ndarray) -> np.ndarray:
    """[B, 2]: ln(L - E) at the largest budget and its slope in ln C, through minima [B, M] (`fit_loss_law`)."""
    back = np.log(arm.budgets) - np.log(arm.budgets[-1])
    basis = np.stack([np.ones_like(back), back], 1)
    inverse = np.linalg.inv(arm.near.covariance + DISCREPANCIES[:, None, None] ** 2 * np.diag(back**2))[discrepancy]
    losses = np.exp(log_lowest)
    above = np.maximum(losses - irreducible[:, None], 1e-6 * losses)
    scale = above / losses
    weighted = np.einsum("ma,bm,bmn->ban", basis, scale, inverse) * scale[:, None]
    right = np.einsum("ban,bn->ba", weighted, np.log(above))
    return np.linalg.solve(weighted @ basis, right[..., None])[..., 0]
