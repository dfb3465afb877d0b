"""Which runs does a study need, and what will they cost?

For every budget C the ladder's sizes around the guessed optimum N*(C) (`study.guess`) are trained on D = C / (FLOPs per
token) tokens, rounded to whole steps, with a schedule whose horizon is exactly D: each run by itself, or as branches of
one trunk per size (`study.schedule`), and with as many seeds as `study.seeds` says. FLOPs are counted by the ledger
under `study.convention`.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence

import chinchilla_jax
from chinchilla_jax.base.revision import git_revision
from chinchilla_jax.config import ConfigError, RunConfig
from chinchilla_jax.study import ladder as ladders
from chinchilla_jax.study.cell import OffBudget, matched, replicate, with_seed
from chinchilla_jax.study.folder import (
    MANIFEST,
    VERIFICATION,
    Manifest,
    PlannedRun,
    read_manifest,
    training_order,
    write_manifest,
)
from chinchilla_jax.study.guess import guess
from chinchilla_jax.study.recipe import read_recipe
from chinchilla_jax.study.trunk import TRUNK, check_schedule, with_branches

SIDE = 3  # sizes wanted on each side of the guessed optimum
HELD_OUT = {"predicted": 1.0, "half": 0.5, "double": 2.0}  # roles of the held-out runs, N over the predicted one


def plan(config: RunConfig) -> Manifest:
    """The manifest of the study `config.study`, whose template is the rest of `config`.

    Raises:
      ConfigError: no study, a batch that changes inside runs, or a budget without three sizes on each side.
    """
    study = config.study
    if study is None:
        raise ConfigError("study", "the config has no study section; start from configs/isoflop.py")
    if config.train.double_batch_at:
        raise ConfigError("train.double_batch_at", "the runs of a study keep their batch size: set it to 0")
    if study.schedule == "trunk":
        check_schedule(config)
        if len(set(study.seeds)) > 1:
            # A trunk's rate and warm-up follow from the budgets it serves, so a seed less would be another recipe.
            raise ConfigError("study.seeds", f"{study.seeds}: study.schedule=trunk trains a size for all budgets at "
                              f"once; give one number, study.seeds=({max(study.seeds)},), or take "
                              "study.schedule=matched")  # fmt: skip
    guessed = guess(config)
    budgets = sorted(study.budgets)
    optima = {budget: guessed.params(budget) for budget in budgets}
    rungs = ladders.ladder(config, list(optima.values()))
    cells = [(budget, rung) for budget in budgets for rung in ladders.around(rungs, optima[budget], study.sizes)]
    runs, dropped = (_on_trunks if study.schedule == "trunk" else _matched)(config, cells)
    for budget in budgets:
        made = [run for run in runs if run.budget == budget and run.role == "isoflop"]
        _check_sides(config, budget, optima[budget], made, dropped, rungs)
    header = manifest_header(config, "isoflop") | {
        "dropped": dropped,
        "guess": {"provenance": guessed.provenance, "params": [[budget, optima[budget]] for budget in budgets]},
    }
    return Manifest(header, _with_unique_names(runs, config))


def _matched(
    config: RunConfig, cells: Sequence[tuple[float, ladders.Rung]]
) -> tuple[list[PlannedRun], list[dict]]:  # fmt: skip
    """A run for every budget, rung and seed, and what had to be dropped."""
    runs, dropped = [], []
    for budget, rung in cells:
        try:
            run = matched(config, rung.model, budget, "isoflop", _prefix(budget))
        except OffBudget as error:
            dropped.append({"budget": budget, "params": rung.params, "reason": str(error)})
            continue
        runs += [run, *(replicate(run, more) for more in range(1, seeds_at(config, budget)))]
    return runs, dropped


def _on_trunks(
    config: RunConfig, cells: Sequence[tuple[float, ladders.Rung]]
) -> tuple[list[PlannedRun], list[dict]]:  # fmt: skip
    """The same as branches: rung after rung, seed after seed, each trunk before its branches."""
    runs, dropped = [], []
    for rung in sorted({rung for _, rung in cells}, key=lambda rung: rung.params):
        budgets = [budget for budget, other in cells if other == rung]
        for seed in range(config.study.seeds[0]):
            seeded = with_seed(config, seed)
            more, refused = with_branches(seeded, rung.model, budgets, {b: _prefix(b) for b in budgets})
            runs += more
        dropped += [{"budget": budget, "params": rung.params, "reason": why} for budget, why in refused.items()]
    return runs, dropped


def verification(study_dir: pathlib.Path, predicted_params: float) -> Manifest:
    """Writes `verification.jsonl`: the predicted size, half and double of it, at the held-out budget.

    The predicted size is trained with `study.holdout_seeds` seeds. The budget is `study.holdout_factor` times the
    largest of the study. Shapes are the family's nearest to these sizes, at any fine width and depth, not rungs of the
    ladder.

    Args:
      predicted_params: total N the study's fit predicts for that budget.

    Raises:
      ConfigError: the budget buys too few steps at one of the sizes.
      StudyError: another prediction is in place already.
    """
    study_dir = pathlib.Path(study_dir)
    first = read_manifest(study_dir / MANIFEST)
    config = first.template()
    budget = holdout_budget(config)
    runs = []
    for role, factor in HELD_OUT.items():
        rung = ladders.nearest(config.model, factor * predicted_params, config.study.aspect_ratio, exact=True,
                               fixed_depth=config.study.ladder == "width")  # fmt: skip
        try:
            run = matched(config, rung.model, budget, role, f"h{_budget_name(budget)}-n")
        except OffBudget as error:
            raise ConfigError("study.holdout_factor", f"{role} size {_size_name(rung.params)}: {error}") from None
        if any(run.config["model"] == other.config["model"] for other in runs):
            raise ConfigError("study.budgets", f"the predicted optimum {_size_name(predicted_params)} for {budget:.3g} "
                              "FLOPs is smaller than the family's shapes can test; the budgets are too small for this "
                              "vocabulary")  # fmt: skip
        seeds = config.study.holdout_seeds if role == "predicted" else 1
        runs += [run, *(replicate(run, more) for more in range(1, seeds))]
    header = manifest_header(config, "verification") | {"predicted_params": predicted_params, "dropped": []}
    manifest = Manifest(header, _with_unique_names(runs, config))
    write_manifest(study_dir / VERIFICATION, manifest)
    return manifest


def seeds_at(config: RunConfig, budget: float) -> int:
    """How many times each run of `budget` FLOPs, one of the study's, is trained."""
    seeds = config.study.seeds
    return seeds[0] if len(seeds) == 1 else seeds[sorted(config.study.budgets).index(budget)]


