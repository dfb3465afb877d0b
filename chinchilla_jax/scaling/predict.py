"""Which model should the next budget train, what loss will it reach, and how sure is that?

The approaches answer side by side. Which of approaches 2 and 3 is recommended is decided by the data, by a rule fixed
in advance: the runs of the largest budget are hidden, each candidate predicts them from the rest (`rollout`), and the
candidate with the smallest score is taken. The score is the relative error of the minimum loss plus the relative loss
that training the predicted size instead of the best would have cost. Approach 1 is not a candidate: the loss of its
curves is the training loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from chinchilla_jax.scaling.analysis import Analysis, analyse
from chinchilla_jax.scaling.envelope import EnvelopeFit
from chinchilla_jax.scaling.estimates import Estimate, from_envelope, from_isoflop, from_parametric
from chinchilla_jax.scaling.flops import flops_of
from chinchilla_jax.scaling.isoflop import IsoflopFit
from chinchilla_jax.scaling.parametric import ParametricFit, suspects
from chinchilla_jax.scaling.rollout import Rollout, last, rollouts
from chinchilla_jax.scaling.runs import Run
from chinchilla_jax.scaling.surface import FlopsPerToken

_FAR = 30.0  # times the largest budget; Hoffmann et al. extrapolate about 200-fold, and say so
_TOP, _LEANING = 0.7, 0.005  # share of the largest C that counts as largest; mean log residual there
# Medians outside these are slips of unit, not studies: IsoFLOP runs have D/N of 1 to 1000, C of 0.9 to 2 times 6 N D.
_USUAL_RATIO, _USUAL_COUNT = (0.1, 1e4), (0.6, 6.0)
_MISSED = 0.015  # relative loss error of the last rollout that deserves a warning
_FEW_DRAWS = 0.5  # share of usable bootstrap draws below which a profile's interval deserves a warning


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer for `budget` FLOPs.

    `estimates` by approach (`envelope`, `isoflop`, `parametric`); `analysis` holds the fits behind them. `recommended`
    is a key of `estimates`, `why` the grounds. `tokens_at_budget` is what exactly spends the budget at the recommended
    N (approach 2 fits N and D apart, so its own D may miss the budget by a little). `flops_per` is training FLOPs per
    token, c in C = c N D or a function of N.
    """

    budget: float
    extrapolation: float
    estimates: Mapping[str, Estimate]
    recommended: str
    why: str
    tokens_at_budget: float
    rollouts: tuple[Rollout, ...]
    warnings: tuple[str, ...]
    analysis: Analysis
    flops_per: FlopsPerToken

    @property
    def best(self) -> Estimate:
        """The recommended estimate."""
        return self.estimates[self.recommended]

    @property
    def envelope(self) -> EnvelopeFit | None:
        """Approach 1, None where refused."""
        return self.analysis.envelope

    @property
    def isoflop(self) -> IsoflopFit | None:
        """Approach 2, None where refused."""
        return self.analysis.isoflop

    @property
    def parametric(self) -> ParametricFit | None:
        """Approach 3, None where refused."""
        return self.analysis.parametric

    @property
    def refused(self) -> Mapping[str, str]:
        """Why an estimate is missing, by approach."""
        return self.analysis.refused


def predict(
    runs: Sequence[Run],
    budget: float,
    *,
    preset: str = "corrected",
    replicates: int = 1000,
    seed: int = 0,
    flops_per: FlopsPerToken | None = None,
) -> Prediction:
    """Compute-optimal N, D and loss at `budget` FLOPs from the runs with role `isoflop`.

    Args:
      preset: of the fits and rollouts, see `analyse`.
      replicates: of the bootstrap, 0 for no intervals.
      flops_per: training FLOPs per token as a function of N (or c of c N D); unless given, from
        the fitted runs' N, D and C.

    Raises:
      FitRefused: `no_fit`, when neither approach 2 nor 3 can be fitted; the message has the reasons.
    """
    fits = analyse(runs, preset, replicates=replicates, seed=seed)
    fitted = [run for run in runs if run.role == "isoflop"]
    # Held-out runs stay out of this as well: the answer must not change once they are trained.
    c = flops_per if flops_per is not None else flops_of(fitted)
    tried = rollouts(fitted, fits.isoflop, c, preset) if fits.isoflop else ()
    score = {r.candidate: r.score for r in last(tried)}
    estimates = {}
    if fits.envelope:
        estimates["envelope"] = from_envelope(fits.envelope, budget, seed)
    if fits.isoflop:
        errors = {r.candidate: abs(r.loss_error) for r in last(tried)}
        offset = fits.isoflop.loss_offset is not None and (
            errors.get("isoflop+offset", np.inf) <= errors.get("isoflop+power", np.inf)
        )
        estimates["isoflop"] = from_isoflop(fits.isoflop, budget, "offset" if offset else "power", seed)
        score["isoflop"] = score.get("isoflop+offset" if offset else "isoflop+power", np.inf)
    if fits.parametric:
        estimates["parametric"] = from_parametric(fits.parametric, budget, c, seed)
    recommended, why = _choose(estimates, score, tried)
    params = estimates[recommended].params
    per_token = float(c(params)) if callable(c) else c * params
    extrapolation = budget / max(run.budget or run.flops for run in fitted)
    warnings = _warnings(fitted, fits, extrapolation, estimates)
    misses = [abs(r.loss_error) for r in last(tried) if r.candidate.startswith(recommended)]
    if misses and min(misses) > _MISSED:
        warnings += (
            f"{recommended} missed the hidden largest budget by {min(misses):.1%} of the loss: the runs do not follow "
            "one law there, so expect the target to be missed by as much",
        )
    return Prediction(
        budget, extrapolation, estimates, recommended, why, budget / per_token, tried, warnings, fits, c
    )


