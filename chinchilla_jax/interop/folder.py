"""What model is in a folder of weights? Its shape, its tensors and what they are called, whoever wrote them.

    Hugging Face   config.json with a `model_type` of `hf/families.py`, safetensors
    ours           config.json with `model_type` chinchilla_jax, safetensors named and shaped as the parameters here
                   (`names.own_names`): what `import` writes, and `export` for models that no other format can say
    Meta           params.json, consolidated.NN.pth

Nothing but headers is read until weights are asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.base.config_values import build
from chinchilla_jax.config import ConfigError, ModelConfig
from chinchilla_jax.interop.hf.families import FAMILIES, Family, buffers
from chinchilla_jax.interop.hf.fields import stored_dtype
from chinchilla_jax.interop.layout import Name, Place, WeightsError, check_shapes, places
from chinchilla_jax.interop.load import load_params
from chinchilla_jax.interop.names import own_names
from chinchilla_jax.interop.safetensors import SafetensorsFolder, Tensors, same_tensor

OWN = "chinchilla_jax"
FORMAT = 1  # of our own layout
_COMPUTE = {"float32": "float32", "bfloat16": "bfloat16", "float16": "bfloat16"}  # float16 overflows in activations


@dataclasses.dataclass(frozen=True)
class WeightsFolder:
    """The weights of a model in files.

    Attributes:
      kind: a `model_type` of Hugging Face, `chinchilla_jax` or `meta`.
      names: what the tensors are called, by the paths of weights here.
      dtype: the type that the folder says it is for.
      config: its `config.json` or `params.json`.
    """

    path: Path
    kind: str
    model: ModelConfig
    tensors: Tensors
    names: Mapping[str, Name]
    dtype: str
    config: Mapping[str, Any]

    @property
    def compute_dtype(self) -> str:
        """What to compute in: as the folder says, but never in float16."""
        return _COMPUTE.get(self.dtype, "float32")

    def load(self, model: ModelConfig, abstract: dict[str, Any]) -> dict[str, Any]:
        """Parameters laid out as `abstract` says, for `model`: this one but for how it is computed."""
        return load_params(self.tensors, self.names, model, abstract)

    def begin(self, paths: Iterable[str]) -> None:
        """Says which weights are read next: of no matter here, any of them can be."""

    def dtype_of(self, path: str) -> np.dtype:
        """How a weight's numbers are stored."""
        return self.tensors.dtype(self.names[path].tensor.format(layer=0, expert=0))

    def read(self, path: str, layer: int | None, expert: int | None = None) -> np.ndarray:
        """A weight of one layer, or of one expert in it, with the axes that it has here, as it is stored."""
        found = [
            place
            for place in self._places[path]
            if place.layer == layer and (expert is None or place.expert in (None, expert))
        ]
        blocks = [self._whole(place) for place in found]
        if found[0].expert is not None:
            return blocks[0] if expert is not None else np.stack(blocks)
        return blocks[0] if expert is None else blocks[0][expert]

    def _whole(self, place: Place) -> np.ndarray:
        rows = place.shape[place.row_axes[0]] * place.unit
        return place.block(self.tensors.rows(place.tensor, place.offset, place.offset + rows))

    @functools.cached_property
    def _places(self) -> dict[str, list[Place]]:
        found: dict[str, list[Place]] = {}
        for place in places(self.model, self.names):
            found.setdefault(place.path, []).append(place)
        return found

    def fingerprint(self) -> str:
        """12 hexadecimal digits that differ for other weights: of config, names, shapes, and samples of each tensor.

        Of a tensor a few rows are read: training changes every one of them.
        """
        content = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        weights = {place.tensor for of_path in self._places.values() for place in of_path}
        for name, shape in sorted(self.tensors.shapes.items()):
            content.update(f"{name}{list(shape)}".encode())
            if name in weights:
                for row in {0, shape[0] // 2, shape[0] - 1}:
                    content.update(self.tensors.rows(name, row, row + 1).tobytes())
        return content.hexdigest()[:12]


def is_weights_folder(folder: Path) -> bool:
    """Whether there are weights of a model in it, and not a run."""
    if files.is_file(folder / "params.json"):
        return True
    path = folder / "config.json"
    return files.is_file(path) and "model_type" in _read(path)


def open_weights(folder: str | Path) -> WeightsFolder:
    """The weights in a folder.

    Raises:
      ConfigError: its config says something that this code cannot do; the message names the field.
      WeightsError: files are missing or damaged, or hold other tensors than those of the model.
    """
    folder = files.path(folder)
    if files.is_file(folder / "params.json"):
        from chinchilla_jax.interop.meta import open_meta

        model, tensors, names, config = open_meta(folder)
        return WeightsFolder(folder, "meta", model, tensors, names, "bfloat16", config)
    config = _read(folder / "config.json")
    kind, found = config.get("model_type"), SafetensorsFolder(folder)
    if kind == OWN:
        model = _own_model(config, folder)
        names = own_names(model)
        check_shapes(found.shapes, list(places(model, names)), str(folder))
    elif kind in FAMILIES:
        model = FAMILIES[kind].model_of(config, str(folder / "config.json"))
        names = _check_family(FAMILIES[kind], model, found, folder)
    else:
        raise ConfigError("model_type", f"{kind!r} is not supported; only {', '.join((*FAMILIES, OWN))} ({folder})")
    for place in places(model, names):
        found.dtype(place.tensor)
    return WeightsFolder(folder, str(kind), model, found, names, stored_dtype(config), config)


def _read(path: Path) -> dict[str, Any]:
    if not files.is_file(path):
        raise WeightsError(f"{path}: no such file")
    try:
        values = files.read_json(path)
    except ValueError as error:
        raise WeightsError(f"{path} is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise WeightsError(f"{path} holds no object")
    return values


def _own_model(config: Mapping[str, Any], folder: Path) -> ModelConfig:
    if config.get("format") != FORMAT:
        raise ConfigError("format", f"{config.get('format')!r}: this code reads format {FORMAT} ({folder})")
    return build(ModelConfig, config.get("model", {}), "model.")


def _check_family(family: Family, model: ModelConfig, found: SafetensorsFolder, folder: Path) -> dict[str, Name]:
    """The names of the family in this folder, checked: older GPT-2 files have no `transformer.` before theirs."""
    names, shapes = family.names(model), found.shapes
    prefix = "transformer."
    if family.model_type == "gpt2" and not any(name.startswith(prefix) for name in shapes):
        names = {path: name._replace(tensor=name.tensor.removeprefix(prefix)) for path, name in names.items()}
    besides = buffers(family, shapes)
    head, embedding = "lm_head.weight", names["embedding"].tensor
    if model.tie_embeddings and head in shapes:
        besides.add(head)
    check_shapes(shapes, list(places(model, names)), str(folder), besides)
    if head in besides and not same_tensor(found, head, embedding):
        told = f"true, but {head} is not {embedding}: set it to false if the file is right"
        raise ConfigError("tie_word_embeddings", f"{told} (in {folder})")
    return names
