"""Approach 2: which size is best at each budget, and how does it grow with compute?

Hoffmann et al. 2022 (arXiv 2203.15556) section 3.2: at each budget a parabola of the loss in log N gives the optimal
N, another in log D the optimal D, and power laws go through both. N and D are fitted apart, as the paper does, so
a + b need not be 1. A parabola is not the true profile: even without noise the intercept is biased when the exponents
of N and D differ, more so the wider the sizes range (0.3% in D for sizes within 2x, 5% within 16x).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from chinchilla_jax.scaling.frontier import OffsetLaw, PowerLaw, fit_offset, fit_power
from chinchilla_jax.scaling.resample import FULL, Resampling
from chinchilla_jax.scaling.runs import FitRefused, Run

MIN_POINTS = 4
_DRAWS_PER_REPLICATE = 4


@dataclasses.dataclass(frozen=True)
class Parabola:
    """loss = lowest + curvature * ln(x / best)^2, through runs with x in [low, high]."""

    best: float
    lowest: float
    curvature: float
    low: float
    high: float

    def at(self, x: np.ndarray | float) -> np.ndarray:
        """Loss at x (parameters or tokens)."""
        return self.lowest + self.curvature * np.log(np.asarray(x) / self.best) ** 2


@dataclasses.dataclass(frozen=True)
class Profile:
    """One IsoFLOP profile: `budget` in FLOPs, its runs, its parabolas in N and in D.

    `scatter` is the root mean square of the relative residuals in N, corrected for the three coefficients (0 with only
    four points is not evidence of precision); `kept_draws` the share of bootstrap draws with an interior minimum.
    """

    budget: float
    runs: tuple[Run, ...]
    params: Parabola
    tokens: Parabola
    scatter: float
    kept_draws: float = 1.0


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A budget left out. `reason` is `few_points`, `downward`, `edge` or `same_size`."""

    budget: float
    reason: str
    message: str


@dataclasses.dataclass(frozen=True)
class IsoflopFit:
    """Approach 2 on M budgets; laws of scalars, and the same laws with B bootstrap replicates.

    `params_law` N*(C) = k C^a; `tokens_law` D*(C) = k' C^b; `loss_power` and `loss_offset` the minimum loss (the latter
    None below 3 budgets). `boot_*` are the replicates, None without resampling.
    """

    profiles: tuple[Profile, ...]
    refusals: tuple[Refusal, ...]
    params_law: PowerLaw
    tokens_law: PowerLaw
    loss_power: PowerLaw
    loss_offset: OffsetLaw | None
    boot_params: PowerLaw | None = None
    boot_tokens: PowerLaw | None = None
    boot_loss_power: PowerLaw | None = None
    boot_loss_offset: OffsetLaw | None = None

    @property
    def scatter(self) -> float:
        """Relative noise of one run about its profile, pooled over the budgets."""
        return float(np.sqrt(np.mean([p.scatter**2 for p in self.profiles])))


def fit_isoflop(runs: Sequence[Run], *, resampling: Resampling | None = FULL, seed: int = 0) -> IsoflopFit:
    """Approach 2 on the runs with role `isoflop`.

    Bootstrap: runs are resampled with replacement within each budget. A draw whose parabola has no interior minimum is
    drawn again, because such a profile would have been refused; `Profile.kept_draws` says how often that was.

    Raises:
      FitRefused: `no_budget` (no run has one), or `few_budgets` (fewer than two profiles are usable).
    """
    budgets = sorted({run.budget for run in runs if run.role == "isoflop" and run.budget is not None})
    if not budgets:
        raise FitRefused("no_budget", "approach 2 needs IsoFLOP runs with a budget; add a column `budget` in FLOPs")
    profiles, refusals = [], []
    for budget in budgets:
        members = tuple(run for run in runs if run.role == "isoflop" and run.budget == budget)
        try:
            profiles.append(fit_profile(budget, members))
        except FitRefused as refusal:
            refusals.append(Refusal(budget, refusal.reason, str(refusal)))
    if len(profiles) < 2:
        why = "; ".join(r.message for r in refusals) or f"the only budget is {budgets[0]:.3g} FLOPs"
        raise FitRefused("few_budgets", f"approach 2 needs two usable profiles, got {len(profiles)}: {why}")
    minima = np.array([(p.budget, p.params.best, p.tokens.best, p.params.lowest) for p in profiles])
    laws = _laws(*minima.T)
    if resampling is None:
        return IsoflopFit(tuple(profiles), tuple(refusals), *laws)
    rng = np.random.default_rng(seed)
    draws, kept = zip(*(_resample(profile, resampling, rng) for profile in profiles), strict=True)
    profiles = [dataclasses.replace(p, kept_draws=share) for p, share in zip(profiles, kept, strict=True)]
    boot = _laws(np.array([p.budget for p in profiles]), *np.stack(draws, -1))
    return IsoflopFit(tuple(profiles), tuple(refusals), *laws, *boot)


