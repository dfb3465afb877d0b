"""Approach 2: which size is best at each budget, and how does it grow with compute?

Hoffmann et al. 2022 (arXiv 2203.15556) section 3.2: at each budget a parabola of the loss in log N gives the optimal
N, another in log D the optimal D, and power laws go through both: the preset `PAPER`. N and D are fitted apart, as the
paper does, so a + b need not be 1. A parabola is not the true profile: even without noise the intercept is biased when
the exponents of N and D differ, more so the wider the sizes range (0.3% in D for sizes within 2x, 5% within 16x), and
the exponents too when the sizes drift against the optimum. How much for the grid at hand: `isoflop_bias`.

`CORRECTED` reads the minima off the runs near them (`near_minimum`), and takes the interval of the best size from the
minima's own scatter about their line (`optimum_law`); `AKIMA` interpolates instead. How often these intervals hold a
planted truth: `python -m tests.benchmarks.coverage`. The minimum loss is extrapolated in one way in all of them,
averaged over what is not known of its law (`loss_law`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtr

from chinchilla_jax.scaling.fits.approach2.curve import Interpolated, Minima, Parabola, Skewed
from chinchilla_jax.scaling.fits.approach2.loss_law import AveragedLaw, fit_loss_law
from chinchilla_jax.scaling.fits.approach2.near_minimum import NearFit
from chinchilla_jax.scaling.fits.approach2.optimum_law import fit_optimum
from chinchilla_jax.scaling.fits.approach2.replicates import replicates, residuals_of
from chinchilla_jax.scaling.fits.approach2.table import (
    WORDS,
    ProfileTable,
    Refusal,
    check,
    downward,
    without_minimum,
)
from chinchilla_jax.scaling.fits.frontier import PowerLaw, fit_power
from chinchilla_jax.scaling.fits.resample import PAPER as PAPER_RESAMPLING
from chinchilla_jax.scaling.fits.resample import MinimaScatter, Resampling, Residuals
from chinchilla_jax.scaling.read.runs import FitRefused, Run

# Of N* and D*: the laws, their replicates (None without intervals); and [M] how likely each minimum is an interior one.
_Laws = tuple[tuple[PowerLaw, PowerLaw], tuple[PowerLaw | None, PowerLaw | None], np.ndarray]


@dataclasses.dataclass(frozen=True)
class IsoflopPreset:
    """The `curve` of a profile (`parabola`, `near` or `akima`), and where intervals come from (None: there are none).

    `near` goes with `MinimaScatter`, the others with resampled runs or redrawn residuals.
    """

    name: str
    curve: str
    resampling: Resampling | Residuals | MinimaScatter | None
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
    "near",
    MinimaScatter(),
    (
        "minima come from the runs near them, with the skew that L = E + A/N^alpha + B/D^beta gives a profile: no "
        "curve fits all sizes, and runs far away pull the minimum",
        "the interval of N* comes from the minima's scatter about their line, for the best size of a budget and not "
        "only for the line: 80% subsets of the runs say too little or too much depending on the number of sizes",
    ),
)
AKIMA = IsoflopPreset(
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
    """One IsoFLOP profile: `budget` in FLOPs, its runs, those of them its minimum rests on, its curves in N and in D.

    `scatter` is the root mean square of the relative residuals in N of the runs that were fitted, corrected for the
    three coefficients (0 with only four points is not evidence of precision); `kept_draws` the probability, or share of
    bootstrap draws, that the minimum lies inside the sizes tried.
    """

    budget: float
    runs: tuple[Run, ...]
    near: tuple[Run, ...]
    params: Parabola
    tokens: Parabola
    scatter: float
    kept_draws: float = 1.0


@dataclasses.dataclass(frozen=True)
class IsoflopFit:
    """Approach 2 on M budgets.

    `params_law` N*(C) = k C^a; `tokens_law` D*(C) = k' C^b; `loss_law` the minimum loss. `boot_*` are B replicates of
    the first two, None without intervals. `noise` is the relative standard deviation of one run about its profile near
    the minimum.
    """

    profiles: tuple[Profile, ...]
    refusals: tuple[Refusal, ...]
    params_law: PowerLaw
    tokens_law: PowerLaw
    loss_law: AveragedLaw
    noise: float
    boot_params: PowerLaw | None = None
    boot_tokens: PowerLaw | None = None
    preset: IsoflopPreset = PAPER

    @property
    def scatter(self) -> float:
        """Root mean square over the budgets of what their fitted runs scatter by, relative."""
        return float(np.sqrt(np.mean([p.scatter**2 for p in self.profiles])))


def fit_isoflop(
    runs: Sequence[Run],
    *,
    preset: IsoflopPreset = PAPER,
    resampling: Resampling | Residuals | MinimaScatter | None | str = "preset",
    seed: int = 0,
) -> IsoflopFit:
    """Approach 2 on the runs with role `isoflop`.

    Runs of one size and budget are replicates; each counts. Bootstrap (presets `paper` and `akima`): runs are resampled
    within each budget, or every run's loss gets a residual of some run added. A replicate leaves out the budgets whose
    curve has no interior minimum, as the fit does; `Profile.kept_draws` says how often that was.

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
            check(budget, mine)
            members[budget] = mine
        except FitRefused as refusal:
            refusals.append(Refusal(budget, refusal.reason, str(refusal)))
    while True:  # A profile refused takes its part of the skew with it.
        if len(members) < 2:
            why = "; ".join(r.message for r in refusals) or f"the only budget is {budgets[0]:.3g} FLOPs"
            raise FitRefused("few_budgets", f"approach 2 needs two usable profiles, got {len(members)}: {why}")
        table = ProfileTable(members)
        bad = [downward(budget, m, table) for m, budget in enumerate(members)]
        if not any(bad):
            near = {word: table.near(word) for word in WORDS}
            minima = {word: table.minima(preset.curve, word, near[word]) for word in WORDS}
            bad = [without_minimum(budget, m, minima, table) for m, budget in enumerate(members)]
        if not any(bad):
            break
        refusals += [refusal for refusal in bad if refusal]
        members = {b: mine for (b, mine), refusal in zip(members.items(), bad, strict=True) if not refusal}
    refusals = tuple(sorted(refusals, key=lambda refusal: refusal.budget))
    found = near["params"]
    loss_law = fit_loss_law(table.budgets, minima["params"].lowest[0], found.covariance, found.noise, found.freedom)
    rng = np.random.default_rng(seed)
    if preset.curve == "near":
        laws, boot, kept = _from_scatter(table, near, resampling, rng)
    else:
        laws, boot, kept = _from_runs(preset.curve, table, minima, near, resampling, rng)
    profiles = _profiles(preset.curve, members, table, minima, found, kept)
    return IsoflopFit(profiles, refusals, *laws, loss_law, found.noise, *boot, preset=preset)


