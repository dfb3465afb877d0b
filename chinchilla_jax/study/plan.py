"""Which runs does a study need, and what will they cost?

For every budget C the ladder's sizes around the predicted optimum N*(C) (`ladder.predicted_optimum`) are trained on
D = C / (FLOPs per token) tokens, rounded to whole steps, with a schedule whose horizon is exactly D. FLOPs are counted
by the ledger under `study.convention`.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import subprocess
from collections.abc import Callable, Sequence

import chinchilla_jax
from chinchilla_jax.config import ConfigError, ModelConfig, RunConfig
from chinchilla_jax.ledger import count_run
from chinchilla_jax.study import ladder as ladders
from chinchilla_jax.study.folder import MANIFEST, VERIFICATION, Manifest, PlannedRun, read_manifest, write_manifest
from chinchilla_jax.study.recipe import recipe

TOLERANCE = 0.01  # relative distance of a run's C from its budget
SIDE = 3  # sizes wanted on each side of the predicted optimum


def plan(config: RunConfig) -> Manifest:
    """The manifest of the study `config.study`, whose template is the rest of `config`.

    Raises:
      ConfigError: no study, a batch that changes inside runs, or a budget without three sizes on each side.
    """
    study = config.study
    if study is None:
        raise ConfigError("study", "the config has no study section; start from configs/isoflop.py")
    if config.train.double_batch_at:
        raise ConfigError("train.double_batch_at", "an IsoFLOP study compares runs of one batch size: set it to 0")
    rungs = ladders.ladder(config)
    runs: list[PlannedRun] = []
    dropped: list[dict] = []
    for budget in sorted(study.budgets):
        optimum = ladders.predicted_optimum(config, budget)
        made = []
        for rung in ladders.around(rungs, optimum, study.sizes):
            run, reason = _planned(config, rung.model, budget, "isoflop", f"c{_budget_name(budget)}-n")
            if run is not None:
                made.append(run)
            else:
                dropped.append({"budget": budget, "params": rung.params, "reason": reason})
        _check_sides(config, budget, optimum, made, dropped, rungs)
        runs += made
    header = _header(config, "isoflop") | {"dropped": dropped}
    return Manifest(header, _with_unique_names(runs))


def verification(study_dir: pathlib.Path, predicted_params: float) -> Manifest:
    """Writes `verification.jsonl`: the predicted size, half and double of it, at the held-out budget.

    The budget is `study.holdout_factor` times the largest of the study. Shapes are the family's nearest to these sizes,
    at any fine width and depth, not rungs of the ladder.

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
    for role, factor in (("predicted", 1.0), ("half", 0.5), ("double", 2.0)):
        rung = ladders.nearest(config.model, factor * predicted_params, config.study.aspect_ratio, exact=True,
                               fixed_depth=config.study.ladder == "width")  # fmt: skip
        run, reason = _planned(config, rung.model, budget, role, f"h{_budget_name(budget)}-n")
        if run is None:
            raise ConfigError("study.holdout_factor", f"{role} size {_size_name(rung.params)}: {reason}")
        if any(run.config["model"] == other.config["model"] for other in runs):
            raise ConfigError("study.budgets", f"the predicted optimum {_size_name(predicted_params)} for {budget:.3g} "
                              "FLOPs is smaller than the family's shapes can test; the budgets are too small for this "
                              "vocabulary")  # fmt: skip
        runs.append(run)
    header = _header(config, "verification") | {"predicted_params": predicted_params, "dropped": []}
    manifest = Manifest(header, _with_unique_names(runs))
    write_manifest(study_dir / VERIFICATION, manifest)
    return manifest


def holdout_budget(config: RunConfig) -> float:
    """FLOPs of each verification run, under the study's convention."""
    return config.study.holdout_factor * max(config.study.budgets)


def _planned(
    config: RunConfig, model: ModelConfig, budget: float, role: str, prefix: str
) -> tuple[PlannedRun | None, str]:
    """The run of `model` at `budget`, or None and the reason why there is none."""
    study, batch = config.study, config.train.batch_size * config.data.seq_len
    per_step = batch * ladders.flops_per_token(config, model, study.convention)
    steps = round(budget / per_step)
    if steps < 1 or abs(steps * per_step / budget - 1.0) > TOLERANCE:
        return None, (f"{max(steps, 1)} steps of {batch} tokens spend {max(steps, 1) * per_step / budget - 1:+.1%} "
                      f"against the budget, more than {TOLERANCE:.0%}")  # fmt: skip
    tokens = steps * batch
    ledger = count_run(dataclasses.replace(config, model=model), tokens)
    made = recipe(study, ledger.parameters.total, steps)
    resolved = dataclasses.replace(
        config,
        model=model,
        optimizer=dataclasses.replace(config.optimizer, peak_lr=made.peak_lr, warmup_steps=made.warmup_steps),
        train=dataclasses.replace(config.train, train_tokens=tokens),
        study=None,
    )
    return PlannedRun(
        name=prefix, role=role, budget=budget, convention=study.convention, params=ledger.parameters.total,
        params_non_embedding=ledger.parameters.non_embedding, tokens=tokens, flops=ledger.flops,
        config=resolved.to_dict(), config_hash=resolved.content_hash(),
        estimated_seconds=ledger.flops["executed"] / study.flops_per_second, recipe=made.provenance,
    ), ""  # fmt: skip


