"""Approach 2: which size is best at each budget, and how does it grow with compute?

Hoffmann et al. 2022 (arXiv 2203.15556) section 3.2: at each budget a parabola of the loss in log N gives the optimal
N, another in log D the optimal D, and power laws go through both: the preset `PAPER`. N and D are fitted apart, as the
paper does, so a + b need not be 1. A parabola is not the true profile: even without noise the intercept is biased when
the exponents of N and D differ, more so the wider the sizes range (0.3% in D for sizes within 2x, 5% within 16x), and
the exponents too when the sizes drift against the optimum. How much for the grid at hand: `isoflop_bias`.

`CORRECTED` gives all profiles the law's own shape (`profile.skewed`) and takes its interval from redraws of the runs'
residuals; `AKIMA` interpolates instead. Measured on 100 planted studies of 4 budgets and 7 sizes 1.6 apart, off centre
and drifting (`python -m tests.benchmarks.coverage`): 95% intervals of the exponent and of N* at ten times the largest
budget hold the truth, and the mean width of the former

                                              no noise      0.2% from run to run
    corrected, redraws of residuals           100, 100      97,  98     0.034
    corrected, runs resampled                 100, 100     100, 100     0.083
    akima, redraws of residuals               100, 100      97,  98     0.235
    paper, 100 subsets of 80%                 100,  32      71,  60     0.020
    paper, runs resampled                     100, 100     100, 100     0.079
    paper, redraws of residuals               100,  35      96,  92     0.034
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from chinchilla_jax.scaling import profile_shape
from chinchilla_jax.scaling.frontier import OffsetLaw, PowerLaw, fit_offset, fit_power
from chinchilla_jax.scaling.profile import Interpolated, Minima, Parabola, Skewed, akima, least_noise, parabolas, skewed
from chinchilla_jax.scaling.resample import PAPER as PAPER_RESAMPLING
from chinchilla_jax.scaling.resample import Resampling, Residuals
from chinchilla_jax.scaling.runs import FitRefused, Run

MIN_POINTS = 4
_FAR_BELOW = 0.8  # of the lowest loss: no profile dips so far between its runs
_WORDS = ("params", "tokens")


@dataclasses.dataclass(frozen=True)
class IsoflopPreset:
    """The `curve` of a profile (`parabola`, `skewed` or `akima`), and how the runs are resampled (None: not)."""

    name: str
    curve: str
    resampling: Resampling | Residuals | None
    differences: tuple[str, ...]


PAPER = IsoflopPreset(
    "paper",
    "parabola",
    PAPER_RESAMPLING,
    (
        "as in Hoffmann et al. 2022, section 3.2: a parabola in ln N and another in ln D for each budget by itself",
        "interval from 100 subsets of 80% of the runs",
    ),
)
CORRECTED = IsoflopPreset(
    "corrected",
    "skewed",
    Residuals(),
    (
        "profiles have the skew that L = E + A/N^alpha + B/D^beta gives them, one for all budgets: a parabola misses "
        "it, and its minimum is off by a few percent for wide or off-centre sizes",
        "the interval comes from redraws of the runs' residuals: 80% subsets say too little or too much depending on "
        "the number of sizes, and leaving runs out of a profile of 7 doubles the spread of its minimum",
    ),
)
AKIMA = IsoflopPreset(
    "akima",
    "akima",
    Residuals(),
    (
        "profiles are interpolated (Akima 1970) through the losses averaged by size, as in Porian et al. 2024: no "
        "shape is assumed and no noise is averaged away",
        "the interval comes from redraws of the runs' residuals about the skewed profiles; an interpolant has none",
    ),
)


@dataclasses.dataclass(frozen=True)
class Profile:
    """One IsoFLOP profile: `budget` in FLOPs, its runs, its curves in N and in D.

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
    """A budget left out. `reason` is `few_points`, `downward`, `edge`, `same_size` or `far_off`."""

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
    preset: IsoflopPreset = PAPER

    @property
    def scatter(self) -> float:
        """Relative noise of one run about its profile, pooled over the budgets."""
        return float(np.sqrt(np.mean([p.scatter**2 for p in self.profiles])))


