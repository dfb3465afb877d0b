"""Our own layout: how is a model said that no family of others has?

`config.json` has `model_type` chinchilla_jax, `format` 1 and the `ModelConfig` as `model`. Tensors have the names and
axes of the parameters here, layer by layer: `layers.3.attention.query` is `[d_model, n_heads, head_dim]`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from chinchilla_jax.config import ModelConfig
from chinchilla_jax.interop.folder import FORMAT, OWN


def config(model: ModelConfig) -> dict[str, Any]:
    """`config.json` of a model, but for what goes beside it."""
    return {"model_type": OWN, "format": FORMAT, "model": dataclasses.asdict(model)}
