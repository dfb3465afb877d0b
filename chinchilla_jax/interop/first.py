"""Which weights does a run begin with, if not with random ones? Those of another run, or of a folder of weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chinchilla_jax.config import ConfigError, ModelConfig
from chinchilla_jax.interop.checkpoint import RunWeights
from chinchilla_jax.interop.folder import is_weights_folder, open_weights
from chinchilla_jax.interop.layout import WeightsError
from chinchilla_jax.training.checkpoint import restore_params
from chinchilla_jax.training.start import FirstWeights


def first_weights(folder: Path, echo: Callable[[str], None]) -> FirstWeights:
    """The weights of a run's newest readable checkpoint, or of a folder of weights; they are loaded later.

    Raises as `trained.open_model`.
    """
    if is_weights_folder(folder):
        found = open_weights(folder)
        return FirstWeights(folder, found.fingerprint(), found.model, found.load)
    run = RunWeights(folder, None, echo)

    def load(model: ModelConfig, abstract: dict[str, Any]) -> dict[str, Any]:
        if model.scan_layers != run.model.scan_layers:
            told = f"{model.scan_layers}, but {run.model.scan_layers} in {folder}; use that, or export the run first"
            raise ConfigError("model.scan_layers", told)
        restored = restore_params(folder / "checkpoints", run.step, abstract, echo)
        if restored is None:
            raise WeightsError(f"{folder}: the checkpoint of step {run.step} is damaged")
        return restored[0]

    return FirstWeights(folder, _fingerprint(run), run.model, load)


def _fingerprint(run: RunWeights) -> str:
    """12 hexadecimal digits: of the model, the step, and the gains of the final norm, which every step changes."""
    run.begin({"final_norm/gain"})
    gain = run.read("final_norm/gain", None)
    content = json.dumps([run.config.content_hash(), run.step]).encode() + gain.tobytes()
    return hashlib.sha256(content).hexdigest()[:12]
