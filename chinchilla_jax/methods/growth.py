"""Masked structural growth (Yao et al. 2023, arXiv 2305.02869): a model becomes larger and computes what it did.

FLM-101B was trained so (Li et al. 2023, arXiv 2309.03852). `units.py` says where old weights go. Everything that new
units write to the residual stream is multiplied by a mask, which is 0 when the model grows and 1 at the end of the
ramp. At 0 new weights may be anything: nothing that they compute is read by anyone. The masks are folded into the
weights, so the model itself knows of none, but for the norms: they average over the width that counts.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import FrozenDict

from chinchilla_jax.config import ModelConfig, RunConfig
from chinchilla_jax.method import Growth
from chinchilla_jax.methods.units import Layers, Place, in_layers, layer_sources, map_weights
from chinchilla_jax.model.parts import NORMS, Norm, Weight, Weights
from chinchilla_jax.model.transformer import Transformer
from chinchilla_jax.training.loss import Sums
from chinchilla_jax.training.objective import NEXT_TOKEN, Arrays, Objective
from chinchilla_jax.training.schedule import steps_of
from chinchilla_jax.training.stages import Curve, Stage
from chinchilla_jax.training.step import TrainState


def stages(config: RunConfig) -> tuple[Stage, ...]:
    """The smallest model; then for each larger one the steps of the ramp, and ordinary ones."""
    method = config.method
    assert isinstance(method, Growth)
    made: list[Stage] = []
    start, small = 0, config.model
    for number, pieces in enumerate(method.pieces(config)):
        done = 0
        for piece in pieces:
            steps, curve = steps_of(piece).total_steps, _curve(config, method, pieces, number, start, done)
            if number == 0:
                made.append(Stage(piece, curve=curve))
            elif done == 0:
                grow = Grow(small, piece.model, method.new_layers, steps)
                made.append(Stage(piece, MaskedNextToken(small, method.new_layers), grow, curve))
            else:
                made.append(Stage(piece, NEXT_TOKEN, drop_mask, curve))
            done += steps
        start, small = start + done, pieces[0].model
    return tuple(made)


def _curve(config: RunConfig, method: Growth, pieces: list[RunConfig], number: int, start: int, done: int) -> Curve:
    """The rates of a piece of stage `number`, which starts at step `start`, after `done` of the stage's steps."""
    plain = dataclasses.replace(config, method=None, study=None)
    if not method.rewind:
        return Curve(plain, start + done, warmup=method.warmup_steps if number else 0, warmed=done)
    peak = method.stages[number].peak_lr if number < len(method.stages) else 0.0
    optimizer = dataclasses.replace(config.optimizer, peak_lr=peak or config.optimizer.peak_lr)
    if number:
        optimizer = dataclasses.replace(optimizer, warmup_steps=method.warmup_steps)
    tokens = sum(piece.train.train_tokens for piece in pieces)
    train = dataclasses.replace(config.train, train_tokens=tokens)
    return Curve(dataclasses.replace(pieces[0], optimizer=optimizer, train=train), done)


@dataclasses.dataclass(frozen=True)
class Grow:
    """The first state of a larger model, from the last one of the smaller model and a fresh one of the larger.

    Weights are put in their places; moments of new entries begin at zero while Adam's count goes on, as in the code of
    the paper. `steps` is how long the mask rises.
    """

    small: ModelConfig
    large: ModelConfig
    new_layers: str
    steps: int

    def __call__(self, last: TrainState, fresh: TrainState) -> TrainState:
        def of_optimizer(old: Any, new: Any) -> Any:
            if not isinstance(old, optax.ScaleByAdamState):
                return new
            mu, nu = (self.weights(o, n, copies=False) for o, n in ((old.mu, new.mu), (old.nu, new.nu)))
            return old._replace(mu=mu, nu=nu)

        is_adam = lambda state: isinstance(state, optax.ScaleByAdamState)  # noqa: E731
        opt_state = jax.tree.map(of_optimizer, last.opt_state, fresh.opt_state, is_leaf=is_adam)
        extra = {"done": jnp.zeros((), jnp.int32), "steps": jnp.full((), self.steps, jnp.int32)}
        return TrainState(last.step, self.weights(last.params, fresh.params), opt_state, extra)

    def weights(self, old: dict, fresh: dict, copies: bool = True) -> dict:
        """A tree of the larger model. New layers are copies; without `copies` they are zeros, as moments are."""
        sources, is_copy = layer_sources(self.small.n_layers, self.large.n_layers, self.new_layers)
        old = in_layers(old, self.small, self.large, sources, None if copies else is_copy)

        def put(place: Place, layers: Layers, leaf: jax.Array, new: jax.Array) -> jax.Array:
            return jax.vmap(place.put)(leaf, new) if isinstance(layers, slice) else place.put(leaf, new)

        return map_weights(put, self.small, self.large, old, fresh)


