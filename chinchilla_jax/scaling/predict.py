"""Which model should the next budget train, what loss will it reach, and how sure is that?

Approaches 2 and 3 answer side by side. Which of them is recommended is decided by the data, by a rule fixed in advance:
the runs of the largest budget are hidden, each candidate predicts them from the rest, and the candidate with the
smallest score is taken. The score is the relative error of the minimum loss plus the relative loss that training the
predicted size instead of the best would have cost, so a size error counts by what it costs: profiles are flat.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from chinchilla_jax.scaling.flops import flops_per_token
from chinchilla_jax.scaling.isoflop import IsoflopFit, fit_isoflop
from chinchilla_jax.scaling.parametric import ParametricFit, fit_parametric, paper_starts
from chinchilla_jax.scaling.resample import FULL, Resampling, interval
from chinchilla_jax.scaling.runs import FitRefused, Run
from chinchilla_jax.scaling.surface import FlopsPerToken

LEVELS = (0.8, 0.95)
# A ninth of the starts: every value along every axis still occurs, at a ninth of the time.
_REHEARSAL_STARTS = paper_starts()[::9]
_FAR = 30.0  # times the largest budget; Hoffmann et al. extrapolate about 200-fold, and say so
_FEW_DRAWS = 0.5  # share of usable bootstrap draws below which a profile's interval deserves a warning
_BELOW = 1.5  # a run without a budget counts as below a budget when this many times cheaper


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One approach's answer: N, D, D/N and the minimum loss (nats per token).

    `intervals[quantity][level]` = (low, high). Those of `loss` are for a single trained run: the bootstrap
    spread of the law plus the scatter of runs about it. `loss_law` names the form extrapolated.
    """

    approach: str
    params: float
    tokens: float
    tokens_per_param: float
    loss: float
    loss_law: str
    intervals: Mapping[str, Mapping[float, tuple[float, float]]]


