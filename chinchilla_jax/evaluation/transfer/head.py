"""What class is a row of? A linear head on what the model makes of the row's last token, after its final norm.

In a causal model only that token has seen the whole row (Lu et al. 2021, arXiv 2103.05247). The head stands in for the
output matrix, which is not used.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from chinchilla_jax.config import OptimizerConfig, RunConfig
from chinchilla_jax.model.parts import rates, vectors
from chinchilla_jax.parallel.rules import partition_spec
from chinchilla_jax.training.machine.shape import shape_key
from chinchilla_jax.training.optimizer import make_optimizer
from chinchilla_jax.training.step import model_of, on_mesh

# Adam, as in Lu et al.; clipped for the sake of those who train everything.
_ADAM = OptimizerConfig(weight_decay=0.0, b1=0.9, b2=0.999, clip_norm=1.0)


class Classifier(NamedTuple):
    """The compiled functions of a model with a head.

    `weights` are `{"body": ..., "head": ...}`: those that are trained; `frozen` is the rest of the body.

    Attributes:
      init: weights to the optimiser's state.
      step: `(weights, optimiser's state, frozen, tokens_BxS, lengths_B, labels_B, lr)` to the first two and the mean
        loss in nats. It takes over the first two.
      predict: `(weights, frozen, tokens_BxS, lengths_B)` to the likeliest class of each row, int32 `[B]`.
    Rows are split over devices as those of a training are; their number and length have to divide over them.
    """

    init: jax.stages.Wrapped
    step: jax.stages.Wrapped
    predict: jax.stages.Wrapped


def new_head(config: RunConfig, classes: int, key: jax.Array) -> dict[str, jax.Array]:
    """A head before training: kernel `[D, classes]` of deviation 1 / sqrt(D), bias `[classes]` of zeros; float32."""
    d_model = config.model.d_model
    kernel = jax.random.normal(key, (d_model, classes)) / math.sqrt(d_model)
    return {"kernel": kernel, "bias": jnp.zeros(classes)}


def class_logits(config: RunConfig, params: dict, head: dict, tokens_BxS: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """Float32 logits `[B, classes]` of rows whose first `lengths_B` tokens count."""

    def last_token(x_BxSxD: jax.Array, *_: Any) -> jax.Array:
        return jnp.take_along_axis(x_BxSxD, (lengths_B - 1)[:, None, None], axis=1)[:, 0]

    x_BxD, *_ = model_of(config).apply({"params": params}, tokens_BxS, None, last_token)
    return x_BxD.astype(jnp.float32) @ head["kernel"] + head["bias"]


def make_classifier(config: RunConfig, mesh: Mesh) -> Classifier:
    """The functions of a config on a mesh; equal shapes share compilations."""
    return _make_classifier(shape_key(config), mesh)


@functools.lru_cache(maxsize=16)
def _make_classifier(config: RunConfig, mesh: Mesh) -> Classifier:
    optimizer = make_optimizer(_ADAM, vectors(config.model), rates(config.model))
    rows, row = (NamedSharding(mesh, partition_spec(axes)) for axes in (("batch", "length"), ("batch",)))

    def mean_loss(weights: dict, frozen: dict, tokens_BxS: jax.Array, lengths_B: Any, labels_B: Any) -> jax.Array:
        logits_BxC = class_logits(config, joined(weights["body"], frozen), weights["head"], tokens_BxS, lengths_B)
        return optax.softmax_cross_entropy_with_integer_labels(logits_BxC, labels_B).mean()

    def step(weights: dict, state: Any, frozen: dict, tokens: Any, lengths: Any, labels: Any, lr: Any) -> tuple:
        loss, gradients = jax.value_and_grad(mean_loss)(weights, frozen, tokens, lengths, labels)
        updates, state = optimizer.update(gradients, state, weights)
        return optax.apply_updates(weights, jax.tree.map(lambda u: -lr * u, updates)), state, loss

    def predict(weights: dict, frozen: dict, tokens_BxS: jax.Array, lengths_B: jax.Array) -> jax.Array:
        params = joined(weights["body"], frozen)
        return class_logits(config, params, weights["head"], tokens_BxS, lengths_B).argmax(axis=1)

    return Classifier(
        jax.jit(optimizer.init),
        jax.jit(
            on_mesh(step, mesh, config.mesh),
            donate_argnums=(0, 1),
            in_shardings=(None, None, None, rows, row, row, None),
        ),
        jax.jit(on_mesh(predict, mesh, config.mesh), in_shardings=(None, None, rows, row)),
    )


def joined(one: dict, other: dict) -> dict:
    """Two nested dictionaries without a leaf in common, as one."""
    result = dict(one)
    for name, value in other.items():
        result[name] = joined(one[name], value) if name in one else value
    return result