def fit_profile(budget: float, runs: Sequence[Run]) -> Profile:
    """The parabolas of one budget.

    Raises:
      FitRefused: `few_points` (< 4 runs), `same_size` (< 4 distinct sizes), `downward` (opens downward) or `edge` (the
        minimum lies outside the sizes tried).
    """
    label = f"budget {budget:.3g} FLOPs"
    if len(runs) < MIN_POINTS:
        raise FitRefused("few_points", f"{label}: {len(runs)} runs; a profile needs at least {MIN_POINTS}")
    loss = np.array([run.loss for run in runs])
    parabolas = []
    for word, x in (("parameters", np.array([r.params for r in runs])), ("tokens", np.array([r.tokens for r in runs]))):
        if len(np.unique(x)) < MIN_POINTS:
            raise FitRefused("same_size", f"{label}: {len(np.unique(x))} distinct {word}; needs {MIN_POINTS} sizes")
        centre, offset, curvature, lowest = (v[0] for v in _parabola(np.log(x)[None], loss[None]))
        if not curvature > 0:
            raise FitRefused(
                "downward",
                f"{label}: the parabola in log {word} opens downward; add sizes on both sides or repeat noisy runs",
            )
        best = float(np.exp(centre + offset))
        if not x.min() < best < x.max():
            side = "smaller" if best <= x.min() else "larger"
            raise FitRefused(
                "edge",
                f"{label}: the minimum over {word} lies outside those tried "
                f"({x.min():.3g} to {x.max():.3g}); add runs with {side} {word}",
            )
        parabolas.append(Parabola(best, float(lowest), float(curvature), float(x.min()), float(x.max())))
    residual = loss / parabolas[0].at([run.params for run in runs]) - 1.0
    scatter = float(np.sqrt((residual**2).sum() / max(1, len(runs) - 3)))
    return Profile(budget, tuple(runs), *parabolas, scatter)


def _parabola(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Batched least-squares parabolas y [B, n] in x [B, n]: centre, vertex - centre, curvature, vertex value; all [B].

    x is centred and scaled, and x^2 made orthogonal to x: the normal equations in raw ln N lose half the digits.
    """
    centre = x.mean(-1, keepdims=True)
    z = x - centre
    scale = np.sqrt((z * z).mean(-1, keepdims=True))
    z = z / np.where(scale > 0, scale, 1.0)
    square = z * z - (z**3).mean(-1, keepdims=True) * z - 1.0
    norm = (square * square).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        second = (square * y).sum(-1) / norm
        # square = z^2 - m z - 1 carries -m z and -1 with it; undo that to get plain coefficients.
        first = (z * y).mean(-1) - second * (z**3).mean(-1)
        vertex = -first / (2.0 * second)
        lowest = y.mean(-1) - second - second * vertex**2
        # Two or fewer distinct sizes leave only rounding error in `square`: no parabola.
        second = np.where(norm > 1e-9 * x.shape[-1], second / scale[..., 0] ** 2, np.nan)
    return centre[..., 0], vertex * scale[..., 0], second, lowest


def _resample(profile: Profile, resampling: Resampling, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """[3, count]: N*, D*, minimum loss of bootstrap draws of one profile, and the share of draws that were usable."""
    runs = profile.runs
    count = resampling.replicates
    pick = resampling.picks(len(runs), rng, count * _DRAWS_PER_REPLICATE)
    loss = np.array([run.loss for run in runs])[pick]
    good, found = np.ones(len(pick), bool), []
    for parabola, x in ((profile.params, [r.params for r in runs]), (profile.tokens, [r.tokens for r in runs])):
        centre, offset, curvature, lowest = _parabola(np.log(x)[pick], loss)
        with np.errstate(invalid="ignore"):
            log_best = centre + offset
            good &= (curvature > 0) & (log_best > np.log(parabola.low)) & (log_best < np.log(parabola.high))
        found += [log_best, lowest]
    values = np.stack([np.exp(found[0][good]), np.exp(found[2][good]), found[1][good]])
    kept = values.shape[1]
    if kept < count:
        values = (
            values[:, rng.integers(kept, size=count)]
            if kept
            else np.tile([[profile.params.best], [profile.tokens.best], [profile.params.lowest]], count)
        )
    return values[:, :count], float(good.mean())


def _laws(budgets: np.ndarray, params: np.ndarray, tokens: np.ndarray, losses: np.ndarray) -> tuple:
    offset = fit_offset(budgets, losses) if len(budgets) >= 3 else None
    return fit_power(budgets, params), fit_power(budgets, tokens), fit_power(budgets, losses), offset
