"""AdamW through optax, without the learning rate, which each step receives."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import jax
import optax

from chinchilla_jax.config import OptimizerConfig


def make_optimizer(config: OptimizerConfig, vectors: Set[str]) -> optax.GradientTransformation:
    """Clip by the global norm, Adam moments, decoupled decay of matrices; updates still to be scaled by -lr.

    Weights with a name among `vectors` (`model.parts.vectors`) are not decayed. A decay of zero makes it Adam.
    """
    parts = [optax.clip_by_global_norm(config.clip_norm), optax.scale_by_adam(config.b1, config.b2, config.eps)]
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=lambda params: _decays(params, vectors)))
    return optax.chain(*parts)


def _decays(params: dict, vectors: Set[str]) -> Any:
    def leaf(path: tuple, _: Any) -> bool:
        # A weight may sit in a box that names its logical axes: the last dictionary key is its name either way.
        return [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)][-1] not in vectors

    return jax.tree_util.tree_map_with_path(leaf, params)
