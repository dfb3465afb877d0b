"""Approach 2: which size is best at each budget, and how does it grow with compute?

Hoffmann et al. 2022 (arXiv 2203.15556) section 3.2: at each budget a parabola of the loss in log N gives the optimal
N, another in log D the optimal D, and power laws go through both: the preset `PAPER`. N and D are fitted apart, as the
paper does, so a + b need not be 1. A parabola is not the true profile: without any noise the intercept is off by 0.3%
in D for sizes within 2x and by 5% within 16x, and the exponents when the sizes drift: see `isoflop_bias`.

`CORRECTED` reads the minima off the runs near them (`near_minimum`), and takes the interval of the best size from the
minima's own scatter about their line (`fit_optimum`); `AKIMA` interpolates instead. How often these intervals hold a
planted truth: `python -m tests.benchmarks.coverage`. The minimum loss is extrapolated in one way in all of them,
averaged over what is not known of its law (`AveragedLaw`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtr

from chinchilla_jax.scaling.fits import resample
from chinchilla_jax.scaling.fits.approach2.curve import ProfileCurve, interpolant
from chinchilla_jax.scaling.fits.approach2.near_minimum import MISFIT
from chinchilla_jax.scaling.fits.approach2.table import QUANTITIES, ProfileTable, Refusal, read_profiles
from chinchilla_jax.scaling.fits.frontier import AveragedLaw, PowerLaw, fit_loss_law, fit_optimum, fit_power
from chinchilla_jax.scaling.fits.resample import (
    LEAST_NOISE,
    MinimaScatter,
    Preset,
    Resampling,
    Residuals,
    Scheme,
    sized,
)
from chinchilla_jax.scaling.read.runs import FitRefused, Run

# The laws of N* and D*, their replicates (None without intervals), and [M] how likely each minimum is an interior one.
_Laws = tuple[tuple[PowerLaw, PowerLaw], tuple[PowerLaw, PowerLaw] | None, np.ndarray]

# The curve `near` goes with `MinimaScatter`, `parabola` and `akima` with resampled runs or redrawn residuals.
PAPER = Preset(
    "paper",
    "parabola",
    resample.PAPER,
    (
        "as in Hoffmann et al. 2022, section 3.2: a parabola in ln N and another in ln D for each budget by itself",
        "interval from 100 subsets of 80% of the runs",
    ),
)
CORRECTED = Preset(
    "corrected",
    "near",
    MinimaScatter(),
    (
        "minima come from the runs near them, with the skew that L = E + A/N^alpha + B/D^beta gives a profile: no "
        "curve fits all sizes, and runs far away pull the minimum",
        "the interval of N* comes from the minima's scatter about their line, for the best size of a budget and not "
        "only for the line: 80% subsets of the runs say too little or too much depending on the number of sizes",
    ),
)
AKIMA = Preset(
    "akima",
    "akima",
    Residuals(),
    (
        "profiles are interpolated (Akima 1970) through the losses averaged by size, as in Porian et al. 2024: no "
        "shape is assumed and no noise is averaged away",
        "the interval comes from redraws of the residuals of the runs near the minima; an interpolant has none",
    ),
)


@dataclasses.dataclass(frozen=True)
class Profile:
    """One IsoFLOP profile: `budget` in FLOPs, its runs, those of them its minimum rests on, its curves in N and in D;
    `scatter`, the root mean square of the relative residuals in N of the runs that were fitted, corrected for the three
    coefficients (0 with only four points is not evidence of precision); `kept_draws`, the probability, or share of
    bootstrap draws, that the minimum lies inside the sizes tried."""

    budget: float
    runs: tuple[Run, ...]
    near: tuple[Run, ...]
    params: ProfileCurve
    tokens: ProfileCurve
    scatter: float
    kept_draws: float = 1.0


@dataclasses.dataclass(frozen=True)
class IsoflopFit:
    """Approach 2 on M budgets: the laws N*(C) = k C^a, D*(C) = k' C^b and of the minimum loss; `noise`, the relative
    standard deviation of one run about its profile near the minimum; `boot_*`, B replicates of the first two laws, None
    without intervals."""

    preset: Preset
    profiles: tuple[Profile, ...]
    refusals: tuple[Refusal, ...]
    params_law: PowerLaw
    tokens_law: PowerLaw
    loss_law: AveragedLaw
    noise: float
    boot_params: PowerLaw | None = None
    boot_tokens: PowerLaw | None = None

    @property
    def scatter(self) -> float:
        """Root mean square over the budgets of what their fitted runs scatter by, relative."""
        return float(np.sqrt(np.mean([p.scatter**2 for p in self.profiles])))

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs of all usable profiles."""
        return tuple(run for profile in self.profiles for run in profile.runs)


