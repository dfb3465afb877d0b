"""How may a run be trained otherwise than by plain next-token prediction? Methods, as values of the config.

A method cuts a run into *legs*, which follow each other. A leg has a config of its own, without a method, and says how
many tokens share a position; the ledger prices a run by its legs, without JAX. What the steps of a leg minimise, and
what the last state of one leg becomes in the next, is code of `methods/`, which is imported only to train.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from chinchilla_jax.base.config_values import (
    BELOW_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    ConfigError,
    Section,
    key,
    one_of,
)

if TYPE_CHECKING:
    from chinchilla_jax.config import ModelConfig, RunConfig
    from chinchilla_jax.training.stages import Stage

NEW_LAYERS = ("interleave", "stack")


class Leg(NamedTuple):
    """Steps of a run that one plain config trains.

    `config.train.train_tokens` are those of the leg, in whole steps. `patch`: tokens that share a position.
    """

    config: RunConfig
    patch: int = 1


@dataclasses.dataclass(frozen=True)
class Method(Section, abc.ABC):
    """A way to train. `name` says which, and with it which other keys there are."""

    name: str = ""
    module: ClassVar[str] = ""  # of `methods/`, whose function `stages(config)` does the work of `to_train`

    @classmethod
    def variant(cls, values: Mapping[str, Any]) -> type[Method]:
        """The class of the method that `values` name; `ConfigError` if there is none of that name."""
        name = values.get("name", cls.name)
        one_of("name", name, METHODS)
        return METHODS[name]

    def check(self, config: RunConfig) -> None:
        """Raises `ConfigError` if a run of `config` cannot be trained so; its key is one of the whole config."""
        if config.train.double_batch_at:
            raise ConfigError(
                "train.double_batch_at", f"a run with method.name={self.name} keeps its batch: set it to 0"
            )
        self.legs(config)

    @abc.abstractmethod
    def legs(self, config: RunConfig) -> tuple[Leg, ...]:
        """The legs of a run, in order."""

    def to_train(self, config: RunConfig) -> tuple[Stage, ...]:
        """The same with what they compute."""
        return importlib.import_module(f"chinchilla_jax.methods.{self.module}").stages(config)


@dataclasses.dataclass(frozen=True)
class Patch(Method):
    """Patch-level training (Shao et al. 2024, arXiv 2407.12665).

    For the first `share` of the tokens (lambda in the paper), `size` tokens (K) share a position: its input is the mean
    of their embeddings, and it predicts all tokens of the next patch through the one output layer. The rest is trained
    by token, with the weights of the first part, a fresh optimizer and its own warm-up and schedule.

    Rows stay as they are and get `size` times shorter; the paper makes them of `size` times as many tokens instead.
    A `size` of 1 is plain training.
    """

    name: str = "patch"
    size: int = key(4, POSITIVE)
    share: float = key(2 / 3, POSITIVE, BELOW_ONE)
    module: ClassVar[str] = "patch"

    def check(self, config: RunConfig) -> None:
        seq_len, mesh = config.data.seq_len, config.mesh
        if seq_len % self.size:
            raise ConfigError("method.size", f"{self.size} does not divide data.seq_len={seq_len}")
        if (seq_len // self.size) % (mesh.context * mesh.tensor):
            over = f"mesh.context={mesh.context} * mesh.tensor={mesh.tensor}"
            raise ConfigError("method.size", f"{seq_len} / {self.size} patches do not divide over {over}")
        if config.data.has_teacher and self.size > 1:
            told = "a patch predicts a label without having seen the last tokens of its proposition"
            raise ConfigError("data.teacher", f"{told}: train it without method.name=patch, or without a teacher")
        super().check(config)

    def legs(self, config: RunConfig) -> tuple[Leg, ...]:
        """Patches, then tokens."""
        if self.size == 1:
            return (Leg(plain(config)),)
        steps = _whole_steps("method.share", config, (self.share, 1.0 - self.share), least=1)
        return tuple(Leg(_cut(config, n), patch) for n, patch in zip(steps, (self.size, 1), strict=True))


@dataclasses.dataclass(frozen=True)
class GrowthStage(Section):
    """The shape of a model that will grow, and its share of the run's tokens.

    A dimension of 0 is that of `model`. `peak_lr` of 0 is `optimizer.peak_lr`; others are for `rewind`.
    """

    share: float = key(0.5, POSITIVE, BELOW_ONE)
    n_layers: int = key(0, NOT_NEGATIVE)
    d_model: int = key(0, NOT_NEGATIVE)
    n_heads: int = key(0, NOT_NEGATIVE)
    n_kv_heads: int = key(0, NOT_NEGATIVE)
    d_ff: int = key(0, NOT_NEGATIVE)
    peak_lr: float = key(0.0, NOT_NEGATIVE)


DIMENSIONS = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_ff")


@dataclasses.dataclass(frozen=True)
class Growth(Method):
    """Masked structural growth (Yao et al. 2023, arXiv 2305.02869), as FLM-101B was trained (Li et al. 2023).

    A smaller model is trained for a share of the tokens, then made larger without any change of what it computes, as
    often as there are `stages`; the last shape is `model` itself, for the tokens that are left. What new units write is
    multiplied by a mask that rises from 0 to 1 over the first `ramp` of a stage's steps.

    New layers are copies, each after its source (`interleave`), or of the whole stack on top of it (`stack`). The
    learning rate falls along one curve over the whole run (FLM-101B), or with `rewind` begins again at the peak when
    the model grows; either way it rises over `warmup_steps` first.
    """

    name: str = "growth"
    stages: tuple[GrowthStage, ...] = ()
    ramp: float = key(0.25, POSITIVE, SHARE)
    new_layers: str = key("interleave", one_of=NEW_LAYERS)
    rewind: bool = False
    warmup_steps: int = key(0, NOT_NEGATIVE)
    module: ClassVar[str] = "growth"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stages:
            raise ConfigError("stages", "needs at least one smaller shape, as (dict(share=0.5, d_model=64),)")
        if sum(stage.share for stage in self.stages) >= 1.0:
            raise ConfigError("stages", "their shares leave no tokens for the whole model: they must be below 1")
        for i, stage in enumerate(self.stages):
            if stage.peak_lr and not self.rewind:
                told = "a peak of its own needs rewind=True; without it the rate falls along one curve"
                raise ConfigError(f"stages[{i}].peak_lr", told)

    def check(self, config: RunConfig) -> None:
        for name in ("experts", "attention_experts"):
            if getattr(config.model, name) > 1:
                raise ConfigError(f"model.{name}", "experts do not grow: set it to 1, or leave the method out")
        if config.model.base_width:
            told = "rates and logits of muP follow the width, which changes: set it to 0, or leave the method out"
            raise ConfigError("model.base_width", told)
        super().check(config)
        shapes = self.shapes(config)
        for i, (small, large) in enumerate(zip(shapes, shapes[1:], strict=False)):
            with _at(f"method.stages[{i}]"):
                _check_growth(small, large)

    def shapes(self, config: RunConfig) -> list[ModelConfig]:
        """The models of the run, in order."""
        shapes = []
        for i, stage in enumerate(self.stages):
            changed = {name: getattr(stage, name) for name in DIMENSIONS if getattr(stage, name)}
            with _at(f"method.stages[{i}]"):
                shapes.append(dataclasses.replace(config.model, **changed))
        return [*shapes, config.model]

    def legs(self, config: RunConfig) -> tuple[Leg, ...]:
        """The first stage, then of each other one the ramp and the rest."""
        return tuple(Leg(part) for stage in self.pieces(config) for part in stage)

    def pieces(self, config: RunConfig) -> list[list[RunConfig]]:
        """The plain configs of each stage: one of the first, of others the ramp and the rest."""
        shares = [stage.share for stage in self.stages]
        steps = _whole_steps("method.stages", config, (*shares, 1.0 - sum(shares)), least=2)
        if self.warmup_steps >= min(steps[1:]):
            told = f"{self.warmup_steps} steps of warm-up do not end within the {min(steps[1:])} of a stage"
            raise ConfigError("method.warmup_steps", told)
        pieces = []
        for i, (shape, n) in enumerate(zip(self.shapes(config), steps, strict=True)):
            ramp = min(n - 1, max(1, round(self.ramp * n)))  # the last step is one of the ordinary model
            with _at(f"method.stages[{i}]"):
                parts = (n,) if i == 0 else (ramp, n - ramp)
                pieces.append([_cut(config, part, shape) for part in parts])
        return pieces


METHODS: dict[str, type[Method]] = {"patch": Patch, "growth": Growth}


def plain(config: RunConfig) -> RunConfig:
    """The config without its method, and without its study."""
    return dataclasses.replace(config, method=None, study=None)


def legs_of(config: RunConfig) -> tuple[Leg, ...]:
    """The legs of a run; of one without a method, itself."""
    return config.method.legs(config) if config.method else (Leg(config),)


def _check_growth(small: ModelConfig, large: ModelConfig) -> None:
    if small == large:
        raise ConfigError("d_model", "and all other dimensions are those of the next stage: nothing grows")
    for name in DIMENSIONS:
        if getattr(small, name) > getattr(large, name):
            told = f"{getattr(small, name)} does not grow into {getattr(large, name)}: a model grows and never shrinks"
            raise ConfigError(name, told)
    if small.position == "relative" and large.d_model % small.d_model:
        told = f"{large.d_model} is no whole multiple of {small.d_model}"
        raise ConfigError("d_model", f"{told}: the sinusoids of relative positions grow by whole factors only")
    groups, larger = (shape.n_heads // shape.n_kv_heads for shape in (small, large))
    if groups > larger:
        raise ConfigError("n_kv_heads", f"{groups} query heads share a key head, and after growing only {larger}")


def _whole_steps(name: str, config: RunConfig, shares: Sequence[float], least: int = 0) -> list[int]:
    """The steps of a run, shared out; `ConfigError` at the key `name` if a share has less than `least` of them."""
    batch = config.train.batch_size * config.data.seq_len
    total, ends, before = max(1, round(config.train.train_tokens / batch)), [], 0.0
    for share in shares:
        before += share
        ends.append(round(before * total))
    steps = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    if min(steps) < least:
        few = "leave a stage with too few of them"
        raise ConfigError(name, f"{total} steps of {batch} tokens {few} (at least {least}); train on more tokens")
    return steps


def _cut(config: RunConfig, steps: int, model: ModelConfig | None = None) -> RunConfig:
    """A plain config of so many steps. Its warm-up leaves at least one step."""
    warmup = min(config.optimizer.warmup_steps, max(0, steps - 1))
    optimizer = dataclasses.replace(config.optimizer, warmup_steps=warmup)
    train = dataclasses.replace(config.train, train_tokens=steps * config.train.batch_size * config.data.seq_len)
    return dataclasses.replace(plain(config), model=model or config.model, optimizer=optimizer, train=train)


@contextlib.contextmanager
def _at(prefix: str) -> Iterator[None]:
    """A `ConfigError` about a shape is about the stage that has it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{prefix}.{error.key}", error.message) from None
