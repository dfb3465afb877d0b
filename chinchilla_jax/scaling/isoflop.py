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
from scipy.interpolate import Akima1DInterpolator
from scipy.special import stdtr

from chinchilla_jax.scaling.frontier import PowerLaw, fit_power
from chinchilla_jax.scaling.loss_law import AveragedLaw, fit_loss_law
from chinchilla_jax.scaling.near_minimum import MISFIT, NearFit, fit_near
from chinchilla_jax.scaling.optimum_law import fit_optimum
from chinchilla_jax.scaling.profile import Interpolated, Minima, Parabola, Skewed, akima, least_noise, parabolas
from chinchilla_jax.scaling.resample import PAPER as PAPER_RESAMPLING
from chinchilla_jax.scaling.resample import MinimaScatter, Resampling, Residuals
from chinchilla_jax.scaling.runs import FitRefused, Run

MIN_POINTS = 4
_FAR_BELOW = 0.8  # of the lowest loss: no profile dips so far between its runs
_WORDS = ("params", "tokens")


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
        "curve fits all sizes, and runs far away pull the minimum by up to 4%",
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
class Refusal:
    """A budget left out. `reason` is `few_points`, `downward`, `edge`, `same_size` or `far_off`."""

    budget: float
    reason: str
    message: str


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
            _check(budget, mine)
            members[budget] = mine
        except FitRefused as refusal:
            refusals.append(Refusal(budget, refusal.reason, str(refusal)))
    while True:  # A profile refused takes its part of the skew with it.
        if len(members) < 2:
            why = "; ".join(r.message for r in refusals) or f"the only budget is {budgets[0]:.3g} FLOPs"
            raise FitRefused("few_budgets", f"approach 2 needs two usable profiles, got {len(members)}: {why}")
        table = _Table(members)
        bad = [_downward(budget, m, table) for m, budget in enumerate(members)]
        if not any(bad):
            near = {word: table.near(word) for word in _WORDS}
            minima = {word: _minima(preset.curve, table, word, near[word]) for word in _WORDS}
            bad = [_refusal(budget, m, minima, table) for m, budget in enumerate(members)]
        if not any(bad):
            break
        refusals += [refusal for refusal in bad if refusal]
        members = {b: mine for (b, mine), refusal in zip(members.items(), bad, strict=True) if not refusal}
    refusals = tuple(sorted(refusals, key=lambda refusal: refusal.budget))
    noise = near["params"].noise, near["params"].freedom
    loss_law = fit_loss_law(table.budgets, minima["params"].lowest[0], near["params"].covariance, *noise)
    find = _from_scatter if preset.curve == "near" else _from_runs
    laws, boot, kept = find(preset.curve, table, minima, near, resampling, np.random.default_rng(seed))
    profiles = _profiles(preset.curve, members, table, minima, near["params"], kept)
    return IsoflopFit(profiles, refusals, *laws, loss_law, noise[0], *boot, preset=preset)


def _from_scatter(
    _: str,
    table: _Table,
    minima: dict[str, Minima],
    near: dict[str, NearFit],
    resampling: MinimaScatter | None,
    rng: np.random.Generator,
) -> tuple[tuple[PowerLaw, PowerLaw], tuple[PowerLaw | None, PowerLaw | None], np.ndarray]:
    """From the minima's scatter: laws of N* and D*, their replicates, and [M] how likely each minimum is interior."""
    params, tokens = (fit_optimum(table.budgets, near[w].log_best, near[w].log_best_sd) for w in _WORDS)
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
    table: _Table,
    minima: dict[str, Minima],
    near: dict[str, NearFit],
    resampling: Resampling | Residuals | None,
    rng: np.random.Generator,
) -> tuple[tuple[PowerLaw, PowerLaw], tuple[PowerLaw | None, PowerLaw | None], np.ndarray]:
    """The same through all minima alike, with replicates from resampled runs or redrawn residuals."""
    best = np.exp(minima["params"].log_best[0]), np.exp(minima["tokens"].log_best[0])
    laws = tuple(fit_power(table.budgets, values) for values in best)
    if resampling is None:
        return laws, (None, None), np.ones(len(table.budgets))
    values, kept = _replicates(curve, table, near, resampling, rng)
    if values is None:
        return laws, (None, None), kept
    *drawn, weight = values
    return laws, tuple(fit_power(table.budgets, each, weight) for each in drawn), kept


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

    def near(self, word: str) -> NearFit:
        """Profiles by the runs near their minima, against ln N (`params`) or ln D (`tokens`)."""
        return fit_near(getattr(self, word), self.loss, self.held, np.log(self.budgets))

    def range(self, word: str) -> tuple[np.ndarray, np.ndarray]:
        """The smallest and the largest ln N or ln D tried at each budget."""
        x = getattr(self, word)
        return x.min(1), x.max(1)


def _check(budget: float, runs: Sequence[Run]) -> None:
    label = f"budget {budget:.3g} FLOPs"
    if len(runs) < MIN_POINTS:
        raise FitRefused("few_points", f"{label}: {len(runs)} runs; a profile needs at least {MIN_POINTS}")
    for word, values in (("parameters", {r.params for r in runs}), ("tokens", {r.tokens for r in runs})):
        if len(values) < MIN_POINTS:
            raise FitRefused("same_size", f"{label}: {len(values)} distinct {word}; needs {MIN_POINTS} sizes")


def _downward(budget: float, m: int, table: _Table) -> Refusal | None:
    for word, name in zip(_WORDS, ("parameters", "tokens"), strict=True):
        x = getattr(table, word)
        if not parabolas(x, table.loss[None], table.held[None].astype(float), table.held).curvature[0, m] > 0:
            why = f"the parabola in log {name} opens downward; add sizes on both sides or repeat noisy runs"
            return Refusal(budget, "downward", f"budget {budget:.3g} FLOPs: {why}")
    return None