def _from_scatter(
    table: ProfileTable, near: dict[str, NearFit], resampling: MinimaScatter | None, rng: np.random.Generator
) -> _Laws:
    """From the minima's scatter: laws of N* and D*, their replicates, and [M] how likely each minimum is interior."""
    params, tokens = (fit_optimum(table.budgets, near[w].log_best, near[w].log_best_sd) for w in WORDS)
    inside = np.ones(len(table.budgets))
    for word, found in near.items():
        low, high = table.range(word)
        ends = (np.stack([low, high]) - found.log_best) / found.log_best_sd
        inside = np.minimum(inside, np.diff(stdtr(found.freedom, ends), axis=0)[0])
    if resampling is None:
        return (params, tokens), (None, None), inside
    normal = rng.standard_normal((resampling.replicates, 2))
    shared = np.sqrt(rng.chisquare(params.freedom, resampling.replicates) / params.freedom)
    # A larger model at one budget sees fewer tokens.
    return (params, tokens), (params.draws(normal, shared), tokens.draws(-normal, shared)), inside


def _from_runs(
    curve: str,
    table: ProfileTable,
    minima: dict[str, Minima],
    near: dict[str, NearFit],
    resampling: Resampling | Residuals | None,
    rng: np.random.Generator,
) -> _Laws:
    """The same through all minima alike, with replicates from resampled runs or redrawn residuals."""
    best = np.exp(minima["params"].log_best[0]), np.exp(minima["tokens"].log_best[0])
    laws = tuple(fit_power(table.budgets, values) for values in best)
    if resampling is None:
        return laws, (None, None), np.ones(len(table.budgets))
    values, kept = replicates(curve, table, near, resampling, rng)
    if values is None:
        return laws, (None, None), kept
    *drawn, weight = values
    return laws, tuple(fit_power(table.budgets, each, weight) for each in drawn), kept


def _profiles(
    curve: str,
    members: dict[float, tuple[Run, ...]],
    table: ProfileTable,
    minima: dict[str, Minima],
    near: NearFit,
    kept: np.ndarray,
) -> tuple[Profile, ...]:
    residuals, used = residuals_of(curve, table, minima["params"], near)
    profiles = []
    for m, (budget, runs) in enumerate(members.items()):
        curves = {}
        for word, found in minima.items():
            x = getattr(table, word)[m, table.held[m]]
            best, lowest = float(np.exp(found.log_best[0, m])), float(found.lowest[0, m])
            common = best, lowest, float(found.curvature[0, m]), float(np.exp(x.min())), float(np.exp(x.max()))
            if curve == "parabola":
                curves[word] = Parabola(*common)
            elif curve == "near":
                curves[word] = Skewed(*common, float(found.skew[0]))
            else:
                from scipy.interpolate import Akima1DInterpolator

                knots, size = np.unique(x, return_inverse=True)
                mean = np.bincount(size, table.loss[m, table.held[m]]) / np.bincount(size)
                curves[word] = Interpolated(*common, Akima1DInterpolator(knots, mean))
        scatter = float(np.sqrt((residuals[m] ** 2).sum() / max(1, used[m].sum() - 3)))
        fitted = tuple(run for run, one in zip(runs, used[m], strict=False) if one)
        profiles.append(Profile(budget, runs, fitted, curves["params"], curves["tokens"], scatter, float(kept[m])))
    return tuple(profiles)
