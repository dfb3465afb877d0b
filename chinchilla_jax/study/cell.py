"""The runs of one size: how many steps, with which hyper-parameters, at what cost?

Each budget has a run of its own (`matched`), or all budgets share a trunk (`with_branches`). A cosine must know its
horizon from the first step on. A constant learning rate that ends in a short cooldown need not: one *trunk* per size
serves all budgets, and for each a *branch* leaves it where that budget's cooldown begins (Haegele et al. 2024, arXiv
2405.18392; Hu et al. 2024, MiniCPM, arXiv 2404.06395). A branch is to the bit the run that would have gone the whole
way by itself: N, D and C count the whole way, FLOPs spent only the tail. The trunk ends at the last fork.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from chinchilla_jax.config import ConfigError, ModelConfig, RunConfig
from chinchilla_jax.ledger import count_parameters, count_run
from chinchilla_jax.study import ways
from chinchilla_jax.study.folder import PlannedRun
from chinchilla_jax.study.ladder import flops_per_token
from chinchilla_jax.study.recipe import warmup_steps, with_recipe
from chinchilla_jax.training.schedule import cooldown_start, steps_of

TOLERANCE = 0.01  # relative distance of a run's C from its budget
TRUNK = "trunk"
_LONG = 10_000  # steps of a run whose price is wanted before its length is known: shares of its tokens are then exact


class OffBudget(Exception):
    """No whole number of steps spends the budget; the message says by how much."""


def matched(config: RunConfig, model: ModelConfig, budget: float, role: str, way: str = ways.PLAIN) -> PlannedRun:
    """The run of `model` at `budget` by itself, its schedule matched to its own horizon. Raises OffBudget.

    `way` says how it is trained (`study.ways`); Unfit is raised if that model cannot be.
    """
    long = dataclasses.replace(config.train, train_tokens=_LONG * config.train.batch_size * config.data.seq_len)
    in_its_way = ways.trained(dataclasses.replace(config, model=model, train=long), way)
    chosen, recipe = with_recipe(in_its_way, budget)
    steps = steps_on(chosen, budget)
    warmup = warmup_steps(config, steps)
    try:
        resolved = _horizon(chosen, steps, warmup)
    except ConfigError as error:
        raise ways.Unfit(str(error)) from None
    planned = _planned(config, resolved, role, f"{recipe}; warm-up {warmup} of {steps} steps", budget)
    if abs(planned.cost / budget - 1.0) > TOLERANCE:
        raise OffBudget(f"whole steps of its stages spend {planned.cost / budget - 1.0:+.1%} against the budget")
    if not config.study_section.methods:
        return planned
    return dataclasses.replace(planned, method=way, params_plain=count_parameters(model).total)


def with_branches(
    config: RunConfig, model: ModelConfig, budgets: Sequence[float]
) -> tuple[list[PlannedRun], dict[float, str]]:
    """The trunk of `model`, then its branches for `budgets`; and the reason for each budget that has none.

    All branches share the recipe's learning rate and batch for the largest budget, and the warm-up of the shortest
    branch. Their `trunk` is its config hash until it has a name. There are no runs if no budget can be met.
    """
    chosen, recipe = with_recipe(dataclasses.replace(config, model=model), max(budgets))
    steps, refused = {}, {}
    for budget in sorted(budgets):
        try:
            steps[budget] = steps_on(chosen, budget)
        except OffBudget as error:
            refused[budget] = str(error)
    if not steps:
        return [], refused
    warmup = warmup_steps(config, min(steps.values()))
    resolved = {budget: _horizon(chosen, count, warmup) for budget, count in steps.items()}
    forks = {budget: cooldown_start(run.optimizer, steps_of(run)) for budget, run in resolved.items()}
    recipe += f"; recipe of the trunk's largest budget {max(budgets):.3g}; warm-up {warmup} steps"
    keep = tuple(sorted({fork for fork in forks.values() if fork}))
    runs, trunk_hash = [], None
    if keep:  # a run of one or two steps is all cooldown
        trunk = _horizon(chosen, keep[-1], warmup, "constant")
        trunk_hash = trunk.content_hash()
        runs.append(dataclasses.replace(_planned(config, trunk, TRUNK, recipe), keep_steps=keep))
    for budget, run in resolved.items():
        fork = forks[budget]
        forked = f"{recipe}; cooldown from step {fork} of {steps[budget]}"
        runs.append(_planned(config, run, "isoflop", forked, budget, trunk_hash if fork else None, fork))
    return runs, refused


def steps_on(config: RunConfig, budget: float) -> int:
    """Whole steps of the config's model and batch that spend `budget`; raises OffBudget beyond `TOLERANCE`."""
    batch = config.train.batch_size * config.data.seq_len
    per_step = batch * flops_per_token(config, config.model)
    steps = max(1, round(budget / per_step))
    off = steps * per_step / budget - 1.0
    if abs(off) > TOLERANCE:
        spent = f"{steps} steps of {batch} tokens spend {off:+.1%}"
        raise OffBudget(f"{spent} against the budget, more than {TOLERANCE:.0%}")
    return steps


