"""Our own layout: how is a model said that no family of others has?

`config.json` has `model_type` chinchilla_jax, `format` 1 and the `ModelConfig` as `model`. Tensors have the names and
axes of the parameters here, layer by layer: `layers.3.attention.query` is `[d_model, n_heads, head_dim]`. Beside them
lies a model in plain torch, from `templates/`, by which transformers loads the folder with `trust_remote_code`.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
from pathlib import Path
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.config import ModelConfig
from chinchilla_jax.interop.folder import FORMAT, OWN

CODE = ("configuration_chinchilla_jax.py", "modeling_chinchilla_jax.py")
_ARCHITECTURE = "ChinchillaJaxForCausalLM"


def config(model: ModelConfig) -> dict[str, Any]:
    """`config.json` of a model, but for what goes beside it."""
    code = {
        "AutoConfig": "configuration_chinchilla_jax.ChinchillaJaxConfig",
        "AutoModelForCausalLM": f"modeling_chinchilla_jax.{_ARCHITECTURE}",
    }
    said = {"architectures": [_ARCHITECTURE], "model_type": OWN, "format": FORMAT, "auto_map": code}
    return {**said, "model": dataclasses.asdict(model)}


def write_code(folder: Path) -> None:
    """The code that transformers needs to load the folder."""
    for name in CODE:
        code = importlib.resources.files("chinchilla_jax.interop.hf").joinpath("templates", name).read_bytes()
        files.write_bytes(folder / name, code)