def fit_isoflop(
    runs: Sequence[Run],
    *,
    preset: IsoflopPreset = PAPER,
    resampling: Resampling | Residuals | None | str = "preset",
    seed: int = 0,
) -> IsoflopFit:
    """Approach 2 on the runs with role `isoflop`.

    Bootstrap: runs are resampled within each budget, or every run's loss gets a residual of some run added. A replicate
    leaves out the budgets whose curve has no interior minimum, as the fit does; `Profile.kept_draws` says how often
    that was.

    Args:
      resampling: overrides the preset's; None for no intervals.

    Raises:
      FitRefused: `no_budget` (no run has one), or `few_budgets` (fewer than two profiles are usable).
    """
    resampling = preset.resampling if isinstance(resampling, str) else resampling
    budgets = sorted({run.budget for run in runs if run.role == "isoflop" and run.budget is not None})
    if not budgets:
        raise FitRefused("no_budget", "approach 2 needs IsoFLOP runs with a budget; add a column `budget` in FLOPs")
    members, refusals = {}, []
    for budget in budgets:
        mine = tuple(run for run in runs if run.role == "isoflop" and run.budget == budget)
        try:
            _check(budget, mine)
            members[budget] = mine
        except FitRefused as refusal:
            refusals.append(Refusal(budget, refusal.reason, str(refusal)))
    while True:  # A profile refused takes its part of the skew with it.
        if len(members) < 2:
            why = "; ".join(r.message for r in refusals) or f"the only budget is {budgets[0]:.3g} FLOPs"
            raise FitRefused("few_budgets", f"approach 2 needs two usable profiles, got {len(members)}: {why}")
        table = _Table(members)
        minima = {word: _minima(preset.curve, table, word) for word in _WORDS}
        bad = [_refusal(budget, m, minima, table) for m, budget in enumerate(members)]
        if not any(bad):
            break
        refusals += [refusal for refusal in bad if refusal]
        members = {b: mine for (b, mine), refusal in zip(members.items(), bad, strict=True) if not refusal}
    profiles = _profiles(preset.curve, members, table, minima)
    laws = _laws(table.budgets, *_values(minima["params"], minima["tokens"])[:, 0])
    refusals = tuple(sorted(refusals, key=lambda refusal: refusal.budget))
    if resampling is None:
        return IsoflopFit(profiles, refusals, *laws, preset=preset)
    values, kept = _replicates(preset.curve, table, minima["params"], resampling, np.random.default_rng(seed))
    profiles = tuple(dataclasses.replace(p, kept_draws=float(k)) for p, k in zip(profiles, kept, strict=True))
    boot = _laws(table.budgets, *values) if values else (None,) * 4
    return IsoflopFit(profiles, refusals, *laws, *boot, preset=preset)


class _Table:
    """The runs of M profiles as padded arrays [M, n]: ln N, ln D, loss, and which entries are runs."""

    def __init__(self, members: dict[float, tuple[Run, ...]]):
        longest = max(len(runs) for runs in members.values())
        shape = (len(members), longest)
        self.budgets = np.array(list(members))
        self.held = np.zeros(shape, bool)
        self.params, self.tokens, self.loss = np.zeros(shape), np.zeros(shape), np.ones(shape)
        for m, runs in enumerate(members.values()):
            n = len(runs)
            self.held[m, :n] = True
            self.params[m, :n] = np.log([run.params for run in runs])
            self.tokens[m, :n] = np.log([run.tokens for run in runs])
            self.loss[m, :n] = [run.loss for run in runs]
            # Padding stands on a real size, so that no basis is spoilt by it.
            for values in (self.params, self.tokens, self.loss):
                values[m, n:] = values[m, 0]

    @functools.cached_property
    def noise(self) -> dict[str, float]:
        """Relative noise about skewed profiles; about parabolas first, which includes what those miss."""
        noise, weight = {}, self.held[None].astype(float)
        for word in _WORDS:
            x = getattr(self, word)
            found = parabolas(x, self.loss[None], weight, self.held)
            for _ in range(3):
                left = np.where(self.held, self.loss / found.fitted[0] - 1.0, 0.0)
                noise[word] = least_noise(left, self.freedom - 1.0)
                found = skewed(x, self.loss[None], weight, self.held, noise[word])
        return noise

    @property
    def freedom(self) -> float:
        """Runs beyond the three coefficients of every profile."""
        return float((self.held.sum(1) - 3).clip(0).sum())


