"""What should a reader doubt in a set of fits, or in a prediction made from them?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from chinchilla_jax.scaling.fits.approach2.isoflop import IsoflopFit
from chinchilla_jax.scaling.fits.approach3.parametric import ParametricFit, suspects
from chinchilla_jax.scaling.predict.analysis import Analysis
from chinchilla_jax.scaling.predict.estimates import Estimate
from chinchilla_jax.scaling.predict.rollout import Rollout, last
from chinchilla_jax.scaling.read.repeats import noise_of_repeats
from chinchilla_jax.scaling.read.runs import Run

_FAR = 30.0  # times the largest budget; Hoffmann et al. extrapolate about 200-fold, and say so
_TOP, _LEANING = 0.7, 0.005  # share of the largest C that counts as largest; mean log residual there
# Medians outside these are slips of unit, not studies: IsoFLOP runs have D/N of 1 to 1000, C of 0.9 to 2 times 6 N D.
_USUAL_RATIO, _USUAL_COUNT = (0.1, 1e4), (0.6, 6.0)
_MISSED = 0.015  # relative loss error of the last rollout that deserves a warning
_SELDOM = 0.8  # how likely a minimum must be to lie inside the sizes tried; one on the rim has about 0.5
_SCATTERED = 0.02  # relative noise of a run beyond which runs of one setting are seldom seen to be
_OFF_BUDGET = 0.03
_BENT, _SURE = 0.001, 0.05  # minima this far off any one law per factor e of compute, with 95% certainty, bend
_SEEDS = 3  # degrees of freedom from which repeated runs tell the noise


def doubts(found: Analysis, runs: Sequence[Run]) -> tuple[str, ...]:
    """What is doubtful in the fits of the runs with role `isoflop`, whatever they are asked; a line each."""
    said = [f"envelope: {line}" for line in found.envelope.warnings] if found.envelope else []
    said += _units(runs)
    if found.isoflop:
        said += _profiles(found.isoflop)
    off = [run for run in runs if run.budget is not None and abs(run.flops / run.budget - 1.0) > _OFF_BUDGET]
    if off:
        said.append(
            f"{len(off)} runs spent more than 3% off their budget, the first {off[0].name}: "
            f"{off[0].flops:.3g} for {off[0].budget:.3g} FLOPs"
        )
    if found.parametric:
        said += misfits(found.parametric, runs) + _surface(found.parametric)
    return tuple(said)


def doubts_of_prediction(
    budget: float, runs: Sequence[Run], estimates: Mapping[str, Estimate], tried: Sequence[Rollout]
) -> tuple[str, ...]:
    """What is doubtful in going on from the runs to `budget` FLOPs: distance, D/N, rehearsals, and the cross-check.

    Args:
      tried: rehearsals of the larger budgets; the last one counts.
    """
    said = []
    ahead = budget / max(run.budget or run.flops for run in runs)
    if ahead < 1.0 / _FAR:
        said.append(f"the target is {ahead:.2g} of the largest budget fitted, far below the runs")
    if ahead > _FAR:
        said.append(f"the target is {ahead:.3g} times the largest budget fitted: no law was tested so far ahead")
    ratios = [run.tokens / run.params for run in runs]
    for name, estimate in estimates.items():
        if not min(ratios) <= estimate.tokens_per_param <= max(ratios):
            said.append(
                f"{name}: predicted D/N {estimate.tokens_per_param:.3g} lies outside the runs' range "
                f"{min(ratios):.3g} to {max(ratios):.3g}"
            )
    missed = [r for r in last(tried) if r.candidate == "isoflop" and abs(r.loss_error) > _MISSED]
    if missed and "isoflop" in estimates:
        said.append(
            f"isoflop missed the hidden largest budget by {missed[0].loss_error:+.1%} of the loss: the runs do not "
            "follow one law there, so expect the target to be missed by as much"
        )
    return tuple(said) + _cross_check(estimates)


def _cross_check(estimates: Mapping[str, Estimate]) -> tuple[str, ...]:
    """Approach 3 beside approach 2: it fits all runs with one form, so it leans where the form does not hold."""
    first, check = estimates.get("isoflop"), estimates.get("parametric")
    if first is None or check is None or "loss" not in first.intervals:
        return ()
    low, high = first.intervals["loss"][0.95]
    if low <= check.loss <= high:
        return ()
    return (
        f"approach 3 says {check.loss:.4f}, {check.loss / first.loss - 1.0:+.1%} from approach 2 and outside its 95% "
        "interval: one form for all runs does not hold here, or the minima do not follow one law",
    )


def misfits(surface: ParametricFit, runs: Sequence[Run]) -> list[str]:
    """Runs that look like slips, and a surface that is off as a whole where the compute is largest."""
    far = suspects(surface, runs)
    found = []
    if far:
        named = ", ".join(f"{run.name} (loss {run.loss:.4g}, {_relative(excess)})" for run, excess in far[:3])
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


def _relative(excess: float) -> str:
    return f"{excess:+.0%}" if excess < 3.0 else f"x{1.0 + excess:.3g}"


def _units(runs: Sequence[Run]) -> list[str]:
    ratio = float(np.median([run.tokens / run.params for run in runs]))
    counted = float(np.median([run.flops / (6 * run.params * run.tokens) for run in runs]))
    said = []
    if not _USUAL_RATIO[0] < ratio < _USUAL_RATIO[1]:
        said.append(f"half of the runs have D/N beyond {ratio:.3g}: are N and D in the same unit, and not swapped?")
    if not _USUAL_COUNT[0] < counted < _USUAL_COUNT[1]:
        said.append(f"C is {counted:.3g} times 6 N D in half of the runs: is it counted in the same units?")
    return said


def _profiles(fit: IsoflopFit) -> list[str]:
    said = [
        f"budget {profile.budget:.3g}: its minimum lies inside the sizes tried with a probability of only "
        f"{profile.kept_draws:.0%}; add sizes"
        for profile in fit.profiles
        if profile.kept_draws < _SELDOM
    ]
    bent = fit.loss_law.discrepancy(_SURE)
    if bent > _BENT:
        said.append(
            "the minima bend by more than the noise of their runs: they are off any E + k C^-g by "
            f"{bent:.2%} or more for every factor e of compute, so small budgets count for little; a recipe that suits "
            "some budgets better than others bends them"
        )
    seeds, freedom = noise_of_repeats(_repeats(fit))
    if freedom >= _SEEDS and fit.noise > 2.0 * seeds:
        said.append(
            f"profiles miss their runs by {fit.noise:.2%}, where runs that differ only in their seed differ by "
            f"{seeds:.2%}: the misfit is not noise but something that changes from size to size, such as heads or depth"
        )
    if max(fit.noise, fit.scatter) > _SCATTERED:
        said.append(
            f"runs scatter by {max(fit.noise, fit.scatter):.1%} about their profiles near the minima: are several "
            "settings mixed, or learning rates swept (--where, --best_per_cell)?"
        )
    return said


def _repeats(fit: IsoflopFit) -> Iterable[list[float]]:
    """Losses of the runs near the minima, by budget and size."""
    cells: dict[tuple[float, float, float], list[float]] = {}
    for profile in fit.profiles:
        for run in profile.near:
            cells.setdefault((profile.budget, run.params, run.tokens), []).append(run.loss)
    return cells.values()


def _surface(fit: ParametricFit) -> list[str]:
    said = []
    if fit.scatter > _SCATTERED:
        said.append(
            f"approach 3: runs scatter by {fit.scatter:.1%} about the surface, far beyond the noise of a training: are "
            "several settings mixed, or learning rates swept (--where, --best_per_cell)?"
        )
    if not fit.converged:
        said.append(f"approach 3 did not converge: gradient {fit.gradient:.2g}")
    if fit.agreement < 0.02:
        said.append(f"approach 3: only {fit.agreement:.1%} of the starts reached the best minimum")
    if fit.boot_kept < 0.9:
        said.append(f"approach 3: {1 - fit.boot_kept:.0%} of bootstrap resamples had no optimum and were left out")
    if fit.surface.E < 1e-3:
        said.append("approach 3: E went to zero; the runs do not show an irreducible loss yet")
    return said
