"""Which config trains which steps? A run has one stage, or several that follow each other.

A stage has a config, an objective, and a function that makes its first state of the last state of the stage before.
Steps, data and metrics count on over the whole run; the schedules of a stage count from its first step.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax

from chinchilla_jax.config import ConfigError, RunConfig
from chinchilla_jax.ledger import Ledger, count_run
from chinchilla_jax.training.objective import NEXT_TOKEN, objective_of
from chinchilla_jax.training.schedule import BatchSchedule, steps_of
from chinchilla_jax.training.step import Program, TrainState


def carry_on(last: TrainState, fresh: TrainState) -> TrainState:
    """The next stage goes on with the weights and moments of the last state of the stage before."""
    del fresh
    return last


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stretch of a run that one config trains. A `ConfigError` is raised if no objective has that name.

    Attributes:
      config: data, mesh and seed are those of the run; `train_tokens` are those of the stage.
      objective: name of what its steps minimise.
      enter: (last state of the stage before, fresh state of this one) -> first state of this one. It is compiled, and
        must compute the same whenever it is called: a run that was stopped at the border calls it again.
      first_step, first_tokens: steps and tokens of the run before this stage; `Course` fills them in.
    """

    config: RunConfig
    objective: str = NEXT_TOKEN
    enter: Callable[[TrainState, TrainState], TrainState] = carry_on
    first_step: int = 0
    first_tokens: int = 0

    def __post_init__(self) -> None:
        objective_of(self.objective)  # an unknown one is refused before any work

    @functools.cached_property
    def steps(self) -> BatchSchedule:
        """Batch sizes by step, counted from the stage's first."""
        return steps_of(self.config)

    @property
    def last_step(self) -> int:
        """The step of the run that ends the stage."""
        return self.first_step + self.steps.total_steps

    @property
    def own_tokens(self) -> int:
        """Tokens of its own steps."""
        return self.steps.tokens(self.steps.total_steps)

    def tokens(self, step: int) -> int:
        """Tokens that the run has consumed when `step` of its steps are done."""
        return self.first_tokens + self.steps.tokens(step - self.first_step)

    def first_state(self, program: Program, last: TrainState | None = None) -> TrainState:
        """A fresh state, or what `enter` makes of the last state of the stage before."""
        fresh = program.init(jax.random.key(self.config.train.seed))
        if last is None:
            return fresh
        shardings = jax.tree.map(lambda x: x.sharding, program.abstract)
        return jax.jit(self.enter, out_shardings=shardings)(last, fresh)


class Course:
    """The stages of a run, and what they add up to; a `ConfigError` unless they share data, mesh and seed."""

    def __init__(self, first: Stage, *then: Stage):
        self.config, self.stages = first.config, [first]
        for stage in then:
            if _shared(stage.config) != _shared(first.config):
                raise ConfigError("then", "all stages of a run have the same data, mesh and train.seed")
            end = self.stages[-1].last_step
            tokens = self.stages[-1].tokens(end)
            self.stages.append(dataclasses.replace(stage, first_step=end, first_tokens=tokens))
        self.total_steps = self.stages[-1].last_step
        self.total_tokens = self.stages[-1].tokens(self.total_steps)

    def at(self, step: int) -> Stage:
        """The stage that the state after `step` steps belongs to; at a border that is the one that ends."""
        return next(stage for stage in self.stages if step <= stage.last_step)

    def ledger(self) -> Ledger:
        """Parameters of the last stage, tokens and FLOPs of all."""
        last = count_run(self.stages[-1].config, self.total_tokens)
        flops = [objective_of(stage.objective).flops(stage.config, stage.own_tokens) for stage in self.stages]
        return dataclasses.replace(last, flops={c: sum(counts[c] for counts in flops) for c in last.flops})

    def besides_config(self) -> list[dict[str, Any]] | None:
        """What decides about the run if not the first config alone; None for one stage of next-token prediction."""
        if len(self.stages) == 1 and self.stages[0].objective == NEXT_TOKEN:
            return None
        return [{"config": s.config.to_dict() | {"mesh": None}, **_names(s)} for s in self.stages]

    def stages_by_name(self) -> list[dict[str, Any]] | None:
        """For `result.json`: what each stage trained, and by what; None as `besides_config`."""
        if self.besides_config() is None:
            return None
        return [
            {
                **_names(stage),
                "config_hash": stage.config.content_hash(),
                "steps": stage.steps.total_steps,
                "tokens": stage.own_tokens,
            }
            for stage in self.stages
        ]

    def content_hash(self) -> str:
        """That of the config, if it alone decides about the run."""
        stages = self.besides_config()
        if stages is None:
            return self.config.content_hash()
        return hashlib.sha256(json.dumps(stages, sort_keys=True).encode()).hexdigest()[:12]


def _names(stage: Stage) -> dict[str, str]:
    return {"objective": stage.objective, "enter": f"{stage.enter.__module__}.{stage.enter.__qualname__}"}


def _shared(config: RunConfig) -> tuple:
    return config.data, config.mesh, config.train.seed
