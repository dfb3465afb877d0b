"""Which config trains which steps? A run has one stage, or several that follow each other.

A stage has a config, an objective, and a function that makes its first state of the last state of the stage before.
Steps, data and metrics count on over the whole run; the schedule of a stage counts from its first step, unless it
follows that of a longer stretch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from chinchilla_jax.config import ConfigError, OptimizerConfig, RunConfig
from chinchilla_jax.ledger import Ledger, count_run
from chinchilla_jax.training.objective import NEXT_TOKEN, Objective
from chinchilla_jax.training.schedule import BatchSchedule, log_spaced, steps_of
from chinchilla_jax.training.step import Program, TrainState, once


def carry_on(last: TrainState, fresh: TrainState) -> TrainState:
    """The next stage goes on with the weights and moments of the last state of the stage before."""
    del fresh
    return last


class Curve(NamedTuple):
    """Learning rates of a stage that follow the schedule of a longer stretch.

    `config` is that of the stretch; `start` the step of it that is the stage's first. After a change of the model the
    rates rise to the curve over `warmup` steps, of which `warmed` were done before the stage.
    """

    config: RunConfig
    start: int
    warmup: int = 0
    warmed: int = 0


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stretch of a run that one config trains.

    Attributes:
      config: data, mesh and seed are those of the run; `train_tokens` are those of the stage.
      objective: what its steps minimise.
      curve: where its learning rates come from; by default from `config`.
      enter: (last state of the stage before, fresh state of this one) -> first state of this one. It is compiled, and
        must compute the same whenever it is called: a run that was stopped at the border calls it again.
      first_step, first_tokens: steps and tokens of the run before this stage; `Course` fills them in.
    """

    config: RunConfig
    objective: Objective = NEXT_TOKEN
    enter: Callable[[TrainState, TrainState], TrainState] = carry_on
    curve: Curve | None = None
    first_step: int = 0
    first_tokens: int = 0

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

    @functools.cached_property
    def flops(self) -> dict[str, float]:
        """FLOPs of its own steps, by convention."""
        return self.objective.flops(self.config, self.own_tokens)

    def schedule(self, step: int) -> tuple[OptimizerConfig, BatchSchedule, int]:
        """What `learning_rate` takes for the stage's own step `step`."""
        if self.curve is None:
            return self.config.optimizer, self.steps, step
        return self.curve.config.optimizer, steps_of(self.curve.config), self.curve.start + step

    def warmed(self, step: int) -> float:
        """The share of that rate which is taken while the rates rise to a curve again."""
        return min(1.0, (self.curve.warmed + step + 1) / (self.curve.warmup + 1)) if self.curve else 1.0

    def tokens(self, step: int) -> int:
        """Tokens that the run has consumed when `step` of its steps are done."""
        return self.first_tokens + self.steps.tokens(step - self.first_step)

    def first_state(self, program: Program, last: TrainState | None = None) -> TrainState:
        """A fresh state, or what `enter` makes of the last state of the stage before."""
        key = jax.random.key(self.config.train.seed)
        if last is None:
            return program.init(key)
        shardings = jax.tree.map(lambda x: x.sharding, program.abstract)
        # In one program what is not used of a fresh state, as a rule its moments, is never made.
        enter, options = (
            (lambda last, key: self.enter(last, program.init.__wrapped__(key))),
            once(jax.default_backend()),
        )
        return jax.jit(enter, out_shardings=shardings, compiler_options=options)(last, key)


class Course:
    """The stages of a run, and what they add up to; a `ConfigError` unless they share data, mesh and seed.

    `config` is that of the run: of the first stage, or one whose method says what all of them are.
    """

    def __init__(self, first: Stage, *then: Stage, config: RunConfig | None = None):
        self.config, self.stages = config or first.config, [first]
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

    def changes_after(self, step: int) -> bool:
        """Whether the losses of the next step are of another kind: of another objective or model."""
        one = self.at(step)
        if step < one.last_step or step >= self.total_steps:
            return False
        other = self.at(step + 1)
        return (one.objective, one.config.model) != (other.objective, other.config.model)

    def kept_steps(self) -> tuple[int, ...]:
        """The steps whose checkpoints stay by `train.keep_checkpoints`."""
        return log_spaced(self.config.train.keep_checkpoints, lambda s: self.at(s).tokens(s), self.total_steps)

    def ledger(self) -> Ledger:
        """Parameters of the last stage, tokens and FLOPs of all."""
        last = count_run(self.stages[-1].config, self.total_tokens)
        return dataclasses.replace(last, flops={c: sum(stage.flops[c] for stage in self.stages) for c in last.flops})

    def executed(self, step: int) -> float:
        """FLOPs executed in the first `step` steps, if all steps of a stage cost the same by token."""
        done = [min(max(step, s.first_step), s.last_step) for s in self.stages]
        shares = [(s.tokens(at) - s.first_tokens) / s.own_tokens for s, at in zip(self.stages, done, strict=True)]
        return sum(share * stage.flops["executed"] for share, stage in zip(shares, self.stages, strict=True))

    def besides_config(self) -> list[dict[str, Any]] | None:
        """What decides about the run if its config alone does not; None if it does."""
        alone = len(self.stages) == 1 and self.stages[0].objective == NEXT_TOKEN
        if alone or self.config.method is not None:
            return None
        return [{"config": s.config.to_dict() | {"mesh": None}, **_names(s)} for s in self.stages]

    def stages_by_name(self) -> list[dict[str, Any]] | None:
        """For `result.json`: what each stage trained, and by what; None for plain training."""
        if self.config.method is None and self.besides_config() is None:
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
    enter = stage.enter if hasattr(stage.enter, "__qualname__") else type(stage.enter)
    return {"objective": str(stage.objective), "enter": f"{enter.__module__}.{enter.__qualname__}"}


def course_of(config: RunConfig, objective: Objective = NEXT_TOKEN, *then: Stage) -> Course:
    """The course of a run: one stage of this objective, and those that follow; or as the method of `config` says."""
    if config.method is None:
        return Course(Stage(config, objective), *then)
    if then or objective != NEXT_TOKEN:
        raise ConfigError("method", f"{config.method.name} has objectives and stages of its own: give no others")
    return Course(*config.method.to_train(config), config=config)


def _shared(config: RunConfig) -> tuple:
    return config.data, config.mesh, config.train.seed