def holdout_budget(config: RunConfig) -> float:
    """FLOPs of each verification run, under the study's convention."""
    return config.study.holdout_factor * max(config.study.budgets)


def holdout_runs(config: RunConfig) -> int:
    """How many runs there will be at the held-out budget."""
    return len(HELD_OUT) - 1 + config.study.holdout_seeds


def _check_sides(config: RunConfig, budget: float, optimum: float, made: Sequence[PlannedRun], dropped: Sequence[dict],
                 rungs: tuple[ladders.Rung, ...]) -> None:  # fmt: skip
    """Refuses a budget that has not `SIDE` sizes on each side of its guessed optimum, with the reason."""
    sizes = {run.params for run in made}
    below = sum(params < optimum for params in sizes)
    above = len(sizes) - below
    if below >= SIDE and above >= SIDE:
        return
    lost = next((d["reason"] for d in dropped if d["budget"] == budget), "")
    if lost:
        why = f"{lost}; raise the budget, or lower train.batch_size or data.seq_len"
    elif below < SIDE:
        why = (f"the smallest shape of the family with this vocabulary has {_size_name(rungs[0].params)} parameters; "
               "raise the budget, lower model.vocab_size or study.size_ratio, or change study.guess")  # fmt: skip
    else:
        why = (f"the ladder ends at {_size_name(rungs[-1].params)} parameters; lower the budget or "
               "study.size_ratio")  # fmt: skip
    raise ConfigError("study.budgets", f"{budget:.3g} FLOPs: {below} sizes below and {above} above the guessed "
                      f"optimum N*={_size_name(optimum)}, {SIDE} needed on each side: {why}")  # fmt: skip


def manifest_header(config: RunConfig, kind: str) -> dict:
    """What every manifest planned from `config` begins with: study, convention, code and the config itself."""
    return {
        "kind": kind, "study": config.study.name, "study_hash": config.content_hash(),
        "convention": config.study.convention, "package": f"chinchilla_jax {chinchilla_jax.__version__}",
        "revision": git_revision(), "config": config.to_dict(),
    }  # fmt: skip


def _prefix(budget: float) -> str:
    """The beginning of an IsoFLOP run's name."""
    return f"c{_budget_name(budget)}-n"


def _budget_name(budget: float) -> str:
    """12 -> 1.2e1, 1.35e12 -> 1.35e12: the shortest mantissa with a decimal that is exact to three digits."""
    mantissa, exponent = f"{budget:.2e}".split("e")
    mantissa = mantissa[:-1] if mantissa.endswith("0") else mantissa
    return f"{mantissa}e{int(exponent)}"


def _size_name(params: float, digits: int = 3) -> str:
    """158123 -> 158k, 70061956352 -> 70.1b."""
    value, suffix = float(f"{params:.{digits - 1}e}"), ""
    for suffix in ("", "k", "m", "b", "t"):
        if value < 1000 or suffix == "t":
            break
        value /= 1000
    return f"{value:.{digits}g}" + suffix if value < 1000 else f"{value:.0f}{suffix}"