def drop_mask(last: TrainState, fresh: TrainState) -> TrainState:
    """The ordinary state of the larger model, when its mask is 1."""
    return last.replace(extra=fresh.extra)


@dataclasses.dataclass(frozen=True)
class MaskedNextToken(Objective):
    """Next-token prediction while the mask of new units rises: 0 in the first step, 1 after `steps` of them."""

    small: ModelConfig
    new_layers: str

    def init_extra(self, config: RunConfig, params: dict) -> Any:
        return {name: jnp.zeros((), jnp.int32) for name in ("done", "steps")}

    def next_extra(self, config: RunConfig, params: dict, extra: Any) -> Any:
        return extra | {"done": extra["done"] + 1}

    def sums(self, config: RunConfig, model: Transformer, params: dict, extra: Any, batch: Arrays) -> Sums:
        return super().sums(config, *self.masked(config, model, params, extra), extra, batch)

    def next_token_sums(self, config: RunConfig, model: Transformer, params: dict, extra: Any, batch: Arrays) -> Arrays:
        return super().next_token_sums(config, *self.masked(config, model, params, extra), extra, batch)

    def masked(self, config: RunConfig, model: Transformer, params: dict, extra: Any) -> tuple[Transformer, dict]:
        """The model with norms that know of the mask, and its weights with the mask folded into them."""
        mask = jnp.minimum(1.0, extra["done"] / jnp.maximum(extra["steps"], 1))
        return model.clone(norms=MASKED_NORMS), fold(params, self.small, config.model, self.new_layers, mask)


def fold(params: dict, small: ModelConfig, large: ModelConfig, new_layers: str, mask: jax.Array) -> dict:
    """Weights of the larger model, what new units write multiplied by the mask, with the shares for its norms."""
    _, is_copy = layer_sources(small.n_layers, large.n_layers, new_layers)
    width = jnp.where(np.arange(large.d_model) < small.d_model, 1.0, mask)

    def masked(place: Place, layers: Layers, leaf: jax.Array) -> jax.Array:
        if not place.writes:
            return leaf
        copy = np.asarray(False if layers is None else is_copy[layers])
        copy = copy.reshape(*copy.shape, *(1,) * len(place.shape))
        return leaf * jnp.where(place.is_old() & ~copy, 1.0, mask)

    def with_shares(modules: dict) -> dict:
        """The share with which each coordinate counts, beside the gain of every norm."""
        shared = {
            name: m | {"share": jnp.broadcast_to(width, m["gain"].shape)} for name, m in modules.items() if "gain" in m
        }
        return modules | shared

    folded = map_weights(masked, small, large, params)
    layers = {name: with_shares(module) for name, module in folded.items() if name.startswith("layer")}
    return folded | with_shares({"final_norm": folded["final_norm"]}) | layers


class MaskedNorm(Norm):
    """A norm over coordinates that count with a share: 1 for old ones, the mask for new ones."""

    def weights(self, c: ModelConfig) -> Weights:
        return super().weights(c) | {"share": Weight((c.d_model,), ("norm",), mean=1.0)}

    def compute(self, x: jax.Array, w: dict[str, jax.Array], c: ModelConfig, dtype: jnp.dtype) -> jax.Array:
        """As the norm without shares, with the mean of d coordinates taken over the sum of their shares."""
        share = w["share"]
        x, width = x.astype(jnp.float32), jnp.sum(share)
        if self.bias:
            x -= jnp.sum(share * x, axis=-1, keepdims=True) / width
        y = x * jax.lax.rsqrt(jnp.sum(share * x * x, axis=-1, keepdims=True) / width + c.norm_eps) * w["gain"]
        # A mean and a bias would reach coordinates that nothing writes to yet.
        return ((y + w["bias"]) * share if self.bias else y).astype(dtype)


MASKED_NORMS = FrozenDict({name: MaskedNorm(norm.function, norm.bias) for name, norm in NORMS.items()})
