"""Which runs does a study need?

For every budget C the ladder's sizes around the guessed optimum N*(C) (`study.guess`) are trained on D = C / (FLOPs per
token) tokens, rounded to whole steps, with a schedule whose horizon is exactly D: each run by itself, or as branches of
one trunk per size (`study.schedule`), and with as many seeds as `study.seeds` says. FLOPs are counted by the ledger
under `study.convention`.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import chinchilla_jax
from chinchilla_jax.base.revision import git_revision
from chinchilla_jax.config import ConfigError, RunConfig
from chinchilla_jax.study import ladder as ladders
from chinchilla_jax.study.cell import TRUNK, OffBudget, matched, replicate, size_name, with_seed
from chinchilla_jax.study.folder import MANIFEST, VERIFICATION, Manifest, PlannedRun, read_manifest, write_manifest
from chinchilla_jax.study.guess import guess
from chinchilla_jax.study.ladder import Rung
from chinchilla_jax.study.trunk import check_schedule, with_branches

SIDE = 3  # sizes needed on each side of the guessed optimum
HELD_OUT = {"predicted": 1.0, "half": 0.5, "double": 2.0}  # roles of the held-out runs, N over the predicted one


def plan(config: RunConfig) -> Manifest:
    """The manifest of the study `config.study`, whose template is the rest of `config`. Raises ConfigError where there
    is no study, where batches change inside runs, and for a budget without three sizes on each side.
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
            raise ConfigError(
                "study.seeds",
                f"{study.seeds}: study.schedule=trunk trains a size for all budgets at once; give one number, "
                f"study.seeds=({max(study.seeds)},), or take study.schedule=matched",
            )
    guessed = guess(config)
    budgets = sorted(study.budgets)
    optima = {budget: guessed.params(budget) for budget in budgets}
    rungs = ladders.ladder(config, list(optima.values()))
    cells = [(budget, rung) for budget in budgets for rung in ladders.around(rungs, optima[budget], study.sizes)]
    runs, dropped = (_on_trunks if study.schedule == "trunk" else _matched)(config, cells)
    for budget in budgets:
        sizes = {run.params for run in runs if run.budget == budget and run.role == "isoflop"}
        reasons = [row["reason"] for row in dropped if row["budget"] == budget]
        _check_sides(budget, optima[budget], sizes, reasons, rungs)
    header = manifest_header(config, "isoflop") | {
        "dropped": dropped,
        "guess": {"provenance": guessed.provenance, "params": [[budget, optima[budget]] for budget in budgets]},
    }
    return Manifest(header, _with_unique_names(runs, config))


def _matched(config: RunConfig, cells: Sequence[tuple[float, Rung]]) -> tuple[list[PlannedRun], list[dict]]:
    """A run for every budget, rung and seed, and what had to be dropped."""
    runs, dropped = [], []
    for budget, rung in cells:
        try:
            runs += _seeds(matched(config, rung.model, budget, "isoflop"), seeds_at(config, budget))
        except OffBudget as error:
            dropped.append({"budget": budget, "params": rung.params, "reason": str(error)})
    return runs, dropped


def _on_trunks(config: RunConfig, cells: Sequence[tuple[float, Rung]]) -> tuple[list[PlannedRun], list[dict]]:
    """The same as branches: rung after rung, seed after seed, each trunk before its branches."""
    runs, dropped = [], []
    for rung in sorted({rung for _, rung in cells}, key=lambda rung: rung.params):
        budgets = [budget for budget, other in cells if other == rung]
        for seed in range(config.study.seeds[0]):
            more, refused = with_branches(with_seed(config, seed), rung.model, budgets)
            runs += more
        dropped += [{"budget": budget, "params": rung.params, "reason": why} for budget, why in refused.items()]
    return runs, dropped


def _seeds(run: PlannedRun, seeds: int) -> list[PlannedRun]:
    return [run, *(replicate(run, more) for more in range(1, seeds))]


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
    config = read_manifest(study_dir / MANIFEST).template()
    budget = holdout_budget(config)
    runs = []
    for role, factor in HELD_OUT.items():
        rung = ladders.nearest(config, factor * predicted_params, exact=True)
        try:
            run = matched(config, rung.model, budget, role)
        except OffBudget as error:
            raise ConfigError("study.holdout_factor", f"{role} size {size_name(rung.params)}: {error}") from None
        if any(run.config["model"] == other.config["model"] for other in runs):
            raise ConfigError(
                "study.budgets",
                f"the predicted optimum {size_name(predicted_params)} for {budget:.3g} FLOPs is smaller than the "
                "family's shapes can test; the budgets are too small for this vocabulary",
            )
        runs += _seeds(run, config.study.holdout_seeds if role == "predicted" else 1)
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


def _check_sides(budget: float, optimum: float, sizes: set[int], reasons: Sequence[str], rungs: Sequence[Rung]) -> None:
    """Refuses a budget that has not `SIDE` sizes on each side of its guessed optimum.

    Args:
      reasons: why sizes of the budget were dropped, if any were.
    """
    below = sum(params < optimum for params in sizes)
    above = len(sizes) - below
    if below >= SIDE and above >= SIDE:
        return
    if reasons:
        why = f"{reasons[0]}; raise the budget, or lower train.batch_size or data.seq_len"
    elif below < SIDE:
        smallest = f"the smallest shape of the family with this vocabulary has {size_name(rungs[0].params)} parameters"
        why = f"{smallest}; raise the budget, lower model.vocab_size or study.size_ratio, or change study.guess"
    else:
        why = f"the ladder ends at {size_name(rungs[-1].params)} parameters; lower the budget or study.size_ratio"
    raise ConfigError(
        "study.budgets",
        f"{budget:.3g} FLOPs: {below} sizes below and {above} above the guessed optimum N*={size_name(optimum)}, "
        f"{SIDE} needed on each side: {why}",
    )


def manifest_header(config: RunConfig, kind: str) -> dict:
    """What every manifest planned from `config` begins with: study, convention, code and the config itself."""
    return {
        "kind": kind,
        "study": config.study.name,
        "study_hash": config.content_hash(),
        "convention": config.study.convention,
        "package": f"chinchilla_jax {chinchilla_jax.__version__}",
        "revision": git_revision(),
        "config": config.to_dict(),
    }


def _with_unique_names(runs: Sequence[PlannedRun], config: RunConfig) -> tuple[PlannedRun, ...]:
    """Completes the names with N, in as many digits as tell the runs apart, and `-s1` for the first seed after the
    config's own; tells branches their trunk's.
    """
    seeds = [run.config["train"]["seed"] - config.train.seed for run in runs]
    ends = [f"-s{seed}" if seed else "" for seed in seeds]
    for digits in range(3, 14):
        names = [run.name + size_name(run.params, digits) + end for run, end in zip(runs, ends, strict=True)]
        if len(set(names)) == len(names):
            break
    else:
        raise ConfigError("study.budgets", "two runs have the same budget and size; remove one of the budgets")
    trunks = {run.config_hash: name for run, name in zip(runs, names, strict=True) if run.role == TRUNK}
    return tuple(
        dataclasses.replace(run, name=name, trunk=run.trunk and trunks[run.trunk])
        for run, name in zip(runs, names, strict=True)
    )
