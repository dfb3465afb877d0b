"""What should a reader doubt in a set of fits, or in a prediction made from them?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from chinchilla_jax.scaling.fits.approach2.isoflop import IsoflopFit
from chinchilla_jax.scaling.fits.approach3.parametric import ParametricFit, suspects
from chinchilla_jax.scaling.predict.analysis import Analysis
from chinchilla_jax.scaling.predict.estimates import Estimate, Rollout
from chinchilla_jax.scaling.read.runs import Run, noise_of_repeats

_FAR = 30.0  # times the largest budget; Hoffmann et al. extrapolate about 200-fold, and say so
_TOP, _LEANING = 0.7, 0.005  # share of the largest C that counts as largest; mean log residual there
# Medians outside these are slips of unit, not studies: IsoFLOP runs have D/N of 1 to 1000, C of 0.9 to 2 times 6 N D.
_USUAL_RATIO, _USUAL_COUNT = (0.1, 1e4), (0.6, 6.0)
_MISSED = 0.015  # relative loss error of the last rollout that deserves a warning
_SELDOM = 0.8  # least probability that a minimum lies inside the sizes tried; at the edge it is about 0.5
_SCATTERED = 0.02  # relative noise of a run; runs of one setting seldom have more
_OFF_BUDGET = 0.03
_BENT = 0.001  # minima bend if they are this far off any one law per factor e of compute,
_SURE = 0.05  # with 95% certainty
_SEEDS = 3  # degrees of freedom from which repeated runs tell the noise
_MIXED = "are several settings mixed, or learning rates swept (--where, --best_per_cell)?"


def doubts(fits: Analysis) -> tuple[str, ...]:
    """What is doubtful in the fits, whatever is asked of them; a line each."""
    lines = [f"envelope: {line}" for line in fits.envelope.warnings] if fits.envelope else []
    lines += [*_units(fits.runs), *(_profiles(fits.isoflop) if fits.isoflop else ())]
    off = [run for run in fits.runs if run.budget is not None and abs(run.flops / run.budget - 1.0) > _OFF_BUDGET]
    if off:
        first = f"{off[0].name}: {off[0].flops:.3g} for {off[0].budget:.3g} FLOPs"
        lines.append(f"{len(off)} runs spent more than 3% off their budget, the first {first}")
    if fits.parametric:
        lines += misfits(fits.parametric, fits.runs) + _surface(fits.parametric)
    return tuple(lines)


def doubts_of_prediction(
    budget: float, runs: Sequence[Run], estimates: Mapping[str, Estimate], rollouts: Sequence[Rollout]
) -> tuple[str, ...]:
    """What is doubtful in going on from the runs to `budget` FLOPs: distance, D/N, rollouts, and the cross-check."""
    lines = []
    ahead = budget / max(run.budget or run.flops for run in runs)
    if ahead < 1.0 / _FAR:
        lines.append(f"the target is {ahead:.2g} of the largest budget fitted, far below the runs")
    if ahead > _FAR:
        lines.append(f"the target is {ahead:.3g} times the largest budget fitted: no law was tested so far ahead")
    ratios = sorted(run.tokens / run.params for run in runs)
    for name, estimate in estimates.items():
        if not ratios[0] <= estimate.tokens_per_param <= ratios[-1]:
            tried = f"{ratios[0]:.3g} to {ratios[-1]:.3g}"
            lines.append(f"{name}: predicted D/N {estimate.tokens_per_param:.3g} lies outside the runs' range {tried}")
    if "isoflop" not in estimates:
        return tuple(lines)
    for rollout in rollouts:
        last = rollout.candidate == "isoflop" and rollout.budget == rollouts[-1].budget
        if last and abs(rollout.loss_error) > _MISSED:
            lines.append(
                f"isoflop missed the hidden largest budget by {rollout.loss_error:+.1%} of the loss: the runs do not "
                "follow one law there, so expect the target to be missed by as much"
            )
    return (*lines, *_cross_check(estimates["isoflop"], estimates.get("parametric")))


def _cross_check(first: Estimate, check: Estimate | None) -> list[str]:
    """Approach 3 beside approach 2: it fits all runs with one form, so it leans where the form does not hold."""
    low, high = first.intervals.get("loss", {}).get(0.95, (-np.inf, np.inf))
    if check is None or low <= check.loss <= high:
        return []
    return [
        f"approach 3 says {check.loss:.4f}, {check.loss / first.loss - 1.0:+.1%} from approach 2 and outside its 95% "
        "interval: one form for all runs does not hold here, or the minima do not follow one law"
    ]


def misfits(fit: ParametricFit, runs: Sequence[Run]) -> list[str]:
    """Runs that look like slips, and a surface that is off as a whole where the compute is largest."""
    lines = []
    if far := suspects(fit, runs):
        above = [f"{excess:+.0%}" if excess < 3.0 else f"x{1.0 + excess:.3g}" for _, excess in far]
        named = ", ".join(
            f"{run.name} (loss {run.loss:.4g}, {how})" for (run, _), how in zip(far[:3], above, strict=False)
        )
        more = f" and {len(far) - 3} more" if len(far) > 3 else ""
        lines.append(f"{len(far)} runs are far off all others: {named}{more}; they are fitted all the same: check them")
    top = [run for run in runs if run.flops > _TOP * max(run.flops for run in runs)]
    mean = float(np.mean([np.log(run.loss / float(fit.surface.loss(run.params, run.tokens))) for run in top]))
    if len(top) >= 4 and abs(mean) > max(_LEANING, 2.0 * fit.scatter / np.sqrt(len(top))):
        lines.append(
            f"approach 3 is {-mean:+.1%} off on average at the largest compute: its form does not hold there, and its "
            "intervals, which suppose that it does, are too narrow"
        )
    return lines


def _units(runs: Sequence[Run]) -> list[str]:
    ratio = float(np.median([run.tokens / run.params for run in runs]))
    counted = float(np.median([run.flops / (6 * run.params * run.tokens) for run in runs]))
    lines = []
    if not _USUAL_RATIO[0] < ratio < _USUAL_RATIO[1]:
        lines.append(f"half of the runs have D/N beyond {ratio:.3g}: are N and D in the same unit, and not swapped?")
    if not _USUAL_COUNT[0] < counted < _USUAL_COUNT[1]:
        lines.append(f"C is {counted:.3g} times 6 N D in half of the runs: is it counted in the same units?")
    return lines


def _profiles(fit: IsoflopFit) -> list[str]:
    inside = "its minimum lies inside the sizes tried with a probability of only"
    seldom = [profile for profile in fit.profiles if profile.kept_draws < _SELDOM]
    lines = [f"budget {profile.budget:.3g}: {inside} {profile.kept_draws:.0%}; add sizes" for profile in seldom]
    bent = fit.loss_law.discrepancy(_SURE)
    if bent > _BENT:
        lines.append(
            "the minima bend by more than the noise of their runs: they are off any E + k C^-g by "
            f"{bent:.2%} or more for every factor e of compute, so small budgets count for little; a recipe that suits "
            "some budgets better than others bends them"
        )
    cells: dict[tuple[float, float, float], list[float]] = {}
    for profile in fit.profiles:
        for run in profile.near:
            cells.setdefault((profile.budget, run.params, run.tokens), []).append(run.loss)
    seeds, freedom = noise_of_repeats(cells.values())
    if freedom >= _SEEDS and fit.noise > 2.0 * seeds:
        lines.append(
            f"profiles miss their runs by {fit.noise:.2%}, where runs that differ only in their seed differ by "
            f"{seeds:.2%}: the misfit is not noise but something that changes from size to size, such as heads or depth"
        )
    scatter = max(fit.noise, fit.scatter)
    if scatter > _SCATTERED:
        lines.append(f"runs scatter by {scatter:.1%} about their profiles near the minima: {_MIXED}")
    return lines


def _surface(fit: ParametricFit) -> list[str]:
    scattered = f"runs scatter by {fit.scatter:.1%} about the surface, far beyond the noise of a training: {_MIXED}"
    lost = f"{1 - fit.boot_kept:.0%} of bootstrap resamples had no optimum and were left out"
    doubtful = {
        f": the runs do not determine its constants: {fit.known.why}": not fit.known.determined,
        f": {scattered}": fit.scatter > _SCATTERED,
        f" did not converge: gradient {fit.gradient:.2g}": not fit.converged,
        f": only {fit.agreement:.1%} of the starts reached the best minimum": fit.agreement < 0.02,
        f": {lost}": fit.boot_kept < 0.9,
        ": E went to zero; the runs do not show an irreducible loss yet": fit.surface.E < 1e-3,
    }
    return [f"approach 3{line}" for line, doubted in doubtful.items() if doubted]
