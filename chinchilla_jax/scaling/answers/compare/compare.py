"""How many times the reference's compute gives the same loss? The gain of each arm, at every budget and at a target.

The compute-equivalent gain of an arm at C is C' / C, where the reference needs C' for the loss that the arm reaches
with C. At a budget that both arms have, their minima there are compared, with the slope of the reference's frontier;
beyond them, and where an arm has no such budget, the frontiers' laws. Arms with a single budget are compared there,
size by size and seed by seed.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from chinchilla_jax.scaling.answers.compare import costs
from chinchilla_jax.scaling.answers.compare.cells import CellFrontiers, common_budget, draw_cells
from chinchilla_jax.scaling.answers.compare.costs import Cost, Costs
from chinchilla_jax.scaling.answers.compare.paired import Arm, Frontiers, arm_of, draw_frontiers, same_budgets
from chinchilla_jax.scaling.answers.compare.surfaces import SurfaceFrontiers, draw_surfaces
from chinchilla_jax.scaling.fits.resample import interval
from chinchilla_jax.scaling.read.runs import FitRefused, LoadedRuns, target_budget

DRAWS, _LEAST_DRAWS = 1000, 20
_FAR = 30.0  # times beyond an arm's budgets from which a warning says so
_LEVEL = 0.95
_ENOUGH = 3  # profiles from which minima are compared, as for the recommendation of `predict`
_SHARP = 0.9  # a correlation above it with few shared cells is luck
_Drawn = Frontiers | SurfaceFrontiers | CellFrontiers


@dataclasses.dataclass(frozen=True)
class Gain:
    """At `budget` FLOPs of the arm: `factor`, the gain, and `loss_difference` to the reference at the same C, in the
    unit of the losses, each with its central 95% interval; `better`, the probability that the arm's loss is lower;
    `basis`: `minima` of that budget in both arms, or `laws`."""

    budget: float
    factor: float
    factor_95: tuple[float, float]
    loss_difference: float
    loss_difference_95: tuple[float, float]
    better: float
    basis: str


@dataclasses.dataclass(frozen=True)
class Compared:
    """One arm. `budgets`: its gains at the budgets it has; `target`: that at the target, where `unpaired_95` is the
    interval of the gain if nothing were shared, `best` the probability that no arm has a lower loss, and `costs` the
    gain counted in FLOPs, tokens and chip-hours. Of its errors, `correlation` is that with the reference's over
    `shared` cells."""

    name: str
    source: str
    runs: int
    loss: float
    loss_95: tuple[float, float]
    budgets: tuple[Gain, ...]
    target: Gain
    unpaired_95: tuple[float, float]
    best: float
    costs: Costs
    correlation: float | None
    shared: int | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Arms against `reference`, itself the first of them, at `budget` FLOPs; all arms have runs up to `largest`.
    Along compute, at `flops` [G], for each arm its loss and its gain [3, G]: low, median and high."""

    reference: str
    budget: float
    largest: float
    loss_unit: str
    arms: tuple[Compared, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    flops: np.ndarray = dataclasses.field(compare=False)
    frontiers: Mapping[str, np.ndarray] = dataclasses.field(compare=False)
    gains: Mapping[str, np.ndarray] = dataclasses.field(compare=False)


def compare(
    arms: Mapping[str, LoadedRuns],
    reference: str | None = None,
    budget: float | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """The arms by name, two at least, against `reference` (by default the first), at `budget` FLOPs (by default that of
    the reference's held-out runs; where arms have one budget only, that).

    Raises:
      FitRefused: `arms` (fewer than two, or no such reference); `unit`, `conventions` or `validation` (arms whose
        losses or FLOPs cannot be compared); or an arm whose runs carry no fit, by name.
    """
    if draws < _LEAST_DRAWS:
        raise FitRefused("draws", f"{draws} draws: an interval needs {_LEAST_DRAWS} at least (--replicates)")
    if budget is not None and not 0.0 < budget < math.inf:
        raise FitRefused("budget", f"--budget={budget:g}: no number of FLOPs")
    names = _in_order(arms, reference)
    ordered = {name: arms[name] for name in names}
    _refuse_unlike(ordered)
    single = common_budget([loaded.role("isoflop") for loaded in ordered.values()])
    budget = budget or single or target_budget(ordered[names[0]])
    if not budget:
        raise FitRefused("no_budget", f"{names[0]}: no held-out budget to compare at; give --budget=FLOPS")
    drawn, unpaired = _draw(ordered, draws, seed, single)
    pricing = {name: costs.pricing(loaded) for name, loaded in ordered.items()}
    losses = np.array([drawn.loss(k, budget) for k in range(len(names))])
    compared = tuple(
        Compared(
            name=name,
            source=loaded.source,
            runs=len(loaded.role("isoflop")),
            loss=float(np.median(losses[k])),
            loss_95=interval(losses[k], _LEVEL),
            budgets=_at_budgets(drawn, k),
            target=_gain(drawn, k, budget),
            unpaired_95=_interval(np.log(_factors(unpaired, k, budget))) if k else (1.0, 1.0),
            best=float((losses.argmin(0) == k).mean()),
            costs=_costs(drawn, k, budget, pricing[names[0]], pricing[name]),
            correlation=None if isinstance(drawn, SurfaceFrontiers) else float(drawn.correlation[0, k]),
            shared=None if isinstance(drawn, SurfaceFrontiers) else int(drawn.shared[0, k]),
        )
        for k, (name, loaded) in enumerate(ordered.items())
    )
    smallest, largest = _range(ordered)
    flops = np.geomspace(smallest, max(budget, largest), 40)
    return Comparison(
        reference=names[0],
        budget=budget,
        largest=min(_range({name: loaded})[1] for name, loaded in ordered.items()),
        loss_unit=next(iter(ordered.values())).loss_unit,
        arms=compared,
        notes=_notes(drawn, compared, pricing, budget),
        warnings=tuple(_warnings(ordered, drawn, compared, budget)),
        flops=flops,
        frontiers={name: _band([drawn.loss(k, c) for c in flops]) for k, name in enumerate(names)},
        gains={name: np.exp(_band([np.log(_factors(drawn, k, c)) for c in flops])) for k, name in enumerate(names)},
    )


def _in_order(arms: Mapping[str, LoadedRuns], reference: str | None) -> list[str]:
    names = list(arms)
    if len(names) < 2:
        raise FitRefused("arms", f"{len(names)} arm to compare; give two or more, or --by=COLUMN of one table")
    if reference is None:
        return names
    if reference not in names:
        raise FitRefused("arms", f"--reference={reference}: the arms are {', '.join(names)}")
    return [reference, *(name for name in names if name != reference)]


def _refuse_unlike(arms: Mapping[str, LoadedRuns]) -> None:
    """Refuses arms whose losses or FLOPs are not of one kind."""
    (first, one), *others = arms.items()
    for name, other in others:
        if _unit(one) != _unit(other):
            raise FitRefused(
                "unit", f"losses of {first} are {one.loss_unit}, of {name} {other.loss_unit}: not comparable"
            )
        if _without_file(one.flops_counted, one) != _without_file(other.flops_counted, other):
            ways = f"{first} counts FLOPs as {one.convention}, {name} as {other.convention}"
            raise FitRefused("conventions", f"{ways}: read both alike with --columns")
        for key in one.validation.keys() & other.validation.keys():
            if one.validation[key] != other.validation[key]:
                values = f"{one.validation[key]!r} in {first}, {other.validation[key]!r} in {name}"
                raise FitRefused("validation", f"{key} is {values}: losses on other validation data do not compare")


def _unit(loaded: LoadedRuns) -> str:
    """`nats per token` or `bits per byte`, however that came about."""
    return re.split("[:,;]", loaded.loss_unit.removeprefix("taken as "))[0].strip()


def _without_file(text: str, loaded: LoadedRuns) -> str:
    return text.replace(pathlib.Path(loaded.source).name, "the table")


def _draw(arms: Mapping[str, LoadedRuns], draws: int, seed: int, single: float | None) -> tuple[_Drawn, _Drawn]:
    """Paired draws, and others as if nothing were shared. `single`: the budget of arms that have no other."""
    if single is not None:
        of_arms = [loaded.role("isoflop") for loaded in arms.values()]
        details = {name: values for loaded in arms.values() for name, values in loaded.details.items()}
        plain = {name: float(values["params_plain"]) for name, values in details.items() if "params_plain" in values}
        paired, alone = (draw_cells(of_arms, single, draws, seed, paired, plain) for paired in (True, False))
        return paired, alone
    profiles: list[Arm] = []
    for name, loaded in arms.items():
        try:
            profiles.append(arm_of(loaded.role("isoflop")))
        except FitRefused as refused:
            why = f"{name}: {refused}"
            break
    if len(profiles) == len(arms) and min(len(arm.budgets) for arm in profiles) >= _ENOUGH:
        return draw_frontiers(profiles, draws, seed), draw_frontiers(profiles, draws, seed, paired=False)
    why = why if len(profiles) < len(arms) else f"an arm has fewer than {_ENOUGH} profiles"
    try:
        runs = [loaded.role("isoflop") for loaded in arms.values()]
        drawn = draw_surfaces(runs, draws, seed)
    except FitRefused as refused:
        raise FitRefused(refused.reason, f"{why}; {refused}") from None
    apart = [np.random.default_rng(seed + k).permutation(np.size(drawn.surfaces[0].E)) for k in range(len(runs))]
    moved = tuple(
        dataclasses.replace(surface, **{key: values[order] for key, values in vars(surface).items()})
        for surface, order in zip(drawn.surfaces, apart, strict=True)
    )
    return drawn, dataclasses.replace(drawn, surfaces=moved, paired=False)


def _factors(drawn: _Drawn, arm: int, budget: float) -> np.ndarray:
    """[B]: the gain by the laws; exactly 1 of the reference."""
    return drawn.flops(0, drawn.loss(arm, budget)) / budget if arm else np.ones_like(drawn.loss(0, budget))


def _at_budgets(drawn: _Drawn, arm: int) -> tuple[Gain, ...]:
    """By minima where the reference has the same budget, else by laws. Surfaces have no budgets."""
    if not isinstance(drawn, Frontiers):
        return ()
    numbers, _ = same_budgets(drawn.arms)
    gains = []
    for m, budget in enumerate(drawn.arms[arm].budgets.tolist()):
        at = np.flatnonzero(numbers[0] == numbers[arm][m])
        if not len(at):
            gains.append(_gain(drawn, arm, budget))
            continue
        of_arm, of_reference = drawn.log_lowest[arm][:, m], drawn.log_lowest[0][:, at[0]]
        level = drawn.loss(0, budget) * np.exp(of_arm - of_reference)
        factors = drawn.flops(0, level) / budget if arm else np.ones_like(of_arm)
        gains.append(_described(budget, factors, np.exp(of_arm) - np.exp(of_reference), "minima"))
    return tuple(gains)


def _gain(drawn: _Drawn, arm: int, budget: float) -> Gain:
    difference = drawn.loss(arm, budget) - drawn.loss(0, budget)
    return _described(budget, _factors(drawn, arm, budget), difference, "laws")


def _described(budget: float, factors: np.ndarray, difference: np.ndarray, basis: str) -> Gain:
    logs = np.log(factors)
    better = float((difference < 0).mean() + 0.5 * (difference == 0).mean())
    median = float(np.exp(np.median(logs)))
    return Gain(
        budget, median, _interval(logs), float(np.median(difference)), interval(difference, _LEVEL), better, basis
    )


def _interval(logs: np.ndarray) -> tuple[float, float]:
    """Of a factor from its logarithms, some of which may be infinite: no quantile is a mean of two."""
    low, high = np.quantile(logs, [0.5 - 0.5 * _LEVEL, 0.5 + 0.5 * _LEVEL], method="closest_observation")
    return float(np.exp(low)), float(np.exp(high))


def _band(values: Sequence[np.ndarray]) -> np.ndarray:
    """[3, G]: low, median and high of draws [G, B]."""
    return np.quantile(np.array(values), [0.025, 0.5, 0.975], axis=1, method="closest_observation")


def _costs(drawn: _Drawn, arm: int, budget: float, of_reference: costs.Pricing, of_arm: costs.Pricing) -> Costs:
    """The gain in each kind of cost: what the reference pays for the arm's loss over what the arm pays."""
    matched = budget * _factors(drawn, arm, budget)
    params = drawn.params(arm, budget)
    with np.errstate(over="ignore", invalid="ignore"):
        of_params = drawn.params(0, np.where(np.isfinite(matched), matched, budget))
    gains: dict[str, Cost | None] = dict.fromkeys(costs.KINDS)
    for kind in costs.KINDS:
        paid, needed = of_arm.cost(kind, params, budget), of_reference.cost(kind, of_params, matched)
        if paid is not None and needed is not None:
            logs = np.log(np.where(np.isfinite(matched), needed / paid, np.inf))
            gains[kind] = Cost(float(np.exp(np.median(logs))), _interval(logs))
    return gains


def _range(arms: Mapping[str, LoadedRuns]) -> tuple[float, float]:
    flops = [run.budget or run.flops for loaded in arms.values() for run in loaded.role("isoflop")]
    return min(flops), max(flops)


def _notes(
    drawn: _Drawn, arms: Sequence[Compared], pricing: Mapping[str, costs.Pricing], budget: float
) -> tuple[str, ...]:
    gain = f"Gain: how many times the compute of {arms[0].name} gives the same loss"
    of_frontiers = (
        "At a budget of both arms their minima there are compared, elsewhere the laws. Losses are the lowest of a "
        "budget on average, not of one run"
    )
    lines = [gain if isinstance(drawn, CellFrontiers) else f"{gain}. {of_frontiers}"]
    for arm in arms[1:]:
        if arm.correlation is not None:
            half, alone = (0.5 * np.log(high / low) for low, high in (arm.target.factor_95, arm.unpaired_95))
            where = "" if isinstance(drawn, CellFrontiers) else " near the minima"
            lines.append(
                f"{arm.name} and {arms[0].name} share {arm.shared} cells{where}, where the errors of their "
                f"runs have a correlation of {arm.correlation:+.2f}: half-width of ln(gain) at the target {half:.3f}, "
                f"with nothing shared {alone:.3f}"
            )
    if isinstance(drawn, CellFrontiers):
        low, high = np.exp(drawn.ladder[[0, -1]])
        sizes = f"sizes of {arms[0].name} trained there too; it says what these sizes gain, not the lowest of a budget"
        lines.append(
            f"Arms have one budget, {drawn.budget:.3g} FLOPs: runs of the same size and seed are compared there. The "
            f"gain is read off the ladder from {low:.3g} to {high:.3g} FLOPs of the {sizes}. One run differs from "
            f"another of its kind by {drawn.noise:.2%}"
        )
    if isinstance(drawn, SurfaceFrontiers):
        how = "the same cells in each replicate" if drawn.paired else "each by itself, since they have other cells"
        lines.append(f"There are too few profiles for minima: surfaces (approach 3) are compared, resampled {how}")
    return (*lines, *costs.differences(pricing, float(np.median(drawn.params(0, budget)))))


def _warnings(arms: Mapping[str, LoadedRuns], drawn: _Drawn, compared: Sequence[Compared], budget: float) -> list[str]:
    lines = []
    (first, one), *others = arms.items()
    for name, other in others:
        columns = one.columns["loss"], other.columns["loss"]
        if columns[0] != columns[1]:
            lines.append(
                f"the loss is {columns[0]} in {first} and {columns[1]} in {name}: of the same validation data?"
            )
        if one.loss_unit.startswith("taken as") != other.loss_unit.startswith("taken as"):
            lines.append(
                f"whether the losses of {first} and {name} are in one unit is not stated: taken as {_unit(one)}"
            )
        if _without_file(one.params_count, one) != _without_file(other.params_count, other):
            lines.append(f"N is {one.params_count} in {first} and {other.params_count} in {name}")
    for arm in compared[1:]:
        if isinstance(drawn, Frontiers) and arm.correlation and arm.shared:
            few = arm.shared < len(drawn.arms[0].cells) / 2
            if few and abs(arm.correlation) > _SHARP:
                lines.append(f"{arm.name} shares {arm.shared} cells only: their correlation may be luck")
        if isinstance(drawn, CellFrontiers):
            low, high = np.exp(drawn.ladder[[0, -1]]) / drawn.budget
            if not low <= arm.target.factor <= high:
                beyond = f"beyond the ladder of {first} ({low:.3g} to {high:.3g} times its compute)"
                lines.append(f"the gain of {arm.name} is {beyond}: carried on along the ladder's last step")
        if not np.isfinite(arm.target.factor_95[1]):
            words = f"part of the draws of {arm.name} at the target lie below what {first} can reach with any compute"
            lines.append(f"{words}: the gain has no upper end")
    for name, loaded in arms.items():
        low, high = _range({name: loaded})
        if budget > _FAR * high:
            words = f"{budget / high:.3g} times the largest budget of {name}"
            lines.append(f"the target is {words}: no law was tested so far ahead")
        if budget < low / _FAR:
            lines.append(f"the target is {budget / low:.2g} of the smallest budget of {name}, far below its runs")
    return lines
