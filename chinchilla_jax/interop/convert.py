"""How do weights get from one folder to another? Tensor by tensor: no more than one of them is in memory.

`import_model` brings other people's weights into this code's own layout, `export_model` a run, or a folder of weights,
into that of a Hugging Face family, or into our own with the code that transformers needs for it. The folder gets its
name when everything is in it.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import UsageError
from chinchilla_jax.config import ConfigError, ModelConfig
from chinchilla_jax.interop.checkpoint import RunWeights
from chinchilla_jax.interop.folder import OWN, WeightsFolder, is_weights_folder, open_weights
from chinchilla_jax.interop.hf import beside, card, own
from chinchilla_jax.interop.hf.families import FAMILIES
from chinchilla_jax.interop.layout import Name, Place, places
from chinchilla_jax.interop.names import own_names
from chinchilla_jax.interop.safetensors import DTYPES, Planned, write_tensors
from chinchilla_jax.ledger import count_parameters

AUTO = "auto"
FORMATS = (AUTO, *FAMILIES, OWN)
AS_STORED = "stored"
TYPES = {AS_STORED: None, "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
Echo = Callable[[str], None]
Weights = RunWeights | WeightsFolder


def import_model(source: Path, folder: Path, echo: Echo = print) -> None:
    """Writes the weights of a folder (`folder.open_weights`) in our own layout, in the types that they are stored in.

    Raises as `open_weights`; UsageError if there is something at the target.
    """
    found = open_weights(source)
    _convert(found, folder, OWN, AS_STORED, echo)


def export_model(
    source: Path, folder: Path, format: str = AUTO, dtype: str = AS_STORED, step: int | None = None, echo: Echo = print
) -> None:
    """Writes the weights of a run, or of a folder of weights, as others read them.

    Args:
      format: a Hugging Face family or `chinchilla_jax`; by default the first family that can say the model.
      dtype: of the numbers; those of a run are float32.
      step: of a run, which checkpoint; by default the newest.

    Raises:
      ConfigError: the format cannot say the model; names the settings. Or there is no such model.
      UsageError: there is something at the target.
    """
    if format not in FORMATS or dtype not in TYPES:
        raise UsageError(f"--format is one of {', '.join(FORMATS)}, --dtype one of {', '.join(TYPES)}")
    weights: Weights
    if is_weights_folder(source):
        if step is not None:
            raise ConfigError("step", f"{source} is no run: it has no checkpoints")
        weights = open_weights(source)
    else:
        weights = RunWeights(source, step, echo)
    _convert(weights, folder, _chosen(weights.model, format, echo), dtype, echo)


def _chosen(model: ModelConfig, format: str, echo: Echo) -> str:
    """The format, if it can say the model."""
    if format == AUTO:
        fitting = [name for name, family in FAMILIES.items() if not family.cannot_say(model)]
        format = fitting[0] if fitting else OWN
        echo(f"as {format}" + ("" if fitting else ": no format of others can say this model"))
    if format in FAMILIES and (told := FAMILIES[format].cannot_say(model)):
        raise ConfigError(told[0].partition("=")[0], f"a {format} cannot be this model: {'; '.join(told)}")
    return format


def _convert(weights: Weights, folder: Path, format: str, dtype: str, echo: Echo) -> None:
    model = weights.model
    names = own_names(model) if format == OWN else FAMILIES[format].names(model)
    tensors = planned(weights, names, TYPES[dtype])
    types = sorted({tensor.dtype.name for tensor in tensors})
    echo(f"{weights.path}: {count_parameters(model).total:,} parameters, {', '.join(types)}")
    with new_folder(folder) as room:
        write_tensors(room, tensors, echo)
        companions = beside.write(weights, room, echo)
        stored = max(tensors, key=lambda tensor: tensor.bytes).dtype.name
        files.write_json(room / "config.json", _config(model, format, stored) | companions)
        if format == OWN:
            own.write_code(room)
        files.write_text(room / "README.md", card.text(weights, folder.name, format, companions))
    echo(f"{folder}: written")


def _config(model: ModelConfig, format: str, dtype: str) -> dict[str, Any]:
    """`config.json`, with the type in the spelling of version 5 of transformers and of version 4."""
    said = own.config(model) if format == OWN else FAMILIES[format].write(model)
    kind = {} if format == OWN else {"architectures": [FAMILIES[format].architecture], "model_type": format}
    return {**kind, **said, "dtype": dtype, "torch_dtype": dtype}


def planned(weights: Weights, names: Mapping[str, Name], kind: str | None) -> list[Planned]:
    """What is to be written: the tensors of the model under these names, of this type or as they are stored.

    They come weight by weight, each for all layers: so a run's checkpoint is read once.
    """
    by_tensor: dict[str, list[Place]] = {}
    for place in places(weights.model, names):
        by_tensor.setdefault(place.tensor, []).append(place)
    found = []
    for name, parts in by_tensor.items():
        dtype = weights.dtype_of(parts[0].path) if kind is None else DTYPES[kind]
        found.append(Planned(name, parts[0].tensor_shape, dtype, functools.partial(_tensor, weights, parts)))
    return found


def _tensor(weights: Weights, parts: list[Place]) -> np.ndarray:
    weights.begin({place.path for place in parts})
    rows = [place.rows(weights.read(place.path, place.layer, place.expert)) for place in parts]
    return rows[0] if len(rows) == 1 else np.concatenate(rows, axis=-1)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Room beside a folder, which gets its name if nothing goes wrong. Raises UsageError if the name is taken."""
    if files.is_file(folder) or files.glob(folder):
        raise UsageError(f"{folder} is there already; name a new folder")
    room = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    files.remove(room)
    files.make_folder(room)
    try:
        yield room
        files.rename(room, folder)
    finally:
        files.remove(room)