def _with_unique_names(runs: Sequence[PlannedRun], config: RunConfig) -> tuple[PlannedRun, ...]:
    """Completes the names with N, in as many digits as tell the runs apart, and `-s1` for the first seed after the
    config's own; tells branches their trunk's.
    """
    seeds = [run.config["train"]["seed"] - config.train.seed for run in runs]
    ends = [f"-s{seed}" if seed else "" for seed in seeds]
    for digits in range(3, 14):
        names = [run.name + _size_name(run.params, digits) + end for run, end in zip(runs, ends, strict=True)]
        if len(set(names)) == len(names):
            break
    else:
        raise ConfigError("study.budgets", "two runs have the same budget and size; remove one of the budgets")
    trunks = {run.config_hash: name for run, name in zip(runs, names, strict=True) if run.role == TRUNK}
    return tuple(
        dataclasses.replace(run, name=name, trunk=run.trunk and trunks[run.trunk])
        for run, name in zip(runs, names, strict=True)
    )


def describe(manifest: Manifest, workers: int, echo: Callable[[str], None]) -> None:
    """Prints a manifest as a table, then what it rests on and what it costs in all.

    Args:
      workers: how many runs train at the same time, for the time estimate.
    """
    template, convention = manifest.template(), manifest.header["convention"]
    echo(f"{'run':24} {'role':9} {'layers':>6} {'width':>6} {'N':>8} {'non-emb.':>8} {'D':>8} {'D/N':>7} "
         f"{'C':>9} {'off':>7} {'peak_lr':>9} {'batch':>7} {'time':>9}")  # fmt: skip
    for run in manifest.runs:
        model, optimizer = run.config["model"], run.config["optimizer"]
        batch = run.config["train"]["batch_size"] * run.config["data"]["seq_len"]
        fork = f"  from {run.trunk} at step {run.fork_step}" if run.trunk else ""
        echo(f"{run.name:24} {run.role:9} {model['n_layers']:6d} {model['d_model']:6d} {_size_name(run.params):>8} "
             f"{_size_name(run.params_non_embedding):>8} {_size_name(run.tokens):>8} {run.tokens / run.params:7.1f} "
             f"{run.cost:9.3g} {run.cost / run.budget - 1:+7.2%} {optimizer['peak_lr']:9.2g} {_size_name(batch):>7} "
             f"{duration(run.estimated_seconds):>9}{fork}")  # fmt: skip
    for row in manifest.header["dropped"]:
        echo(f"dropped: budget {row['budget']:.3g}, N {_size_name(row['params'])}: {row['reason']}")
    if "guess" in manifest.header:
        optima = ", ".join(f"{_size_name(n)} at {c:.3g}" for c, n in manifest.header["guess"]["params"])
        echo(f"sizes are centred on N* = {optima}: {manifest.header['guess']['provenance']}")
    echo(f"recipe: {read_recipe(template.study.recipe)}")
    total = sum(run.spent() for run in manifest.runs)
    seconds, speed = estimate(manifest.runs, workers), template.study.flops_per_second
    echo(f"{len(manifest.runs)} runs, {total:.3g} FLOPs ({convention}); about {duration(seconds)} "
         f"with {workers} workers at {speed:.3g} FLOP/s each (study.flops_per_second)")  # fmt: skip
    if any(run.trunk for run in manifest.runs):
        shared, apart = executed(manifest.runs)
        echo(f"trunks and branches execute {shared:.3g} FLOPs, separate runs of the same schedule and horizons would "
             f"{apart:.3g}: {apart - shared:.3g} saved ({1 - shared / apart:.0%}; executed)")  # fmt: skip
    if "guess" in manifest.header:
        held_out, number = holdout_budget(template), holdout_runs(template)
        echo(f"later {number} held-out runs of {held_out:.3g} FLOPs: with them "
             f"{total + number * held_out:.3g} in all ({convention})")  # fmt: skip


def executed(runs: Sequence[PlannedRun]) -> tuple[float, float]:
    """FLOPs executed by `runs` as planned, and by the same runs without trunks, each from its first step."""
    whole = sum(run.flops["executed"] for run in runs if run.role != TRUNK)
    return sum(run.spent("executed") for run in runs), whole


def estimate(runs: Sequence[PlannedRun], workers: int) -> float:
    """Seconds for `runs` when each of `workers` takes the next one of `training_order` as soon as it may."""
    loads, ends = [0.0] * workers, {}
    for run in training_order(runs):
        worker = loads.index(min(loads))
        loads[worker] = max(loads[worker], ends.get(run.trunk, 0.0)) + run.estimated_seconds
        ends[run.name] = loads[worker]
    return max(loads)


def duration(seconds: float) -> str:
    """45 -> 45 s, 600 -> 10 min, 9000 -> 2.5 h, 1e6 -> 11.6 d."""
    if not math.isfinite(seconds):
        return "?"
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{0 if name != 'h' else 1}f} {name}"
    return f"{seconds / 86400:.1f} d"
