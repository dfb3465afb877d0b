"""One size at one budget: how many steps, with which hyper-parameters, at what cost?"""

from __future__ import annotations

import dataclasses

from chinchilla_jax.config import ModelConfig, RunConfig
from chinchilla_jax.ledger import count_run
from chinchilla_jax.study import ladder
from chinchilla_jax.study.folder import PlannedRun
from chinchilla_jax.study.recipe import settings, warmup_steps

TOLERANCE = 0.01  # relative distance of a run's C from its budget


class OffBudget(Exception):
    """No whole number of steps spends the budget; the message says by how much."""


def prepared(config: RunConfig, model: ModelConfig, budget: float) -> tuple[RunConfig, str]:
    """The study's config with this model, and the recipe's learning rate and batch for a run of `budget` FLOPs.

    Returns:
      The config, still with its study, and the recipe's provenance.
    """
    config = dataclasses.replace(config, model=model)
    made = settings(config, budget)
    return dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, peak_lr=made.peak_lr),
        train=dataclasses.replace(config.train, batch_size=made.batch_size, microbatches=made.microbatches,
                                  train_tokens=made.batch_size * config.data.seq_len),
    ), made.provenance  # fmt: skip


def steps_on(config: RunConfig, budget: float) -> int:
    """Whole steps of the config's model and batch that spend `budget`.

    Raises:
      OffBudget: the nearest number misses it by more than `TOLERANCE`.
    """
    batch = config.train.batch_size * config.data.seq_len
    per_step = batch * ladder.flops_per_token(config, config.model, config.study.convention)
    steps = max(1, round(budget / per_step))
    off = steps * per_step / budget - 1.0
    if abs(off) > TOLERANCE:
        raise OffBudget(f"{steps} steps of {batch} tokens spend {off:+.1%} against the budget, more than "
                        f"{TOLERANCE:.0%}")  # fmt: skip
    return steps


def horizon(config: RunConfig, steps: int, warmup: int, schedule: str | None = None) -> RunConfig:
    """The config of a single run, without its study: so many steps and steps of warm-up."""
    schedule = schedule or config.optimizer.schedule
    optimizer = dataclasses.replace(config.optimizer, warmup_steps=warmup, schedule=schedule)
    tokens = steps * config.train.batch_size * config.data.seq_len
    train = dataclasses.replace(config.train, train_tokens=tokens)
    return dataclasses.replace(config, optimizer=optimizer, train=train, study=None)


def line(config: RunConfig, resolved: RunConfig, role: str, prefix: str, provenance: str, budget: float | None = None,
         **branching) -> PlannedRun:  # fmt: skip
    """The manifest line of `resolved`, a run of the study `config`; its name is still without the size.

    Args:
      budget: None for a run that has none; its own C stands there then.
      branching: `trunk`, `fork_step`, `keep_steps` of a `PlannedRun`.
    """
    ledger = count_run(resolved)
    run = PlannedRun(
        name=prefix, role=role, budget=budget or ledger.flops[config.study.convention],
        convention=config.study.convention, params=ledger.parameters.total,
        params_non_embedding=ledger.parameters.non_embedding, tokens=ledger.tokens, flops=ledger.flops,
        config=resolved.to_dict(), config_hash=resolved.content_hash(), estimated_seconds=0.0, recipe=provenance,
        **branching,
    )  # fmt: skip
    return dataclasses.replace(run, estimated_seconds=run.spent("executed") / config.study.flops_per_second)


def with_seed(config: RunConfig, more: int) -> RunConfig:
    """The config with the `more`-th seed after its own: another initialisation and another order of the data."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, seed=config.train.seed + more))


def replicate(run: PlannedRun, more: int) -> PlannedRun:
    """`run` once again, with the `more`-th seed after its own; it stands on its own, without a trunk."""
    config = with_seed(run.run_config(), more)
    whole = run.estimated_seconds
    if run.trunk:
        whole *= run.flops["executed"] / run.spent("executed")
    return dataclasses.replace(run, config=config.to_dict(), config_hash=config.content_hash(), estimated_seconds=whole,
                               trunk=None, fork_step=0)  # fmt: skip


def matched(config: RunConfig, model: ModelConfig, budget: float, role: str, prefix: str) -> PlannedRun:
    """The run of `model` at `budget` by itself, its schedule matched to its own horizon.

    Raises:
      OffBudget: no whole number of steps spends the budget.
    """
    chosen, provenance = prepared(config, model, budget)
    steps = steps_on(chosen, budget)
    warmup = warmup_steps(config, steps)
    resolved = horizon(chosen, steps, warmup)
    return line(config, resolved, role, prefix, f"{provenance}; warm-up {warmup} of {steps} steps", budget)
