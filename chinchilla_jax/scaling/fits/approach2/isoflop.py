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

from chinchilla_jax.scaling.fits.approach2.curve import Interpolated, Parabola, Skewed, interpolant
from chinchilla_jax.scaling.fits.approach2.loss_law import AveragedLaw, fit_loss_law
from chinchilla_jax.scaling.fits.approach2.optimum_law import fit_optimum
from chinchilla_jax.scaling.fits.approach2.replicates import replicates, residuals_of
from chinchilla_jax.scaling.fits.approach2.table import QUANTITIES, ProfileTable, Refusal, read_profiles
from chinchilla_jax.scaling.fits.frontier import PowerLaw, fit_power
from chinchilla_jax.scaling.fits.resample import PAPER as PAPER_RESAMPLING
from chinchilla_jax.scaling.fits.resample import MinimaScatter, Resampling, Residuals
from chinchilla_jax.scaling.read.runs import Run

# The laws of N* and D*, their replicates (None without intervals), and [M] how likely each minimum is an interior one.
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

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs of all usable profiles."""
        return tuple(run for profile in self.profiles for run in profile.runs)


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
      FitRefused: as `read_profiles`.
    """
    resampling = preset.resampling if isinstance(resampling, str) else resampling
    table, refusals = read_profiles(runs, preset.curve)
    near = table.near["params"]
    loss_law = fit_loss_law(table.budgets, table.minima["params"].lowest[0], near.covariance, near.noise, near.freedom)
    fit_laws = _from_scatter if preset.curve == "near" else _from_runs
    laws, boot, kept = fit_laws(table, resampling, np.random.default_rng(seed))
    return IsoflopFit(_profiles(table, kept), refusals, *laws, loss_law, near.noise, *boot, preset=preset)


def _from_scatter(table: ProfileTable, resampling: MinimaScatter | None, rng: np.random.Generator) -> _Laws:
    """The laws and their replicates from the minima's scatter about the laws."""
    params, tokens = (fit_optimum(table.budgets, near.log_best, near.log_best_sd) for near in table.near.values())
    inside = np.ones(len(table.budgets))
    for quantity, near in table.near.items():
        x = getattr(table, quantity)
        ends = (np.stack([x.min(1), x.max(1)]) - near.log_best) / near.log_best_sd
        inside = np.minimum(inside, np.diff(stdtr(near.freedom, ends), axis=0)[0])
    if resampling is None:
        return (params, tokens), (None, None), inside
    normal = rng.standard_normal((resampling.replicates, 2))
    shared = np.sqrt(rng.chisquare(params.freedom, resampling.replicates) / params.freedom)
    # A larger model at one budget sees fewer tokens.
    return (params, tokens), (params.draws(normal, shared), tokens.draws(-normal, shared)), inside


def _from_runs(table: ProfileTable, resampling: Resampling | Residuals | None, rng: np.random.Generator) -> _Laws:
    """The laws through all minima alike, with replicates from resampled runs or redrawn residuals."""
    laws = tuple(fit_power(table.budgets, np.exp(minima.log_best[0])) for minima in table.minima.values())
    if resampling is None:
        return laws, (None, None), np.ones(len(table.budgets))
    values, weight, kept = replicates(table, resampling, rng)
    boot = tuple(fit_power(table.budgets, each, weight) for each in values) if len(weight) else (None, None)
    return laws, boot, kept


def _profiles(table: ProfileTable, kept: np.ndarray) -> tuple[Profile, ...]:
    residuals, used = residuals_of(table)
    profiles = []
    for m, (budget, runs) in enumerate(table.members.items()):
        curves = [_drawn(table, quantity, m) for quantity in QUANTITIES]
        scatter = float(np.sqrt((residuals[m] ** 2).sum() / max(1, used[m].sum() - 3)))
        near = tuple(run for run, one in zip(runs, used[m], strict=False) if one)
        profiles.append(Profile(budget, runs, near, *curves, scatter, float(kept[m])))
    return tuple(profiles)


def _drawn(table: ProfileTable, quantity: str, m: int) -> Parabola:
    """The curve of profile m, which can be evaluated anywhere."""
    x, minima = getattr(table, quantity)[m, table.held[m]], table.minima[quantity]
    best, low, high = (float(np.exp(value)) for value in (minima.log_best[0, m], x.min(), x.max()))
    common = best, float(minima.lowest[0, m]), float(minima.curvature[0, m]), low, high
    if table.curve == "parabola":
        return Parabola(*common)
    if table.curve == "near":
        return Skewed(*common, table.near[quantity].skew)
    return Interpolated(*common, interpolant(x, table.loss[m, table.held[m]], np.ones(len(x))))
