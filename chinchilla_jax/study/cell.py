"""One size at one budget: how many steps, with which hyper-parameters, at what cost?"""

from __future__ import annotations

import dataclasses

from chinchilla_jax.config import ModelConfig, RunConfig
from chinchilla_jax.ledger import count_run
from chinchilla_jax.study.folder import PlannedRun
from chinchilla_jax.study.ladder import flops_per_token
from chinchilla_jax.study.recipe import warmup_steps, with_recipe

TOLERANCE = 0.01  # relative distance of a run's C from its budget
TRUNK = "trunk"


class OffBudget(Exception):
    """No whole number of steps spends the budget; the message says by how much."""


def steps_on(config: RunConfig, budget: float) -> int:
    """Whole steps of the config's model and batch that spend `budget`. Raises OffBudget if the nearest number misses it
    by more than `TOLERANCE`.
    """
    batch = config.train.batch_size * config.data.seq_len
    per_step = batch * flops_per_token(config, config.model)
    steps = max(1, round(budget / per_step))
    off = steps * per_step / budget - 1.0
    if abs(off) > TOLERANCE:
        missed = f"{off:+.1%} against the budget, more than {TOLERANCE:.0%}"
        raise OffBudget(f"{steps} steps of {batch} tokens spend {missed}")
    return steps


def horizon(config: RunConfig, steps: int, warmup: int, schedule: str | None = None) -> RunConfig:
    """The config of a single run, without its study: so many steps and steps of warm-up."""
    schedule = schedule or config.optimizer.schedule
    optimizer = dataclasses.replace(config.optimizer, warmup_steps=warmup, schedule=schedule)
    tokens = steps * config.train.batch_size * config.data.seq_len
    train = dataclasses.replace(config.train, train_tokens=tokens)
    return dataclasses.replace(config, optimizer=optimizer, train=train, study=None)


def line(
    config: RunConfig, resolved: RunConfig, role: str, provenance: str, budget: float | None = None, **branching
) -> PlannedRun:
    """The manifest line of `resolved`, a run of the study `config`; its name is still without the size.

    Args:
      budget: None for a trunk, which has none; its own C stands there then.
      branching: `trunk`, `fork_step`, `keep_steps` of a `PlannedRun`.
    """
    counted, study = count_run(resolved), config.study
    run = PlannedRun(
        name=_name(role, budget),
        role=role,
        budget=budget or counted.flops[study.convention],
        convention=study.convention,
        params=counted.parameters.total,
        params_non_embedding=counted.parameters.non_embedding,
        tokens=counted.tokens,
        flops=counted.flops,
        config=resolved.to_dict(),
        config_hash=resolved.content_hash(),
        estimated_seconds=0.0,
        recipe=provenance,
        **branching,
    )
    return dataclasses.replace(run, estimated_seconds=run.spent("executed") / study.flops_per_second)


def _name(role: str, budget: float | None) -> str:
    """The beginning of a run's name, which goes on with its size."""
    if role == TRUNK:
        return "trunk-n"
    return f"{'c' if role == 'isoflop' else 'h'}{_budget_name(budget)}-n"


def _budget_name(budget: float) -> str:
    """12 -> 1.2e1, 1.35e12 -> 1.35e12: the shortest mantissa with a decimal that is exact to three digits."""
    mantissa, exponent = f"{budget:.2e}".split("e")
    mantissa = mantissa[:-1] if mantissa.endswith("0") else mantissa
    return f"{mantissa}e{int(exponent)}"


def size_name(params: float, digits: int = 3) -> str:
    """158123 -> 158k, 70061956352 -> 70.1b."""
    value, suffix = float(f"{params:.{digits - 1}e}"), ""
    for suffix in ("", "k", "m", "b", "t"):
        if value < 1000 or suffix == "t":
            break
        value /= 1000
    return f"{value:.{digits}g}" + suffix if value < 1000 else f"{value:.0f}{suffix}"


def with_seed(config: RunConfig, more: int) -> RunConfig:
    """The config with the `more`-th seed after its own: another initialisation and another order of the data."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, seed=config.train.seed + more))


def replicate(run: PlannedRun, more: int) -> PlannedRun:
    """`run` once again, with the `more`-th seed after its own; it stands on its own, without a trunk."""
    config, seconds = with_seed(run.run_config(), more), run.estimated_seconds
    if run.trunk:
        seconds *= run.flops["executed"] / run.spent("executed")
    changes = {"config": config.to_dict(), "config_hash": config.content_hash(), "estimated_seconds": seconds}
    return dataclasses.replace(run, **changes, trunk=None, fork_step=0)


def matched(config: RunConfig, model: ModelConfig, budget: float, role: str) -> PlannedRun:
    """The run of `model` at `budget` by itself, its schedule matched to its own horizon. Raises OffBudget if no whole
    number of steps spends the budget.
    """
    chosen, provenance = with_recipe(dataclasses.replace(config, model=model), budget)
    steps = steps_on(chosen, budget)
    warmup = warmup_steps(config, steps)
    resolved = horizon(chosen, steps, warmup)
    return line(config, resolved, role, f"{provenance}; warm-up {warmup} of {steps} steps", budget)
