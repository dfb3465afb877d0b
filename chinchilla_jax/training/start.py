"""What does a run begin with? Batches of its config, and if it branches off another run, a trunk that fits it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from chinchilla_jax.base import files
from chinchilla_jax.config import ConfigError, RunConfig
from chinchilla_jax.data import Batches, Teacher, TokenStore, store_path
from chinchilla_jax.parallel.job import distributed
from chinchilla_jax.training.record.directory import differences, read_record
from chinchilla_jax.training.schedule import learning_rate, steps_of
from chinchilla_jax.training.stages import Course

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
    teacher = Teacher(config.data, store.tokenizer()) if config.data.has_teacher else None
    content = store.content_hash() + (teacher.store.content_hash() if teacher else "")
    distributed.check_same("data", content, "the data directory must hold the same store on every host")
    return Batches(store, config.data.mixture, config.train.seed, config.data.mask_documents, teacher)


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