def _refusal(budget: float, m: int, minima: dict[str, Minima], table: _Table) -> Refusal | None:
    label = f"budget {budget:.3g} FLOPs"
    for word, found in minima.items():
        name = "parameters" if word == "params" else "tokens"
        x = getattr(table, word)[None]
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
    near: NearFit,
    loss: np.ndarray | None = None,
    weight: np.ndarray | None = None,
) -> Minima:
    """Curves in ln N (`params`) or ln D (`tokens`) for losses or weights [B, M, n]; by default the data, B = 1."""
    x, held = getattr(table, word), table.held
    if curve == "near":
        low, high = table.range(word)
        lowest = np.exp(near.log_lowest)
        inside = (near.log_best > low) & (near.log_best < high)
        rows = near.log_best, lowest, near.curvature * lowest, inside
        return Minima(*(values[None] for values in rows), np.array([near.skew]), near.fitted[None])
    loss = table.loss[None] if loss is None else loss
    weight = held[None].astype(float) if weight is None else weight
    return (parabolas if curve == "parabola" else akima)(x, loss, weight, held)


def _residuals(curve: str, table: _Table, minima: Minima, near: NearFit) -> tuple[np.ndarray, np.ndarray]:
    """Relative residuals [M, n] about the parabolas or, of the runs near the minima, about the curves there; and which
    runs have one."""
    fitted, used = (minima.fitted[0], table.held) if curve == "parabola" else (near.fitted, near.near)
    residuals = np.where(used, table.loss / np.where(used, fitted, 1.0) - 1.0, 0.0)
    if curve != "parabola":  # what the curve is known to miss farther up is no noise
        excess = near.fitted / near.fitted.min(1, keepdims=True) - 1.0
        residuals = residuals / np.sqrt(1.0 + (MISFIT * excess / near.noise) ** 2)
    return residuals, used


def _replicates(
    curve: str,
    table: _Table,
    near: dict[str, NearFit],
    resampling: Resampling | Residuals,
    rng: np.random.Generator,
) -> tuple[tuple[np.ndarray, ...] | None, np.ndarray]:
    """N*, D* and weight (0 or 1) of the replicates, each [B, M], or None where no replicate has enough usable budgets;
    and [M] the share of draws with an interior minimum.
    """
    held = table.held
    loss, weight = table.loss[None], held[None].astype(float)
    if isinstance(resampling, Residuals):
        minima = _minima(curve, table, "params", near["params"])
        residuals, used = _residuals(curve, table, minima, near["params"])
        drawn, freedom = _unleveraged(table, residuals, used)
        if curve != "parabola":  # an interpolant has no residuals of its own
            freedom = near["params"].freedom
            drawn = drawn * near["params"].noise / max(1e-300, float(np.sqrt((drawn**2).mean())))
        loss = loss * (1.0 + resampling.draw(drawn, freedom, held.shape, rng) * held)
    else:
        weight = np.zeros((resampling.replicates, *held.shape))
        for m, mine in enumerate(held):
            weight[:, m, mine] = resampling.weights(int(mine.sum()), rng)
    found = [_minima(curve, table, word, near[word], loss, weight) for word in _WORDS]
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.exp(np.stack([each.log_best for each in found]))
    good = found[0].inside & found[1].inside
    # A law needs two budgets; of three or more, one without a minimum may be left out.
    whole = np.flatnonzero(good.sum(1) >= min(3, len(held)))
    if not len(whole):
        return None, good.mean(0)
    if len(whole) < len(good):
        rows = np.where(good.sum(1) >= min(3, len(held)), np.arange(len(good)), rng.choice(whole, len(good)))
        values, good = values[:, rows], good[rows]
    return (*np.where(good, values, 1.0), good.astype(float)), good.mean(0)


def _unleveraged(table: _Table, residuals: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, float]:
    """Residuals as large as the noise: divided by sqrt(1 - leverage) of their profile's three constants, and scaled to
    their degrees of freedom, which come second."""
    spared = np.ones(used.shape)
    for m, mine in enumerate(used):
        x = table.params[m, mine]
        q, _ = np.linalg.qr(np.vander((x - x.mean()) / x.std(), 3))
        spared[m, mine] = np.sqrt(np.maximum(1.0 - (q * q).sum(1), 0.05))
    freedom = float((used.sum(1) - 3).clip(0).sum())
    drawn = residuals[used] / spared[used]
    size = max(1e-300, float(np.sqrt((drawn**2).mean())))
    return drawn * least_noise(residuals, freedom) / size, max(1.0, freedom)


def _profiles(
    curve: str,
    members: dict[float, tuple[Run, ...]],
    table: _Table,
    minima: dict[str, Minima],
    near: NearFit,
    kept: np.ndarray,
) -> tuple[Profile, ...]:
    residuals, used = _residuals(curve, table, minima["params"], near)
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
                knots, size = np.unique(x, return_inverse=True)
                mean = np.bincount(size, table.loss[m, table.held[m]]) / np.bincount(size)
                curves[word] = Interpolated(*common, Akima1DInterpolator(knots, mean))
        scatter = float(np.sqrt((residuals[m] ** 2).sum() / max(1, used[m].sum() - 3)))
        fitted = tuple(run for run, one in zip(runs, used[m], strict=False) if one)
        profiles.append(Profile(budget, runs, fitted, curves["params"], curves["tokens"], scatter, float(kept[m])))
    return tuple(profiles)
