"""Which runs does a study need, and what do they cost?

For every budget C the ladder's sizes around the guessed optimum N*(C) (`study.guess`) are trained on D = C / (FLOPs per
token) tokens, rounded to whole steps, with a schedule whose horizon is exactly D: each run by itself, or as branches of
one trunk per size (`study.schedule`), and with as many seeds as `study.seeds` says. FLOPs are counted by the ledger
under `study.convention`.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import chinchilla_jax
from chinchilla_jax.base import files
from chinchilla_jax.base.revision import git_revision
from chinchilla_jax.base.words import Echo, duration
from chinchilla_jax.config import COOLDOWNS, ConfigError, RunConfig
from chinchilla_jax.study import ladder as ladders
from chinchilla_jax.study import ways
from chinchilla_jax.study.cell import TRUNK, OffBudget, matched, size_name, with_branches, with_seed
from chinchilla_jax.study.execute.status import estimate
from chinchilla_jax.study.folder import MANIFEST, VERIFICATION, Manifest, PlannedRun, read_manifest, write_manifest
from chinchilla_jax.study.guess import guess
from chinchilla_jax.study.ladder import Rung
from chinchilla_jax.study.recipe import read_recipe

SIDE = 3  # sizes needed on each side of the guessed optimum
HELD_OUT = {"predicted": 1.0, "half": 0.5, "double": 2.0}  # roles of the held-out runs, N over the predicted one


def plan(config: RunConfig) -> Manifest:
    """The manifest of the study `config`. Raises ConfigError if there can be none, and says which setting to change."""
    check(config)
    study, guessed = config.study_section, guess(config)
    optima = {budget: guessed.params(budget) for budget in sorted(study.budgets)}
    rungs = ladders.ladder(config, list(optima.values()))
    cells = [(budget, rung) for budget, n in optima.items() for rung in ladders.around(rungs, n, study.sizes)]
    runs, dropped = (_on_trunks if study.schedule == "trunk" else _matched)(config, cells)
    for budget, optimum in optima.items():
        sizes = {run.params for run in runs if run.budget == budget and _is_isoflop(run)}
        reasons = [row["reason"] for row in dropped if row["budget"] == budget]
        _check_sides(budget, optimum, sizes, reasons, rungs)
    guess_facts = {"provenance": guessed.provenance, "params": [[budget, n] for budget, n in optima.items()]}
    header = manifest_header(config, "isoflop") | {"dropped": dropped, "guess": guess_facts}
    return Manifest(header, with_unique_names(runs, config))


def _is_isoflop(run: PlannedRun) -> bool:
    return run.role == "isoflop" and run.method in ("", ways.PLAIN)


def check(config: RunConfig) -> None:
    """Refuses what no study can be made of. The ConfigError names the key."""
    study, schedule, fraction = config.study_section, config.optimizer.schedule, config.optimizer.cooldown_fraction
    ways.check(study.methods)
    if config.method is not None:
        raise ConfigError("method", "a study says how it trains in study.methods; leave this section out")
    if config.train.double_batch_at:
        raise ConfigError("train.double_batch_at", "the runs of a study keep their batch size: set it to 0")
    if study.schedule != "trunk":
        return
    if study.methods:
        told = "trunks and branches are trained plainly: what another way does depends on the horizon"
        raise ConfigError("study.methods", f"{told}; use study.schedule=matched")
    if schedule not in COOLDOWNS:
        needed = f"study.schedule=trunk needs one of {', '.join(COOLDOWNS)}"
        raise ConfigError("optimizer.schedule", f"{schedule!r} knows its horizon from the start; {needed}")
    if not 0.0 < fraction < 1.0:
        needed = f"study.schedule=trunk needs a fraction between 0 and 1, got {fraction}"
        raise ConfigError("optimizer.cooldown_fraction", needed)
    if len(set(study.seeds)) > 1:
        # A trunk's rate and warm-up follow from the budgets it serves, so a seed less would be another recipe.
        trained = f"{study.seeds}: study.schedule=trunk trains a size for all budgets at once"
        fix = f"give one number, study.seeds=({max(study.seeds)},), or take study.schedule=matched"
        raise ConfigError("study.seeds", f"{trained}; {fix}")


def _matched(config: RunConfig, cells: Sequence[tuple[float, Rung]]) -> tuple[list[PlannedRun], list[dict]]:
    """A run for every budget, rung, way to train and seed, and what had to be dropped."""
    runs, dropped = [], []
    for budget, rung in cells:
        for way in config.study_section.methods or (ways.PLAIN,):
            try:
                for seed in range(seeds_at(config, budget)):
                    runs.append(matched(with_seed(config, seed), rung.model, budget, "isoflop", way))
            except (OffBudget, ways.Unfit) as error:
                reason = str(error) if way == ways.PLAIN else f"{way}: {error}"
                dropped.append({"budget": budget, "params": rung.params, "reason": reason})
    for way in config.study_section.methods:
        if not any(run.method == way for run in runs):
            reasons = [why for row in dropped if (why := str(row["reason"])).startswith(f"{way}: ")]
            raise ConfigError("study.methods", f"no size can be trained so, the first: {reasons[0]}")
    return runs, dropped


def _on_trunks(config: RunConfig, cells: Sequence[tuple[float, Rung]]) -> tuple[list[PlannedRun], list[dict]]:
    """The same as branches: rung after rung, seed after seed, each trunk before its branches."""
    runs, dropped = [], []
    for rung in sorted({rung for _, rung in cells}, key=lambda rung: rung.params):
        budgets = [budget for budget, other in cells if other == rung]
        for seed in range(config.study_section.seeds[0]):
            more, refused = with_branches(with_seed(config, seed), rung.model, budgets)
            runs += more
        dropped += [{"budget": budget, "params": rung.params, "reason": why} for budget, why in refused.items()]
    return runs, dropped


def verification(study_dir: pathlib.Path, predicted_params: float) -> Manifest:
    """Writes `verification.jsonl`: the predicted total N, half and double of it, at the held-out budget.

    The predicted size is trained with `study.holdout_seeds` seeds. Shapes are the family's nearest to these sizes, at
    any fine width and depth, not rungs of the ladder. Raises ConfigError if the budget buys too few steps at one of the
    sizes or is too small to test the prediction, StudyError if another prediction is in place already.
    """
    study_dir = files.path(study_dir)
    config = read_manifest(study_dir / MANIFEST).template()
    budget = holdout_budget(config)
    runs: list[PlannedRun] = []
    for role, factor in HELD_OUT.items():
        rung = ladders.nearest(config, factor * predicted_params, exact=True)
        seeds = config.study_section.holdout_seeds if role == "predicted" else 1
        try:
            repeats = [matched(with_seed(config, seed), rung.model, budget, role) for seed in range(seeds)]
        except OffBudget as error:
            raise ConfigError("study.holdout_factor", f"{role} size {size_name(rung.params)}: {error}") from None
        if any(repeats[0].config["model"] == other.config["model"] for other in runs):
            small = f"the predicted optimum {size_name(predicted_params)} for {budget:.3g} FLOPs is smaller than"
            fix = "the family's shapes can test; the budgets are too small for this vocabulary"
            raise ConfigError("study.budgets", f"{small} {fix}")
        runs += repeats
    header = manifest_header(config, "verification") | {"predicted_params": predicted_params, "dropped": []}
    manifest = Manifest(header, with_unique_names(runs, config))
    write_manifest(study_dir / VERIFICATION, manifest)
    return manifest


def seeds_at(config: RunConfig, budget: float) -> int:
    """How many times each run of `budget` FLOPs, one of the study's, is trained."""
    study = config.study_section
    return study.seeds[0] if len(study.seeds) == 1 else study.seeds[sorted(study.budgets).index(budget)]