def _check(budget: float, runs: Sequence[Run]) -> None:
    label = f"budget {budget:.3g} FLOPs"
    if len(runs) < MIN_POINTS:
        raise FitRefused("few_points", f"{label}: {len(runs)} runs; a profile needs at least {MIN_POINTS}")
    for word, values in (("parameters", {r.params for r in runs}), ("tokens", {r.tokens for r in runs})):
        if len(values) < MIN_POINTS:
            raise FitRefused("same_size", f"{label}: {len(values)} distinct {word}; needs {MIN_POINTS} sizes")


def _refusal(budget: float, m: int, minima: dict[str, Minima], table: _Table) -> Refusal | None:
    label = f"budget {budget:.3g} FLOPs"
    for word, found in minima.items():
        name = "parameters" if word == "params" else "tokens"
        x = getattr(table, word)[None]
        if not parabolas(x[0], table.loss[None], table.held[None].astype(float), table.held).curvature[0, m] > 0:
            return Refusal(
                budget,
                "downward",
                f"{label}: the parabola in log {name} opens downward; add sizes on both sides or repeat noisy runs",
            )
        if not found.inside[0, m]:
            tried = np.exp(x[0, m][table.held[m]])
            side = "smaller" if np.exp(found.log_best[0, m]) <= np.sqrt(tried.min() * tried.max()) else "larger"
            return Refusal(
                budget,
                "edge",
                f"{label}: the minimum over {name} lies outside those tried "
                f"({tried.min():.3g} to {tried.max():.3g}); add runs with {side} {name}",
            )
        losses = table.loss[m][table.held[m]]
        if found.lowest[0, m] < _FAR_BELOW * losses.min():
            odd = losses[np.abs(np.log(losses / np.median(losses))).argmax()]
            return Refusal(
                budget,
                "far_off",
                f"{label}: the minimum of the curve, {found.lowest[0, m]:.4g}, lies far below every loss; check the "
                f"run of loss {odd:.4g}",
            )
    return None


def _minima(
    curve: str,
    table: _Table,
    word: str,
    loss: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    draw: np.random.Generator | None = None,
) -> Minima:
    """Curves in ln N (`params`) or ln D (`tokens`) for losses or weights [B, M, n]; by default the data, B = 1.

    `draw`: replicates also draw what is not known of the skewed shape.
    """
    x, held = getattr(table, word), table.held
    loss = table.loss[None] if loss is None else loss
    weight = held[None].astype(float) if weight is None else weight
    if curve == "parabola":
        return parabolas(x, loss, weight, held)
    if curve == "akima":
        return akima(x, loss, weight, held)
    noise = table.noise[word]
    count = max(len(loss), len(weight))
    loss = np.broadcast_to(loss, (count, *held.shape))
    if draw is None:
        return skewed(x, loss, weight, held, noise)
    # Seen from D the same profile has the opposite skew.
    prior = (1.0 if word == "params" else -1.0) * profile_shape.SKEW_SPREAD * draw.standard_normal(count)
    product = profile_shape.PRODUCT * np.exp(profile_shape.PRODUCT_SPREAD * draw.standard_normal(count))
    return skewed(x, loss, weight, held, noise, prior=prior, product=product)


def _residuals(curve: str, table: _Table, minima: Minima) -> tuple[np.ndarray, np.ndarray, float]:
    """Relative residuals [M, n], their sqrt(1 - leverage) [M, n], and degrees of freedom."""
    freedom = table.freedom
    if curve == "akima":
        curve, minima = "skewed", _minima("skewed", table, "params")
    if curve == "skewed":
        freedom = max(1.0, freedom - 1.0)
    residuals = np.where(table.held, table.loss / minima.fitted[0] - 1.0, 0.0)
    spared = np.zeros(table.held.shape)
    for m, held in enumerate(table.held):
        x = table.params[m, held]
        q, _ = np.linalg.qr(np.vander((x - x.mean()) / x.std(), 3))
        spared[m, held] = np.sqrt(np.maximum(1.0 - (q * q).sum(1), 0.05))
    return residuals, spared, freedom


