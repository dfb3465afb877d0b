"""AdamW through optax, without the learning rate, which each step receives."""

from __future__ import annotations

from collections.abc import Mapping, Set
from types import MappingProxyType
from typing import Any

import jax
import optax

from chinchilla_jax.config import OptimizerConfig


def make_optimizer(
    config: OptimizerConfig, vectors: Set[str], rates: Mapping[tuple[str, ...], float] = MappingProxyType({})
) -> optax.GradientTransformation:
    """Clip by the global norm, Adam moments, decoupled decay of matrices; updates still to be scaled by -lr.

    Weights with a name among `vectors` (`model.parts.vectors`) are not decayed. A decay of zero makes it Adam.
    `rates` (`model.parts.rates`) multiply the Adam steps, not the decay: it shrinks weights by lr * weight_decay at any
    width, as muP's optimisers do it unless told otherwise (Yang et al. 2022, appendix B.3).
    """
    parts = [optax.clip_by_global_norm(config.clip_norm), optax.scale_by_adam(config.b1, config.b2, config.eps)]
    if rates:
        parts.append(optax.stateless(lambda updates, _: _scaled(updates, rates)))
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=lambda params: _decays(params, vectors)))
    return optax.chain(*parts)


def _decays(params: dict, vectors: Set[str]) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: _names(path)[-1] not in vectors, params)


def _scaled(updates: dict, rates: Mapping[tuple[str, ...], float]) -> Any:
    def leaf(path: tuple, update: jax.Array) -> jax.Array:
        rate = rates.get(_names(path)[-2:], 1.0)
        return update if rate == 1.0 else rate * update

    return jax.tree_util.tree_map_with_path(leaf, updates)


def _names(path: tuple) -> tuple[str, ...]:
    # A weight may sit in a box that names its logical axes: the last dictionary key is its name either way.
    return tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