def holdout_budget(config: RunConfig) -> float:
    """FLOPs of each verification run, under the study's convention."""
    return config.study_section.holdout_factor * max(config.study_section.budgets)


def holdout_runs(config: RunConfig) -> int:
    """How many runs there will be at the held-out budget."""
    return len(HELD_OUT) - 1 + config.study_section.holdout_seeds


def _check_sides(budget: float, optimum: float, sizes: set[int], reasons: Sequence[str], rungs: Sequence[Rung]) -> None:
    """Refuses a budget without `SIDE` sizes on each side of its optimum. `reasons`: why sizes were dropped, if any."""
    below = sum(params < optimum for params in sizes)
    above = len(sizes) - below
    if below >= SIDE and above >= SIDE:
        return
    if reasons:
        why = f"{reasons[0]}; raise the budget, or lower train.batch_size or data.seq_len"
    elif not rungs:
        why = "no shape of the ladder is near the sizes it needs; raise the budget, or choose another study.ladder"
    elif below < SIDE:
        smallest = f"the smallest shape of the family with this vocabulary has {size_name(rungs[0].params)} parameters"
        why = f"{smallest}; raise the budget, lower model.vocab_size or study.size_ratio, or change study.guess"
    else:
        why = f"the ladder ends at {size_name(rungs[-1].params)} parameters; lower the budget or study.size_ratio"
    there = f"{below} sizes below and {above} above the guessed optimum N*={size_name(optimum)}"
    raise ConfigError("study.budgets", f"{budget:.3g} FLOPs: {there}, {SIDE} needed on each side: {why}")


