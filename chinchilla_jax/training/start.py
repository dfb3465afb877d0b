"""How does a run begin? With the batches of its config, and with the newest state there is to go on from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from chinchilla_jax.base import files
from chinchilla_jax.config import ConfigError, RunConfig
from chinchilla_jax.data import Batches, TokenStore, store_path
from chinchilla_jax.parallel.job import distributed
from chinchilla_jax.training.checkpoint import Checkpoints, Position, restore_from
from chinchilla_jax.training.record.directory import differences, read_record
from chinchilla_jax.training.record.metrics import adopt_metrics
from chinchilla_jax.training.schedule import learning_rate, steps_of
from chinchilla_jax.training.stages import Course, Stage
from chinchilla_jax.training.step import Program, TrainState

# What a branch may have otherwise than its trunk, so far as the rates before the fork are the same.
_FREE = {"optimizer": ("schedule", "final_lr_fraction", "cooldown_fraction"), "train": ("train_tokens",)}


@dataclasses.dataclass(frozen=True)
class Fork:
    """Where a branch leaves its trunk: the trunk's run directory, and the steps done there."""

    trunk: Path
    step: int


def open_batches(config: RunConfig) -> Batches:
    """The training and validation batches of a run.

    A `ConfigError` says that the token store was made for another config, or differs between hosts.
    """
    store = TokenStore(store_path(config.data), check_tokenizer=True)
    vocab_size, seq_len = config.model.vocab_size, config.data.seq_len
    if store.vocab_size > vocab_size:
        raise ConfigError("model.vocab_size", f"{vocab_size} is less than the tokenizer's {store.vocab_size}")
    if store.seq_len != seq_len:
        held = f"the token store in {store.path} holds sequences of {store.seq_len}"
        raise ConfigError("data.seq_len", f"{seq_len}, but {held}")
    distributed.check_same("data", store.content_hash(), "the data directory must hold the same store on every host")
    return Batches(store, config.data.mixture, config.train.seed, config.data.mask_documents)


def check_trunk(course: Course, fork: Fork) -> None:
    """Refuses a trunk with other settings than the schedule's, or other rates before the fork, by a `ConfigError`."""
    path, config = fork.trunk / "config.json", course.config
    if not files.exists(path):
        raise ConfigError("fork", f"{fork.trunk} is no run directory; train the trunk first")
    record = read_record(path, "config", dict)
    trunk = RunConfig.from_dict(record["config"])
    same = trunk.to_dict() | {"mesh": config.to_dict()["mesh"]}
    for section, names in _FREE.items():
        same[section] |= {name: getattr(getattr(config, section), name) for name in names}
    if RunConfig.from_dict(same) != config:
        raise ConfigError("fork", f"{fork.trunk} is no trunk of this run ({differences(same, config)})")
    if len(course.stages) > 1 or record.get("stages") != course.besides_config():
        raise ConfigError("fork", f"this run and {fork.trunk} must have one stage each, of one objective")
    steps, trunk_steps = steps_of(config), steps_of(trunk)
    for step in range(fork.step):
        ours = learning_rate(config.optimizer, steps, step), steps.first_sequence(step)
        if ours != (learning_rate(trunk.optimizer, trunk_steps, step), trunk_steps.first_sequence(step)):
            raise ConfigError("fork", f"this run and {fork.trunk} part at step {step}, before the fork at {fork.step}")


def state_to_go_on_from(
    course: Course,
    program_of: Callable[[Stage], Program],
    workdir: Path,
    checkpoints: Checkpoints,
    fork: Fork | None,
    echo: Callable[[str], None],
) -> tuple[TrainState, Position]:
    """State and position of a run at its start, in this order of priority:

    1. the newest readable checkpoint of the run itself;
    2. the newest readable one of its trunk, up to the fork;
    3. a fresh state.
    """

    def abstract_at(step: int) -> TrainState:
        return program_of(course.at(step)).abstract

    restored = checkpoints.restore(abstract_at, echo)
    if restored:
        echo(f"resuming at step {restored[1].step} of {course.total_steps}")
        return restored
    if fork:
        restored = restore_from(fork.trunk / "checkpoints", fork.step, abstract_at, echo)
        if restored:
            (state, position), eval_every = restored, course.config.train.eval_every
            echo(f"branching off {fork.trunk.name} at step {position.step}")
            if distributed.first():
                adopt_metrics(fork.trunk, workdir, eval_every)
            # A trunk evaluates at its end as well, which is not the end of this run. The time was the trunk's.
            owed = position.evaluation_owed and bool(eval_every) and position.step % eval_every == 0
            return state, Position(position.step, position.next_sequence, owed, position.losses)
        echo(f"{fork.trunk} has no readable checkpoint up to step {fork.step}: starting at step 0")
    first = course.stages[0]
    return first.first_state(program_of(first)), Position()