def fit_isoflop(
    runs: Sequence[Run], *, preset: Preset = PAPER, resampling: Scheme | None | str = "preset", seed: int = 0
) -> IsoflopFit:
    """Approach 2 on the runs with role `isoflop`.

    Runs of one size and budget are replicates; each counts. Bootstrap (presets `paper` and `akima`): runs are resampled
    within each budget, or every run's loss gets a residual of some run added. A replicate leaves out the budgets whose
    curve has no interior minimum, as the fit does; `Profile.kept_draws` says how often that was. `resampling` overrides
    the preset's; None for no intervals. Refused as `read_profiles`.
    """
    scheme = preset.resampling if isinstance(resampling, str) else resampling
    table, refusals = read_profiles(runs, preset.curve)
    near = table.near["params"]
    loss_law = fit_loss_law(table.budgets, table.minima["params"].lowest[0], near.covariance, near.noise, near.freedom)
    fit_laws = _from_scatter if preset.curve == "near" else _from_runs
    laws, boot, kept = fit_laws(table, scheme, np.random.default_rng(seed))
    profiles = _profiles(table, kept)
    return IsoflopFit(preset, profiles, refusals, *laws, loss_law, near.noise, *(boot or (None, None)))


def _from_scatter(table: ProfileTable, scheme: Scheme | None, rng: np.random.Generator) -> _Laws:
    """The laws and their replicates from the minima's scatter about the laws."""
    params, tokens = (fit_optimum(table.budgets, near.log_best[0], near.log_best_sd) for near in table.near.values())
    inside = np.ones(len(table.budgets))
    for quantity, near in table.near.items():
        x = table.x[quantity]
        ends = (np.stack([x.min(1), x.max(1)]) - near.log_best[0]) / near.log_best_sd
        inside = np.minimum(inside, np.diff(stdtr(near.freedom, ends), axis=0)[0])
    if scheme is None:
        return (params, tokens), None, inside
    normal = rng.standard_normal((scheme.replicates, 2))
    shared = np.sqrt(rng.chisquare(params.freedom, scheme.replicates) / params.freedom)
    # A larger model at one budget sees fewer tokens.
    return (params, tokens), (params.draws(normal, shared), tokens.draws(-normal, shared)), inside


def _from_runs(table: ProfileTable, scheme: Scheme | None, rng: np.random.Generator) -> _Laws:
    """The laws through all minima alike, with replicates from resampled runs or redrawn residuals."""
    params, tokens = (fit_power(table.budgets, np.exp(minima.log_best[0])) for minima in table.minima.values())
    if scheme is None:
        return (params, tokens), None, np.ones(len(table.budgets))
    loss, weight = table.loss[None], table.held[None].astype(float)
    if isinstance(scheme, Resampling):
        weight = np.zeros((scheme.replicates, *table.held.shape))
        for m, mine in enumerate(table.held):
            weight[:, m, mine] = scheme.weights(int(mine.sum()), rng)
    elif isinstance(scheme, Residuals):
        drawn, freedom = _unleveraged(table)
        loss = loss * (1.0 + scheme.draw(drawn, freedom, table.held.shape, rng) * table.held)
    else:
        raise FitRefused("resampling", f"profiles of this kind draw from runs or from residuals, not {scheme}")
    minima = [table.redrawn(quantity, loss, weight) for quantity in QUANTITIES]
    good = minima[0].inside & minima[1].inside
    # A law needs two budgets; of three or more, one without a minimum may be left out.
    enough = good.sum(1) >= min(3, len(table.held))
    rows = np.flatnonzero(enough)
    if not len(rows):
        return (params, tokens), None, good.mean(0)
    if len(rows) < len(good):
        rows = np.where(enough, np.arange(len(good)), rng.choice(rows, len(good)))
    good = good[rows]
    with np.errstate(over="ignore", invalid="ignore"):
        n, d = (np.where(good, np.exp(each.log_best[rows]), 1.0) for each in minima)
    boot = fit_power(table.budgets, n, good.astype(float)), fit_power(table.budgets, d, good.astype(float))
    return (params, tokens), boot, good.mean(0)