def manifest_header(config: RunConfig, kind: str) -> dict[str, Any]:
    """What every manifest planned from `config` begins with: study, convention, code and the config itself."""
    return {
        "kind": kind,
        "study": config.study_section.name,
        "study_hash": config.content_hash(),
        "convention": config.study_section.convention,
        "package": f"chinchilla_jax {chinchilla_jax.__version__}",
        "revision": git_revision(),
        "config": config.to_dict(),
    }


def with_unique_names(
    runs: Sequence[PlannedRun], config: RunConfig, taken: Collection[str] = ()
) -> tuple[PlannedRun, ...]:
    """Completes names with N, in as many digits as tell runs apart and from those `taken`, and `-s1` for a second
    seed; names the trunks."""
    seeds = [run.config["train"]["seed"] - config.train.seed for run in runs]
    in_ways = ["" if run.method in ("", ways.PLAIN) else f"-{ways.slug(run.method)}" for run in runs]
    for digits in range(3, 14):
        starts = [run.name + size_name(run.params, digits) + way for run, way in zip(runs, in_ways, strict=True)]
        names = [start + (f"-s{seed}" if seed else "") for start, seed in zip(starts, seeds, strict=True)]
        if len({*names, *taken}) == len(names) + len(taken):
            break
    else:
        raise ConfigError("study.budgets", "two runs have the same budget and size; remove one of the budgets")
    named = [dataclasses.replace(run, name=name) for run, name in zip(runs, names, strict=True)]
    trunks = {run.config_hash: run.name for run in named if run.role == TRUNK}
    return tuple(dataclasses.replace(run, trunk=trunks[run.trunk]) if run.trunk else run for run in named)


def describe(manifest: Manifest, workers: int, echo: Echo) -> None:
    """Prints a manifest as a table, then what it rests on and what it costs in all, with so many workers at a time."""
    template, convention = manifest.template(), manifest.header["convention"]
    study, guessed = template.study_section, manifest.header.get("guess")
    width = max([24, *(len(run.name) for run in manifest.runs)])
    sizes = f"{'run':{width}} {'role':9} {'layers':>6} {'width':>6} {'N':>8} {'non-emb.':>8} {'D':>8} {'D/N':>7}"
    echo(f"{sizes} {'C':>9} {'off':>7} {'peak_lr':>9} {'batch':>7} {'time':>9}")
    for run in manifest.runs:
        echo(_row(run, width))
    for row in manifest.header["dropped"]:
        echo(f"dropped: budget {row['budget']:.3g}, N {size_name(row['params'])}: {row['reason']}")
    if guessed:
        optima = ", ".join(f"{size_name(n)} at {c:.3g}" for c, n in guessed["params"])
        echo(f"sizes are centred on N* = {optima}: {guessed['provenance']}")
    echo(f"recipe: {read_recipe(study.recipe)}")
    total = sum(run.spent() for run in manifest.runs)
    speed = f"{study.flops_per_second:.3g} FLOP/s each (study.flops_per_second)"
    time = f"{duration(estimate(manifest.runs, workers))} with {workers} workers at {speed}"
    echo(f"{len(manifest.runs)} runs, {total:.3g} FLOPs ({convention}); about {time}")
    if any(run.trunk for run in manifest.runs):
        shared, apart = executed(manifest.runs)
        saved = f"{apart - shared:.3g} saved ({1 - shared / apart:.0%}; executed)"
        separate = f"separate runs of the same schedule and horizons would {apart:.3g}"
        echo(f"trunks and branches execute {shared:.3g} FLOPs, {separate}: {saved}")
    if manifest.header["kind"] == "isoflop":
        held_out, number = holdout_budget(template), holdout_runs(template)
        with_them = f"{total + number * held_out:.3g} in all ({convention})"
        echo(f"later {number} held-out runs of {held_out:.3g} FLOPs: with them {with_them}")


def _row(run: PlannedRun, width: int) -> str:
    model, optimizer = run.config["model"], run.config["optimizer"]
    batch = run.config["train"]["batch_size"] * run.config["data"]["seq_len"]
    fork = f"  from {run.trunk} at step {run.fork_step}" if run.trunk else ""
    return (
        f"{run.name:{width}} {run.role:9} {model['n_layers']:6d} {model['d_model']:6d} {size_name(run.params):>8} "
        f"{size_name(run.params_non_embedding):>8} {size_name(run.tokens):>8} {run.tokens / run.params:7.1f} "
        f"{run.cost:9.3g} {run.cost / run.budget - 1:+7.2%} {optimizer['peak_lr']:9.2g} {size_name(batch):>7} "
        f"{duration(run.estimated_seconds):>9}{fork}"
    )


def executed(runs: Sequence[PlannedRun]) -> tuple[float, float]:
    """FLOPs executed by `runs` as planned, and by the same runs without trunks, each from its first step."""
    whole = sum(run.flops["executed"] for run in runs if run.role != TRUNK)
    return sum(run.spent("executed") for run in runs), whole
