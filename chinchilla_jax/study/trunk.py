"""How do the runs of one size share their first four fifths?

A cosine must know its horizon from the first step on, so every budget is a run of its own. At a constant learning rate
followed by a short cooldown the first part does not know it: one *trunk* per size serves all budgets, and for each a
*branch* leaves it where that budget's cooldown begins (Haegele et al. 2024, arXiv 2405.18392; Hu et al. 2024, MiniCPM,
arXiv 2404.06395). A branch is the run that would have gone the whole way by itself, to the bit: N, D and C count the
whole way, FLOPs spent only the tail. The trunk ends at the last fork, because nothing needs it beyond.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from chinchilla_jax.config import COOLDOWNS, ConfigError, ModelConfig, RunConfig
from chinchilla_jax.study.cell import TRUNK, OffBudget, horizon, line, steps_on
from chinchilla_jax.study.folder import PlannedRun
from chinchilla_jax.study.recipe import warmup_steps, with_recipe
from chinchilla_jax.training.schedule import cooldown_start, steps_of


def check_schedule(config: RunConfig) -> None:
    """Refuses a study whose schedule has no cooldown to branch off for. The ConfigError names the key."""
    schedule, fraction = config.optimizer.schedule, config.optimizer.cooldown_fraction
    if schedule not in COOLDOWNS:
        needed = f"study.schedule=trunk needs one of {', '.join(COOLDOWNS)}"
        raise ConfigError("optimizer.schedule", f"{schedule!r} knows its horizon from the start; {needed}")
    if not 0.0 < fraction < 1.0:
        needed = "study.schedule=trunk needs a fraction between 0 and 1"
        raise ConfigError("optimizer.cooldown_fraction", f"{needed}, got {fraction}")


def with_branches(
    config: RunConfig, model: ModelConfig, budgets: Sequence[float]
) -> tuple[list[PlannedRun], dict[float, str]]:
    """The trunk of `model` and its branches for `budgets`, trunk first; no runs if no budget can be met.

    Learning rate and batch are the recipe's for the largest budget, warm-up the fraction of the shortest branch: all of
    a trunk's branches share them.

    Returns:
      The runs, and the reason for each budget that has none. `trunk` is the trunk's config hash until it has a name.
    """
    chosen, provenance = with_recipe(dataclasses.replace(config, model=model), max(budgets))
    steps, refused = {}, {}
    for budget in sorted(budgets):
        try:
            steps[budget] = steps_on(chosen, budget)
        except OffBudget as error:
            refused[budget] = str(error)
    if not steps:
        return [], refused
    warmup = warmup_steps(config, min(steps.values()))
    resolved = {budget: horizon(chosen, count, warmup) for budget, count in steps.items()}
    forks = {budget: cooldown_start(run.optimizer, steps_of(run)) for budget, run in resolved.items()}
    provenance += f"; recipe of the trunk's largest budget {max(budgets):.3g}; warm-up {warmup} steps"
    keep = tuple(sorted({fork for fork in forks.values() if fork}))
    runs, trunk_hash = [], None
    if keep:  # a run of one or two steps is all cooldown
        trunk = horizon(chosen, keep[-1], warmup, "constant")
        trunk_hash = trunk.content_hash()
        runs.append(line(config, trunk, TRUNK, provenance, keep_steps=keep))
    for budget, run in resolved.items():
        fork = forks[budget]
        forked = f"{provenance}; cooldown from step {fork} of {steps[budget]}"
        runs.append(line(config, run, "isoflop", forked, budget, trunk=trunk_hash if fork else None, fork_step=fork))
    return runs, refused
