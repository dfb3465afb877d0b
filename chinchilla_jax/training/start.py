"""What does a run begin with? Batches of its config, and a trunk that it branches off, or weights, if they fit it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from chinchilla_jax.base import files
from chinchilla_jax.config import ConfigError, ModelConfig, RunConfig
from chinchilla_jax.data import Batches, Teacher, TokenStore, store_path
from chinchilla_jax.model.parts import POSITIONS
from chinchilla_jax.parallel.job import distributed
from chinchilla_jax.training.record.directory import differences, read_record
from chinchilla_jax.training.schedule import learning_rate, steps_of
from chinchilla_jax.training.stages import Course
from chinchilla_jax.training.step import Program, TrainState, once

# What a branch may have otherwise than its trunk, so far as the rates before the fork are the same.
_FREE = {"optimizer": ("schedule", "final_lr_fraction", "cooldown_fraction"), "train": ("train_tokens",)}


# What says how a model is computed, or how its weights were drawn, and not what it is.
_COMPUTED = ("attention", "scan_layers", "init_scale")


@dataclasses.dataclass(frozen=True)
class Fork:
    """Where a branch leaves its trunk: the trunk's run directory, and the steps done there."""

    trunk: Path
    step: int


@dataclasses.dataclass(frozen=True)
class FirstWeights:
    """Weights that a run begins with, instead of random ones. They are part of what the run is.

    Attributes:
      source: the folder they are in.
      fingerprint: differs for other weights.
      model: what they are weights of.
      load: for a model like that one, parameters laid out as abstract ones say.
    """

    source: Path
    fingerprint: str
    model: ModelConfig
    load: Callable[[ModelConfig, dict[str, Any]], dict[str, Any]]

    def record(self) -> dict[str, str]:
        """What `config.json` and `result.json` of the run say of them."""
        return {"folder": str(files.absolute(self.source)), "fingerprint": self.fingerprint}

    def check(self, course: Course, fork: Fork | None) -> None:
        """Raises ConfigError if the first stage trains another model; names the settings."""
        if fork is not None:
            raise ConfigError("init_from", "a branch begins with the weights of its trunk: give no others")
        there, here = self.model, course.stages[0].config.model
        free = {*_COMPUTED, *({"max_position"} if not POSITIONS[here.position].learned else ())}
        names = [field.name for field in dataclasses.fields(there) if field.name not in free]
        other = [name for name in names if getattr(there, name) != getattr(here, name)]
        if other:
            told = ", ".join(
                f"model.{name}: {getattr(there, name)} there, {getattr(here, name)} here" for name in other
            )
            raise ConfigError(f"model.{other[0]}", f"{self.source} holds another model ({told})")

    def state(self, program: Program, model: ModelConfig, seed: int) -> TrainState:
        """A fresh state with these weights; random ones are never made."""
        params = self.load(model, program.abstract.params)
        shardings = jax.tree.map(lambda x: x.sharding, program.abstract)

        def begin(params: dict[str, Any], key: jax.Array) -> TrainState:
            return program.init.__wrapped__(key).replace(params=params)

        options = once(jax.default_backend())
        begun = jax.jit(begin, donate_argnums=0, out_shardings=shardings, compiler_options=options)
        return begun(params, jax.random.key(seed))


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
    batches = Batches(store, config.data.mixture, config.train.seed, config.data.mask_documents, teacher)
    distributed.check_same("data", content_of(batches), "the data directory must hold the same store on every host")
    return batches


def content_of(batches: Batches) -> str:
    """A hash of the tokens and the tokenizer of a run, which is in its `config.json`."""
    teacher = batches.teacher
    return batches.store.content_hash() + (teacher.store.content_hash() if teacher else "")


def check_trunk(course: Course, fork: Fork) -> None:
    """Refuses a trunk with other settings than the schedule's, or other rates before the fork, by a `ConfigError`."""
    path, config = fork.trunk / "config.json", course.config
    if not files.exists(path):
        raise ConfigError("fork", f"{fork.trunk} is no run directory; train the trunk first")
    record = read_record(path, "config", dict)
    if "init_from" in record:
        raise ConfigError(
            "fork", f"{fork.trunk} began with weights of {record['init_from']['folder']}: train no branch"
        )
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