@dataclasses.dataclass(frozen=True)
class Rollout:
    """How a candidate, fitted to the smaller budgets, predicted the largest. Errors are relative."""

    candidate: str
    budget: float
    predicted_params: float
    profile_params: float
    predicted_loss: float
    profile_loss: float
    loss_error: float
    size_cost: float

    @property
    def score(self) -> float:
        """|relative loss error| + relative loss given away by the predicted size."""
        return abs(self.loss_error) + self.size_cost


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer for `budget` FLOPs.

    `estimates` by approach (`isoflop`, `parametric`); `refused` gives the reason where one is missing. `recommended` is
    a key of `estimates`, `why` the grounds. `tokens_at_budget` is what exactly spends the budget at the recommended N
    (approach 2 fits N and D apart, so its own D may miss the budget by a little).
    """

    budget: float
    extrapolation: float
    estimates: Mapping[str, Estimate]
    refused: Mapping[str, str]
    recommended: str
    why: str
    tokens_at_budget: float
    rollouts: tuple[Rollout, ...]
    warnings: tuple[str, ...]
    isoflop: IsoflopFit | None
    parametric: ParametricFit | None

    @property
    def best(self) -> Estimate:
        """The recommended estimate."""
        return self.estimates[self.recommended]


def predict(
    runs: Sequence[Run],
    budget: float,
    *,
    resampling: Resampling | None = FULL,
    seed: int = 0,
    flops_per: FlopsPerToken | None = None,
) -> Prediction:
    """Compute-optimal N, D and loss at `budget` FLOPs from the runs with role `isoflop`.

    Args:
      flops_per: training FLOPs per token as a function of N (or c of c N D); unless given, from
        the fitted runs' N, D and C.

    Raises:
      FitRefused: `no_fit`, when neither approach can be fitted; the message has both reasons.
    """
    fitted = [run for run in runs if run.role == "isoflop"]
    if not fitted:
        raise FitRefused("no_fit", "no IsoFLOP run is finished yet: there is nothing to fit")
    # Held-out runs stay out of this as well: the answer must not change once they are trained.
    c = flops_per if flops_per is not None else flops_per_token(fitted)
    refused: dict[str, str] = {}
    isoflop = _try("isoflop", lambda: fit_isoflop(fitted, resampling=resampling, seed=seed), refused)
    surface = _try("parametric", lambda: fit_parametric(fitted, resampling=resampling, seed=seed), refused)
    if isoflop is None and surface is None:
        raise FitRefused("no_fit", "; ".join(f"{name}: {why}" for name, why in refused.items()))
    rollouts = _rollouts(fitted, isoflop, c) if isoflop else ()
    score = {r.candidate: r.score for r in rollouts}
    estimates = {}
    if isoflop:
        errors = {r.candidate: abs(r.loss_error) for r in rollouts}
        offset = isoflop.loss_offset is not None and (
            errors.get("isoflop+offset", np.inf) <= errors.get("isoflop+power", np.inf)
        )
        estimates["isoflop"] = _isoflop_estimate(isoflop, budget, "offset" if offset else "power", seed)
        score["isoflop"] = score.get("isoflop+offset" if offset else "isoflop+power", np.inf)
    if surface:
        estimates["parametric"] = _parametric_estimate(surface, budget, c, seed)
    recommended, why = _choose(estimates, score, rollouts)
    params = estimates[recommended].params
    per_token = float(c(params)) if callable(c) else c * params
    largest = max(run.budget or run.flops for run in fitted)
    return Prediction(
        budget,
        budget / largest,
        estimates,
        refused,
        recommended,
        why,
        budget / per_token,
        rollouts,
        _warnings(fitted, isoflop, surface, budget / largest, estimates),
        isoflop,
        surface,
    )


def _try(name: str, fit, refused: dict[str, str]):
    try:
        return fit()
    except FitRefused as refusal:
        refused[name] = str(refusal)
        return None


def _intervals(**samples: np.ndarray) -> dict[str, dict[float, tuple[float, float]]]:
    return {name: {level: interval(values, level) for level in LEVELS} for name, values in samples.items()}


def _isoflop_estimate(fit: IsoflopFit, budget: float, loss_law: str, seed: int) -> Estimate:
    law, boot = fit.loss_power, fit.boot_loss_power
    if loss_law == "offset":
        law, boot = fit.loss_offset, fit.boot_loss_offset
    params, tokens = float(fit.params_law.at(budget)), float(fit.tokens_law.at(budget))
    intervals = {}
    if boot is not None:
        n, d = fit.boot_params.at(budget), fit.boot_tokens.at(budget)
        noise = 1.0 + fit.scatter * np.random.default_rng(seed).standard_normal(n.shape)
        intervals = _intervals(params=n, tokens=d, tokens_per_param=d / n, loss=boot.at(budget) * noise)
    form = "E + k C^-g" if loss_law == "offset" else "k C^-g"
    return Estimate("isoflop", params, tokens, tokens / params, float(law.at(budget)), form, intervals)


def _parametric_estimate(fit: ParametricFit, budget: float, c: FlopsPerToken, seed: int) -> Estimate:
    params, tokens, loss = (float(v) for v in fit.surface.optimum(budget, c))
    intervals = {}
    if fit.boot is not None:
        n, d, low = fit.boot.optimum(budget, c)
        noise = np.exp(fit.scatter * np.random.default_rng(seed).standard_normal(n.shape))
        intervals = _intervals(params=n, tokens=d, tokens_per_param=d / n, loss=low * noise)
    return Estimate("parametric", params, tokens, tokens / params, loss, "E + A/N^alpha + B/D^beta", intervals)


def _rollouts(runs: Sequence[Run], full: IsoflopFit, c: FlopsPerToken) -> tuple[Rollout, ...]:
    """Each candidate's prediction of the largest usable profile from the runs below it; () with under 3 profiles."""
    if len(full.profiles) < 3:
        return ()
    target = full.profiles[-1]
    below = [r for r in runs if (r.budget or r.flops * _BELOW) < target.budget]
    candidates: dict[str, tuple[float, float]] = {}
    ignored: dict[str, str] = {}
    isoflop = _try("isoflop", lambda: fit_isoflop(below, resampling=None), ignored)
    if isoflop:
        params = float(isoflop.params_law.at(target.budget))
        candidates["isoflop+power"] = params, float(isoflop.loss_power.at(target.budget))
        if isoflop.loss_offset is not None:
            candidates["isoflop+offset"] = params, float(isoflop.loss_offset.at(target.budget))
    surface = _try("parametric", lambda: fit_parametric(below, starts=_REHEARSAL_STARTS, resampling=None), ignored)
    if surface:
        params, _, loss = surface.surface.optimum(target.budget, c)
        candidates["parametric"] = float(params), float(loss)
    best = target.params
    return tuple(
        Rollout(
            name,
            target.budget,
            params,
            best.best,
            loss,
            best.lowest,
            loss / best.lowest - 1.0,
            float(best.at(params)) / best.lowest - 1.0,
        )
        for name, (params, loss) in candidates.items()
    )


def _choose(
    estimates: Mapping[str, Estimate], score: Mapping[str, float], rollouts: Sequence[Rollout]
) -> tuple[str, str]:
    if len(estimates) == 1:
        (only,) = estimates
        return only, f"{only} is the only approach that could be fitted"
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
    isoflop: IsoflopFit | None,
    surface: ParametricFit | None,
    extrapolation: float,
    estimates: Mapping[str, Estimate],
) -> tuple[str, ...]:
    found = []
    ratios = [run.tokens / run.params for run in runs]
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
