"""How does one optimal quantity (N*, D* or the minimum loss) move with compute?

Two forms: the pure power law y = k C^x, and for the loss also L = E + k C^-g with an irreducible part. Both are fitted
to many bootstrap replicates at once, so values may carry a leading replicate dimension. `OptimumLaw` is a power law
that knows how far from it the best size of a larger budget may lie. `AveragedLaw` extrapolates the loss:

Four budgets hardly show E, but a prediction a few times beyond them depends on it. So E is not chosen: for every E the
rest is a straight line of ln(L - E) in ln C, and the prediction is the average over E, weighted by how well each line
fits and by a weak prior. `k C^-g` is one of these laws, E = 0.

No such law holds over decades. Each minimum may be off by d for every factor e between its budget and the largest one
fitted, and so may the prediction beyond it. Small budgets therefore count little, and far targets are uncertain. The
minima tell a little about how large d is; it is averaged over as well, about `DISCREPANCY`.

Priors and d were set on public IsoFLOP tables (`python -m tests.benchmarks.prediction` shows what they are worth).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.special import stdtr, stdtrit

from chinchilla_jax.scaling.fits.minimise import minimise_on_grid

_EXPONENT_RANGE = (1e-3, 3.0)
# The scatter of optima about their line, in ln N, that is supposed before the residuals are seen (tables have 0.02 to
# 0.2: `tests.benchmarks.prediction`); how much it grows for every factor e of compute away from the largest budget; and
# how many residuals this assumption counts for.
_SCATTER, _DRIFT, _FREEDOM = 0.08, 0.03, 3.0
DISCREPANCY, _DISCREPANCY_SPREAD = 0.003, 1.0  # median of d, and the standard deviation of its logarithm
DISCREPANCIES = np.array([0.0003, 0.0006, 0.0012, 0.0025, 0.005, 0.01])
# E as a share of the lowest minimum: 0.7 of a normal distribution about what published laws have, and 0.3 of a flat
# one, which leaves a law without an irreducible loss its chance.
SHARE, _SHARE_SPREAD, _FLAT = 0.6, 0.2, 0.3
_SHARES = np.linspace(0.0, 0.975, 40)
_NEGLIGIBLE = 1e-4
_FAR = 40.0  # standard deviations, beyond any quantile of Student's t that is asked for


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """y = coefficient * C^exponent, kept as ln y [] or [B] at a central compute because 1e20 ** x loses digits."""

    log_centre: float
    log_value: np.ndarray
    exponent: np.ndarray

    @property
    def coefficient(self) -> np.ndarray:
        """k in y = k C^exponent."""
        return np.exp(self.log_value - self.exponent * self.log_centre)

    def at(self, flops: float | np.ndarray) -> np.ndarray:
        """y at C = flops; replicates broadcast against it."""
        return np.exp(self.log_value + self.exponent * (np.log(flops) - self.log_centre))


@dataclasses.dataclass(frozen=True)
class OptimumLaw(PowerLaw):
    """A power law whose centre is the largest budget fitted, with the `covariance` [2, 2] of `log_value` and
    `exponent`, and the `scale` of the spread of optima about the line over what was supposed, both known from `freedom`
    degrees of freedom; `pull` [2, M] how far the two move with the logarithm of each optimum. Minima of flat profiles
    scatter by more than the noise of runs explains; so will the next."""

    covariance: np.ndarray = dataclasses.field(compare=False)
    scale: float
    freedom: float
    pull: np.ndarray = dataclasses.field(compare=False, repr=False)

    def deviation(self, flops: float) -> float:
        """Standard deviation of ln of the optimum at C = flops: that of the line and that about it."""
        basis = np.array([1.0, np.log(flops) - self.log_centre])
        return float(np.sqrt(basis @ self.covariance @ basis + self.spread(flops) ** 2))

    def pulls(self, flops: float) -> np.ndarray:
        """[M]: d ln of the optimum at C = flops by the logarithm of each optimum fitted."""
        return np.array([1.0, np.log(flops) - self.log_centre]) @ self.pull

    def rescaled(self, scale: float) -> OptimumLaw:
        """The same line where optima spread about it by another `scale`."""
        return dataclasses.replace(self, covariance=self.covariance * (scale / self.scale) ** 2, scale=scale)

    def spread(self, flops: float) -> float:
        """Standard deviation of ln of the optimum at C = flops about the line: of the optimum, not of the line."""
        return self.scale * float(np.hypot(_SCATTER, _DRIFT * max(0.0, np.log(flops) - self.log_centre)))

    def interval(self, flops: float, level: float) -> tuple[float, float]:
        """Central interval of the optimum at C = flops."""
        half = float(stdtrit(self.freedom, 0.5 + 0.5 * level)) * self.deviation(flops)
        value = float(self.at(flops))
        return value * float(np.exp(-half)), value * float(np.exp(half))

    def draws(self, normal: np.ndarray, shared: np.ndarray) -> PowerLaw:
        """Replicates of the line from standard normal numbers [B, 2]; `shared` [B] divides them into Student's t."""
        moved = normal @ np.linalg.cholesky(self.covariance).T / shared[:, None]
        return PowerLaw(self.log_centre, self.log_value + moved[:, 0], self.exponent + moved[:, 1])