def _check_sides(config: RunConfig, budget: float, optimum: float, made: Sequence[PlannedRun], dropped: Sequence[dict],
                 rungs: tuple[ladders.Rung, ...]) -> None:  # fmt: skip
    below = sum(run.params < optimum for run in made)
    above = len(made) - below
    if below >= SIDE and above >= SIDE:
        return
    lost = next((d["reason"] for d in dropped if d["budget"] == budget), "")
    if lost:
        why = f"{lost}; raise the budget, or lower train.batch_size or data.seq_len"
    elif below < SIDE:
        why = (f"the smallest shape of the family with this vocabulary has {_size_name(rungs[0].params)} parameters; "
               "raise the budget, or lower model.vocab_size, study.size_ratio or study.tokens_per_param")  # fmt: skip
    else:
        why = (f"the ladder ends at {_size_name(rungs[-1].params)} parameters; lower the budget or "
               "study.size_ratio")  # fmt: skip
    raise ConfigError("study.budgets", f"{budget:.3g} FLOPs: {below} sizes below and {above} above the predicted "
                      f"optimum N*={_size_name(optimum)}, {SIDE} needed on each side: {why}")  # fmt: skip


def _header(config: RunConfig, kind: str) -> dict:
    return {
        "kind": kind, "study": config.study.name, "study_hash": config.content_hash(),
        "convention": config.study.convention, "package": f"chinchilla_jax {chinchilla_jax.__version__}",
        "revision": _revision(), "config": config.to_dict(),
    }  # fmt: skip


def _revision() -> str | None:
    """Git revision of this code with `+` for local changes; None when it is no git checkout."""
    folder = pathlib.Path(chinchilla_jax.__file__).resolve().parent
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


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


def _with_unique_names(runs: Sequence[PlannedRun]) -> tuple[PlannedRun, ...]:
    """Completes the names with N, in as many digits as tell the runs apart."""
    for digits in range(3, 14):
        names = [run.name + _size_name(run.params, digits) for run in runs]
        if len(set(names)) == len(names):
            break
    else:
        raise ConfigError("study.budgets", "two runs have the same budget and size; remove one of the budgets")
    return tuple(dataclasses.replace(run, name=name) for run, name in zip(runs, names, strict=True))


def describe(manifest: Manifest, workers: int, echo: Callable[[str], None]) -> None:
    """Prints a manifest as a table with its total cost.

    Args:
      workers: how many runs train at the same time, for the time estimate.
    """
    echo(f"{'run':24} {'role':9} {'layers':>6} {'width':>6} {'N':>8} {'non-emb.':>8} {'D':>8} {'D/N':>7} "
         f"{'C':>9} {'off':>7} {'peak_lr':>9} {'time':>9}")  # fmt: skip
    for run in manifest.runs:
        model, optimizer = run.config["model"], run.config["optimizer"]
        echo(f"{run.name:24} {run.role:9} {model['n_layers']:6d} {model['d_model']:6d} {_size_name(run.params):>8} "
             f"{_size_name(run.params_non_embedding):>8} {_size_name(run.tokens):>8} {run.tokens / run.params:7.1f} "
             f"{run.cost:9.3g} {run.cost / run.budget - 1:+7.2%} {optimizer['peak_lr']:9.2g} "
             f"{duration(run.estimated_seconds):>9}")  # fmt: skip
    for row in manifest.header["dropped"]:
        echo(f"dropped: budget {row['budget']:.3g}, N {_size_name(row['params'])}: {row['reason']}")
    total = sum(run.cost for run in manifest.runs)
    speed = manifest.template().study.flops_per_second
    seconds = estimate(manifest.runs, workers)
    echo(f"{len(manifest.runs)} runs, {total:.3g} FLOPs ({manifest.header['convention']}); about {duration(seconds)} "
         f"with {workers} workers at {speed:.3g} FLOP/s each (study.flops_per_second)")  # fmt: skip


def estimate(runs: Sequence[PlannedRun], workers: int) -> float:
    """Seconds for `runs` when each of `workers` takes the longest one left."""
    loads = [0.0] * workers
    for seconds in sorted((run.estimated_seconds for run in runs), reverse=True):
        loads[loads.index(min(loads))] += seconds
    return max(loads)


def duration(seconds: float) -> str:
    """45 -> 45 s, 600 -> 10 min, 9000 -> 2.5 h, 1e6 -> 11.6 d."""
    if not math.isfinite(seconds):
        return "?"
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{0 if name != 'h' else 1}f} {name}"
    return f"{seconds / 86400:.1f} d"