def _horizon(config: RunConfig, steps: int, warmup: int, schedule: str | None = None) -> RunConfig:
    """The config of a single run, without its study: so many steps and steps of warm-up."""
    schedule = schedule or config.optimizer.schedule
    optimizer = dataclasses.replace(config.optimizer, warmup_steps=warmup, schedule=schedule)
    batch = config.train.batch_size * config.data.seq_len
    train = dataclasses.replace(config.train, train_tokens=steps * batch)
    return dataclasses.replace(config, optimizer=optimizer, train=train, study=None)


def _planned(
    config: RunConfig,
    run: RunConfig,
    role: str,
    recipe: str,
    budget: float = 0.0,
    trunk: str | None = None,
    fork: int = 0,
) -> PlannedRun:
    """The manifest line of `run`, one of the study `config`, its name still without the size. A trunk has no budget."""
    counted, study = count_run(run), config.study_section
    start = f"{'c' if role == 'isoflop' else 'h'}{_budget_name(budget)}" if budget else TRUNK
    line = PlannedRun(
        name=f"{start}-n",
        role=role,
        budget=budget or counted.flops[study.convention],
        convention=study.convention,
        params=counted.parameters.total,
        params_non_embedding=counted.parameters.non_embedding,
        tokens=counted.tokens,
        flops=counted.flops,
        config=run.to_dict(),
        config_hash=run.content_hash(),
        estimated_seconds=0.0,
        recipe=recipe,
        trunk=trunk,
        fork_step=fork,
    )
    return dataclasses.replace(line, estimated_seconds=line.spent("executed") / study.flops_per_second)


def _budget_name(budget: float) -> str:
    """12 -> 1.2e1, 1.35e12 -> 1.35e12: the shortest mantissa with a decimal that is exact to three digits."""
    mantissa, exponent = f"{budget:.2e}".split("e")
    return f"{mantissa.removesuffix('0')}e{int(exponent)}"


def size_name(params: float, digits: int = 3) -> str:
    """158123 -> 158k, 70061956352 -> 70.1b."""
    value, suffix = float(f"{params:.{digits - 1}e}"), ""
    for suffix in ("", "k", "m", "b", "t"):
        if value < 1000 or suffix == "t":
            break
        value /= 1000
    return f"{value:.{digits}g}{suffix}" if value < 1000 else f"{value:.0f}{suffix}"


def with_seed(config: RunConfig, more: int) -> RunConfig:
    """The config with the `more`-th seed after its own: another initialisation and another order of the data."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, seed=config.train.seed + more))


def replicate(run: PlannedRun, more: int) -> PlannedRun:
    """`run` once again, with the `more`-th seed after its own; it stands on its own, without a trunk."""
    seconds = run.estimated_seconds
    if run.trunk:
        seconds *= run.flops["executed"] / run.spent("executed")
    alone = dataclasses.replace(run, trunk=None, fork_step=0, estimated_seconds=seconds)
    return alone.with_config(with_seed(run.run_config(), more))