def misfits(surface: ParametricFit, runs: Sequence[Run]) -> list[str]:
    """Runs that look like slips, and a surface that is off as a whole where the compute is largest."""
    far = suspects(surface, runs)
    found = []
    if far:
        named = ", ".join(f"{run.name} (loss {run.loss:.4g}, {excess:+.0%})" for run, excess in far[:3])
        more = f" and {len(far) - 3} more" if len(far) > 3 else ""
        found.append(f"{len(far)} runs are far off all others: {named}{more}; they are fitted all the same: check them")
    top = [run for run in runs if run.flops > _TOP * max(run.flops for run in runs)]
    excess = [np.log(run.loss / float(surface.surface.loss(run.params, run.tokens))) for run in top]
    mean = float(np.mean(excess))
    if len(top) >= 4 and abs(mean) > max(_LEANING, 2.0 * surface.scatter / np.sqrt(len(top))):
        found.append(
            f"approach 3 is {-mean:+.1%} off on average at the largest compute: its form does not hold there, and its "
            "intervals, which suppose that it does, are too narrow"
        )
    return found


def _choose(
    estimates: Mapping[str, Estimate], score: Mapping[str, float], rollouts: Sequence[Rollout]
) -> tuple[str, str]:
    usable = [name for name in estimates if name != "envelope"]
    if len(usable) == 1:
        return usable[0], f"{usable[0]} is the only approach with a loss law that could be fitted"
    if not rollouts or "parametric" not in score:
        name = "parametric" if not rollouts else "isoflop"
        return name, f"{name} by default: too few budgets to test both by hiding the largest"
    name = "isoflop" if score["isoflop"] <= score["parametric"] else "parametric"
    return name, (
        f"{name} predicted the hidden largest budget best: score {score[name]:.3%} against "
        f"{max(score['isoflop'], score['parametric']):.3%} (relative loss error + cost of the size)"
    )


def _warnings(
    runs: Sequence[Run],
    fits: Analysis,
    extrapolation: float,
    estimates: Mapping[str, Estimate],
) -> tuple[str, ...]:
    isoflop, surface = fits.isoflop, fits.parametric
    found = [f"envelope: {line}" for line in fits.envelope.warnings] if fits.envelope else []
    ratios = [run.tokens / run.params for run in runs]
    typical, counted = float(np.median(ratios)), float(np.median([r.flops / (6 * r.params * r.tokens) for r in runs]))
    if not _USUAL_RATIO[0] < typical < _USUAL_RATIO[1]:
        found.append(f"half of the runs have D/N beyond {typical:.3g}: are N and D in the same unit, and not swapped?")
    if not _USUAL_COUNT[0] < counted < _USUAL_COUNT[1]:
        found.append(f"C is {counted:.3g} times 6 N D in half of the runs: is it counted in the same units?")
    if extrapolation < 1.0 / _FAR:
        found.append(f"the target is {extrapolation:.2g} of the largest budget fitted, far below the runs")
    if extrapolation > _FAR:
        found.append(f"the target is {extrapolation:.3g} times the largest budget fitted: the intervals are too narrow")
    for name, estimate in estimates.items():
        if not min(ratios) <= estimate.tokens_per_param <= max(ratios):
            found.append(
                f"{name}: predicted D/N {estimate.tokens_per_param:.3g} lies outside the runs' range "
                f"{min(ratios):.3g} to {max(ratios):.3g}"
            )
    for profile in isoflop.profiles if isoflop else ():
        if profile.kept_draws < _FEW_DRAWS:
            found.append(
                f"budget {profile.budget:.3g}: only {profile.kept_draws:.0%} of bootstrap draws have an interior "
                "minimum; add sizes"
            )
    if surface:
        found += misfits(surface, runs)
    off = [run for run in runs if run.budget is not None and abs(run.flops / run.budget - 1.0) > 0.03]
    if off:
        found.append(
            f"{len(off)} runs spent more than 3% off their budget, the first {off[0].name}: "
            f"{off[0].flops:.3g} for {off[0].budget:.3g} FLOPs"
        )
    if surface and not surface.converged:
        found.append(f"approach 3 did not converge: gradient {surface.gradient:.2g}")
    if surface and surface.agreement < 0.02:
        found.append(f"approach 3: only {surface.agreement:.1%} of the starts reached the best minimum")
    if surface and surface.boot_kept < 0.9:
        found.append(f"approach 3: {1 - surface.boot_kept:.0%} of bootstrap resamples had no optimum and were left out")
    if surface and surface.surface.E < 1e-3:
        found.append("approach 3: E went to zero; the runs do not show an irreducible loss yet")
    return tuple(found)
