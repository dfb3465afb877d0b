"""AdamW through optax, without the learning rate, which each step receives."""

from __future__ import annotations

from typing import Any

import jax
import optax

from chinchilla_jax.config import OptimizerConfig


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clip by the global norm, Adam moments, decoupled decay of matrices; updates still to be scaled by -lr.

    Biases, gains and the relative-position vectors u and v are not decayed. A decay of zero makes it Adam.
    """
    parts = [optax.clip_by_global_norm(config.clip_norm), optax.scale_by_adam(config.b1, config.b2, config.eps)]
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=_is_matrix))
    return optax.chain(*parts)


def _is_matrix(params: dict) -> Any:
    def leaf(path: tuple, _: Any) -> bool:
        # A weight may sit in a box that names its logical axes: the last dictionary key is its name either way.
        name = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)][-1]
        return not (name in ("gain", "bias", "u", "v") or name.endswith("_bias"))

    return jax.tree_util.tree_map_with_path(leaf, params)