def _replicates(
    curve: str, table: _Table, minima: Minima, resampling: Resampling | Residuals, rng: np.random.Generator
) -> tuple[tuple[np.ndarray, ...] | None, np.ndarray]:
    """N*, D*, minimum loss and weight (0 or 1) of the replicates, each [B, M], or None where no replicate has enough
    usable budgets; and [M] the share of draws with an interior minimum.
    """
    held = table.held
    loss, weight = table.loss[None], held[None].astype(float)
    if isinstance(resampling, Residuals):
        residuals, spared, freedom = _residuals(curve, table, minima)
        own = residuals[held] / spared[held]
        own *= least_noise(residuals, freedom) / max(1e-300, float(np.sqrt((own**2).mean())))
        loss = loss * (1.0 + resampling.draw(own, freedom, held.shape, rng) * held)
    else:
        weight = np.zeros((resampling.replicates, *held.shape))
        for m, mine in enumerate(held):
            weight[:, m, mine] = resampling.weights(int(mine.sum()), rng)
    # The same draws of shape for N and for D: one law, seen twice.
    shape_seed = int(rng.integers(2**32))
    found = [_minima(curve, table, word, loss, weight, np.random.default_rng(shape_seed)) for word in _WORDS]
    values = _values(*found)
    good = found[0].inside & found[1].inside
    # A law needs two budgets, and one with an irreducible loss three.
    whole = np.flatnonzero(good.sum(1) >= min(3, len(held)))
    if not len(whole):
        return None, good.mean(0)
    if len(whole) < len(good):
        rows = np.where(good.sum(1) >= min(3, len(held)), np.arange(len(good)), rng.choice(whole, len(good)))
        values, good = values[:, rows], good[rows]
    return (*np.where(good, values, 1.0), good.astype(float)), good.mean(0)


def _values(params: Minima, tokens: Minima) -> np.ndarray:
    """[3, B, M]: N*, D*, minimum loss."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.stack([np.exp(params.log_best), np.exp(tokens.log_best), params.lowest])


def _profiles(
    curve: str, members: dict[float, tuple[Run, ...]], table: _Table, minima: dict[str, Minima]
) -> tuple[Profile, ...]:
    residuals, _, _ = _residuals(curve, table, minima["params"])
    profiles = []
    for m, (budget, runs) in enumerate(members.items()):
        curves = {}
        for word, found in minima.items():
            x = getattr(table, word)[m, table.held[m]]
            best, lowest = float(np.exp(found.log_best[0, m])), float(found.lowest[0, m])
            common = best, lowest, float(found.curvature[0, m]), float(np.exp(x.min())), float(np.exp(x.max()))
            if curve == "parabola":
                curves[word] = Parabola(*common)
            elif curve == "skewed":
                curves[word] = Skewed(*common, float(found.skew[0]))
            else:
                knots, size = np.unique(x, return_inverse=True)
                mean = np.bincount(size, table.loss[m, table.held[m]]) / np.bincount(size)
                curves[word] = Interpolated(*common, Akima1DInterpolator(knots, mean))
        scatter = float(np.sqrt((residuals[m] ** 2).sum() / max(1, len(runs) - 3)))
        profiles.append(Profile(budget, runs, curves["params"], curves["tokens"], scatter))
    return tuple(profiles)


def _laws(
    budgets: np.ndarray,
    params: np.ndarray,
    tokens: np.ndarray,
    losses: np.ndarray,
    weight: np.ndarray | None = None,
) -> tuple[PowerLaw, PowerLaw, PowerLaw, OffsetLaw | None]:
    offset = fit_offset(budgets, losses, weight) if len(budgets) >= 3 else None
    return *(fit_power(budgets, values, weight) for values in (params, tokens, losses)), offset