@dataclasses.dataclass(frozen=True)
class OffsetLaw:
    """L = irreducible + value * (C / exp(log_centre)) ** -exponent; fields [] or [B]."""

    log_centre: float
    irreducible: np.ndarray
    value: np.ndarray
    exponent: np.ndarray

    def at(self, flops: float | np.ndarray) -> np.ndarray:
        """L at C = flops; replicates broadcast against it."""
        return self.irreducible + self.value * np.exp(-self.exponent * (np.log(flops) - self.log_centre))


@dataclasses.dataclass(frozen=True)
class AveragedLaw:
    """L(C) = E + k C^-g, averaged over E (axis e) and the discrepancy d (axis d): `log_largest` ln of the largest
    budget fitted; `irreducible` [e] nats per token; `line` [e, d, 2] the value of ln(L - E) there and its slope in
    ln C, `covariance` [e, d, 2, 2] of those; `weight` [e, d], of sum 1; `noise` the relative standard deviation of one
    run, known from `freedom` degrees of freedom; `pull` [e, d, 2, M] how far `line` moves with the logarithm of each
    minimum."""

    log_largest: float
    irreducible: np.ndarray
    line: np.ndarray
    covariance: np.ndarray
    weight: np.ndarray
    noise: float
    freedom: float
    pull: np.ndarray = dataclasses.field(compare=False, repr=False)

    def at(self, flops: float | np.ndarray) -> float | np.ndarray:
        """The expected minimum loss at C = flops (the mean of its logarithm), of any shape."""
        flops = np.asarray(flops, np.float64)
        values = [np.exp(float((self.weight * self._moments(c)[0]).sum())) for c in flops.ravel()]
        return float(values[0]) if flops.ndim == 0 else np.reshape(values, flops.shape)

    def interval(self, flops: float, level: float, one_run: bool = True) -> tuple[float, float]:
        """Central interval of the loss at C = flops; with `one_run` that of a single trained run."""
        mean, sd = self._moments(flops, one_run)
        kept = self.weight > _NEGLIGIBLE * self.weight.max()
        weight, mean, sd = self.weight[kept], mean[kept][:, None], sd[kept][:, None]

        def quantile(share: float) -> float:
            low, high = (mean - _FAR * sd).min(), (mean + _FAR * sd).max()
            for _ in range(4):
                grid = np.linspace(low, high, 33)
                # Student's t, because the noise is itself known from few degrees of freedom.
                reached = weight @ stdtr(self.freedom, (grid - mean) / sd) / weight.sum()
                above = int(np.clip(np.searchsorted(reached, share), 1, len(grid) - 1))
                low, high = grid[above - 1], grid[above]
            return float(np.exp(np.interp(share, reached, grid)))

        return quantile(0.5 - 0.5 * level), quantile(0.5 + 0.5 * level)

    def discrepancy(self, tail: float) -> float:
        """The d, relative for every factor e of compute, that the minima give `tail` of the weight to be below."""
        return float(DISCREPANCIES[np.searchsorted(np.cumsum(self.weight.sum(0)), tail)])

    def deviation(self, flops: float) -> float:
        """Standard deviation of ln L of one run at C = flops, over all E and d."""
        mean, sd = self._moments(flops, one_run=True)
        middle = float((self.weight * mean).sum())
        return float(np.sqrt((self.weight * (sd**2 + (mean - middle) ** 2)).sum()))

    def pulls(self, flops: float) -> np.ndarray:
        """[e, d, M]: d ln L at C = flops by the logarithm of each minimum."""
        ahead = np.log(flops) - self.log_largest
        mean, _ = self._moments(flops)
        reducible = 1.0 - self.irreducible[:, None] / np.exp(mean)
        return reducible[..., None] * (self.pull[:, :, 0] + ahead * self.pull[:, :, 1])

    def with_discrepancies(self, weight: np.ndarray) -> AveragedLaw:
        """The same law with weights [d] on the discrepancies; those on E go with them as before."""
        return dataclasses.replace(self, weight=self.weight * (weight / np.maximum(self.weight.sum(0), 1e-300)))

    @property
    def irreducible_mean(self) -> float:
        """The mean of E over its weights, nats per token."""
        return float(self.weight.sum(1) @ self.irreducible)

    def irreducible_interval(self, level: float) -> tuple[float, float]:
        """Central interval of E."""
        reached = np.cumsum(self.weight.sum(1))
        low, high = np.searchsorted(reached, [0.5 - 0.5 * level, 0.5 + 0.5 * level])
        return float(self.irreducible[low]), float(self.irreducible[min(high, len(reached) - 1)])

    def slope(self, flops: float) -> float:
        """-dL/d ln C at C = flops, nats per token for each factor e of compute."""
        step = 1e-3
        return float(self.at(flops * np.exp(-step)) - self.at(flops * np.exp(step))) / (2.0 * step)

    def _moments(self, flops: float, one_run: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation [e, d] of ln L at C = flops."""
        ahead = np.log(flops) - self.log_largest
        basis = np.array([1.0, ahead])
        mean = np.log(self.irreducible[:, None] + np.exp(self.line @ basis))
        reducible = 1.0 - self.irreducible[:, None] / np.exp(mean)
        variance = np.einsum("a,edab,b->ed", basis, self.covariance, basis) * reducible**2
        variance = variance + (DISCREPANCIES * max(ahead, 0.0)) ** 2 + (self.noise**2 if one_run else 0.0)
        return mean, np.sqrt(variance)


def fit_power(flops: np.ndarray, values: np.ndarray, weights: np.ndarray | None = None) -> PowerLaw:
    """Least squares of ln values [..., M] on ln flops [M]; a value of weight 0 (`weights` [..., M]) may be NaN."""
    log_c = np.log(flops)
    centre = float(log_c.mean())
    x, y = log_c - centre, np.log(values)
    weights = np.ones_like(log_c) if weights is None else weights
    share = weights / weights.sum(-1, keepdims=True)
    y = np.where(share > 0, y, 0.0)
    x = x - (share * x).sum(-1, keepdims=True)
    exponent = (share * x * y).sum(-1) / (share * x * x).sum(-1)
    mean_x = log_c - centre - x
    return PowerLaw(centre, (share * y).sum(-1) - exponent * mean_x[..., 0], exponent)


def optimum_weights(flops: np.ndarray, log_best_sd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of M optima about their line in ln C: weights [M], and the basis [M, 2] centred on the largest budget."""
    x = np.log(np.asarray(flops, np.float64))
    back = x - x.max()
    return 1.0 / (log_best_sd**2 + _SCATTER**2 + (_DRIFT * back) ** 2), np.stack([np.ones_like(x), back], 1)


def fit_optimum(flops: np.ndarray, log_best: np.ndarray, log_best_sd: np.ndarray) -> OptimumLaw:
    """Weighted least squares of ln of the optima [M], at least two, with standard deviations, on ln of the budgets."""
    x = np.log(np.asarray(flops, np.float64))
    centre = float(x.max())
    weight, basis = optimum_weights(flops, log_best_sd)
    covariance = np.linalg.inv(basis.T @ (weight[:, None] * basis))
    pull = covariance @ (basis.T * weight)
    value, exponent = pull @ log_best
    left = log_best - basis @ np.array([value, exponent])
    freedom = len(x) - 2 + _FREEDOM
    variance = (float((weight * left**2).sum()) + _FREEDOM) / freedom
    return OptimumLaw(centre, value, exponent, covariance * variance, float(np.sqrt(variance)), freedom, pull)


def fit_offset(flops: np.ndarray, losses: np.ndarray, weights: np.ndarray | None = None) -> OffsetLaw:
    """Least relative squares of L = E + k C^-g with E >= 0 and k > 0, from losses [..., M] at three budgets [M] or
    more.

    For a given g the law is linear in E and k, so only g is searched, which cannot land in a local minimum. Where the
    data ask for E < 0 the bound makes it the pure power law. A loss of weight 0 (`weights` [..., M]) may be NaN.
    """
    log_c = np.log(flops)
    centre = float(log_c.mean())
    x = log_c - centre
    losses = np.asarray(losses, np.float64)
    weights = np.ones_like(losses) if weights is None else weights
    losses = np.where(weights > 0, losses, 1.0)
    grid = np.broadcast_to(np.geomspace(*_EXPONENT_RANGE, 161), (*losses.shape[:-1], 161))
    exponent = minimise_on_grid(lambda g: _linear_part(x, losses, weights, g)[0], grid, rounds=6, points=41)
    _, offset, scale = (part[..., 0] for part in _linear_part(x, losses, weights, exponent[..., None]))
    return OffsetLaw(centre, offset, scale, exponent)


def _linear_part(
    x: np.ndarray, losses: np.ndarray, weights: np.ndarray, exponents: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best E and k for each exponent [..., G], and the squared relative error left."""
    t = np.exp(-exponents[..., None] * x)
    y = losses[..., None, :]
    w = weights[..., None, :] / (y * y)
    total, mean_t, mean_y = w.sum(-1), (w * t).sum(-1), (w * y).sum(-1)
    tc, yc = t - (mean_t / total)[..., None], y - (mean_y / total)[..., None]
    scale = (w * tc * yc).sum(-1) / np.maximum((w * tc * tc).sum(-1), 1e-300)
    offset = (mean_y - scale * mean_t) / total
    bound = offset < 0
    scale = np.where(bound, (w * t * y).sum(-1) / (w * t * t).sum(-1), scale)
    offset = np.where(bound, 0.0, offset)
    error = (w * (offset[..., None] + scale[..., None] * t - y) ** 2).sum(-1)
    return np.where(scale > 0, error, np.inf), offset, scale


def fit_loss_law(
    flops: np.ndarray,
    losses: np.ndarray,
    covariance: np.ndarray,
    noise: float,
    freedom: float,
    lowest: float | None = None,
) -> AveragedLaw:
    """The averaged law through M minima `losses` at budgets `flops`, rising; of two the prior says how they go on.
    `covariance` [M, M] is of the logarithms of the minima; `noise` and `freedom` as in `AveragedLaw`. E is a share of
    `lowest`, which several laws may have in common; by default of the lowest minimum."""
    x = np.log(np.asarray(flops, np.float64))
    losses = np.asarray(losses, np.float64)
    back = x - x[-1]
    basis = np.stack([np.ones_like(back), back], 1)
    inverse = np.linalg.inv(covariance + DISCREPANCIES[:, None, None] ** 2 * np.diag(back**2))
    irreducible = _SHARES * (losses.min() if lowest is None else lowest)
    values = np.log(losses - irreducible[:, None])
    # d ln L = (1 - E / L) d ln(L - E): weights of the minima in the line's own scale, [e, d, M, M].
    scale = 1.0 - irreducible[:, None] / losses
    weight = scale[:, None, :, None] * inverse[None] * scale[:, None, None, :]
    spread = np.linalg.inv(np.einsum("ma,edmn,nb->edab", basis, weight, basis))
    pull = np.einsum("edab,mb,edmn->edan", spread, basis, weight, optimize=True)
    line = np.einsum("edan,en->eda", pull, values)
    left = values[:, None] - line @ basis.T
    misfit = np.einsum("edm,edmn,edn->ed", left, weight, left)
    # Of d the marginal likelihood: what the line's two constants take is taken out in the scale of ln L, where a flat
    # prior favours no E.
    taken = np.linalg.slogdet(np.einsum("ma,dmn,nb->dab", basis, inverse, basis))[1]
    log_weight = -0.5 * misfit + 0.5 * np.linalg.slogdet(inverse)[1] - 0.5 * taken
    log_weight += log_prior()
    averaged = np.exp(log_weight - log_weight.max())
    weights, pull = averaged / averaged.sum(), pull / scale[:, None, None, :]
    return AveragedLaw(float(x[-1]), irreducible, line, spread, weights, noise, freedom, pull)


def log_prior() -> np.ndarray:
    """[e, d]: ln of the prior of E and the discrepancy, up to a constant."""
    bell = np.exp(-0.5 * ((_SHARES - SHARE) / _SHARE_SPREAD) ** 2) / (_SHARE_SPREAD * np.sqrt(2.0 * np.pi))
    of_share = np.log((1.0 - _FLAT) * bell + _FLAT)
    return of_share[:, None] - 0.5 * (np.log(DISCREPANCIES / DISCREPANCY) / _DISCREPANCY_SPREAD) ** 2