def _residuals(table: ProfileTable) -> tuple[np.ndarray, np.ndarray]:
    """Relative residuals [M, n] about the parabolas, or the curves near the minima, of the runs near them; who has
    one."""
    near, parabola = table.near["params"], table.curve == "parabola"
    fitted, used = (table.minima["params"].fitted[0], table.held) if parabola else (near.fitted[0], near.near)
    residuals = np.where(used, table.loss / np.where(used, fitted, 1.0) - 1.0, 0.0)
    if not parabola:  # what the curve is known to miss farther up is no noise
        excess = fitted / fitted.min(1, keepdims=True) - 1.0
        residuals = residuals / np.sqrt(1.0 + (MISFIT * excess / near.noise) ** 2)
    return residuals, used


def _unleveraged(table: ProfileTable) -> tuple[np.ndarray, float]:
    """Residuals as large as the noise, and their degrees of freedom: divided by sqrt(1 - leverage) of their profile's
    three constants and scaled; for an interpolant, which has none of its own, to the noise near the minima."""
    residuals, used = _residuals(table)
    spared = np.ones(used.shape)
    for m, mine in enumerate(used):
        x = table.x["params"][m, mine]
        q, _ = np.linalg.qr(np.vander((x - x.mean()) / x.std(), 3))
        spared[m, mine] = np.sqrt(np.maximum(1.0 - (q * q).sum(1), 0.05))
    unleveraged = residuals[used] / spared[used]
    if table.curve != "parabola":
        return sized(unleveraged, table.near["params"].noise), table.near["params"].freedom
    freedom = max(1.0, float((used.sum(1) - 3).clip(0).sum()))
    noise = max(LEAST_NOISE, float(np.sqrt((residuals**2).sum() / freedom)))
    return sized(unleveraged, noise), freedom


def _profiles(table: ProfileTable, kept: np.ndarray) -> tuple[Profile, ...]:
    residuals, used = _residuals(table)
    profiles = []
    for m, (budget, runs) in enumerate(table.members.items()):
        params, tokens = (_drawn(table, quantity, m) for quantity in QUANTITIES)
        scatter = float(np.sqrt((residuals[m] ** 2).sum() / max(1, used[m].sum() - 3)))
        near = tuple(run for run, one in zip(runs, used[m], strict=False) if one)
        profiles.append(Profile(budget, tuple(runs), near, params, tokens, scatter, float(kept[m])))
    return tuple(profiles)


def _drawn(table: ProfileTable, quantity: str, m: int) -> ProfileCurve:
    """The curve of profile m, which can be evaluated anywhere."""
    x, minima = table.x[quantity][m, table.held[m]], table.minima[quantity]
    best, low, high = (float(np.exp(value)) for value in (minima.log_best[0, m], x.min(), x.max()))
    skew = table.near[quantity].skew if table.curve == "near" else None
    through = interpolant(x, table.loss[m, table.held[m]], np.ones(len(x))) if table.curve == "akima" else None
    lowest, curvature = float(minima.lowest[0, m]), float(minima.curvature[0, m])
    return ProfileCurve(best, lowest, curvature, low, high, skew, through)
