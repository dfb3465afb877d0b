"""What model is in a folder of the LLaMA release? `params.json`, and tensors cut over `consolidated.NN.pth`.

Each file has a share of every tensor, as a device of its model parallelism held it (llama-models, `checkpoint.py`):

    rows       wq wk wv w1 w3 output: the shares lie below each other; of keys and values with fewer heads than files,
               neighbouring files hold the same
    columns    wo w2: beside each other
    either     tok_embeddings: columns in LLaMA 1 and 2, rows since LLaMA 3; what gives the model's width is right
    whole      norms, and `rope.freqs`, which is no weight

The numbers of a head are in another order than here (`names.py`). Of `params.json` some things are not said: the width
of the feed-forward layer and, where it is -1, the vocabulary are read off the tensors; the context is that of the
release with these settings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.config import ModelConfig
from chinchilla_jax.interop.hf.fields import Fields
from chinchilla_jax.interop.layout import Name, WeightsError, check_shapes, places
from chinchilla_jax.interop.names import names_of
from chinchilla_jax.interop.pth import StoredTensor, read_pth
from chinchilla_jax.interop.safetensors import same_tensor
from chinchilla_jax.model.rope_scaling import scaling_text

_ROWS = re.compile(r"(layers\.\d+\.(attention\.w[qkv]|feed_forward\.w[13])|output)\.weight")
_COLUMNS = re.compile(r"layers\.\d+\.(attention\.wo|feed_forward\.w2)\.weight")
_SHARED = re.compile(r"layers\.\d+\.attention\.w[kv]\.weight")
EMBEDDING, OUTPUT, FREQUENCIES = "tok_embeddings.weight", "output.weight", "rope.freqs"
# Of `use_scaled_rope`: LLaMA 3.1, and the two small models of 3.2 by width and layers, whose factor is another one.
_SCALED, _SMALL, _FACTOR, _SMALL_FACTOR = (1.0, 4.0, 8192.0), {(2048, 16), (3072, 28)}, 8.0, 32.0
_RUNNING = ("max_batch_size", "max_seq_len", "model_parallel_size", "multiple_of", "ffn_dim_multiplier")


class MetaShards:
    """The tensors of all files of a folder, joined.

    Raises WeightsError if a file is missing or damaged, or if they are not shares of the same tensors.
    """

    def __init__(self, folder: Path, width: int, kv_rows: int):
        """`width` is that of the model, `kv_rows` how many rows keys and values have."""
        self.folder, self.files = folder, _shard_files(folder)
        shards = [(path, read_pth(path)) for path in self.files]
        self._parts = {name: _parts(name, shards) for name in shards[0][1]}
        for path, tensors in shards[1:]:
            if others := tensors.keys() ^ shards[0][1].keys():
                raise WeightsError(f"{path} and {self.files[0]} hold other tensors, as {min(others)}")
        self._axes = {name: self._axis(name, width) for name in self._parts}
        for name in filter(_SHARED.fullmatch, self._parts):
            self._parts[name] = _different(self._parts[name], kv_rows)

    def _axis(self, name: str, width: int) -> int | None:
        """Along which axis shares are joined; None: each file has the whole."""
        if name == EMBEDDING and len(self._parts[name][0].shape) == 2:
            return 0 if self._parts[name][0].shape[1] == width else 1
        return 0 if _ROWS.fullmatch(name) else 1 if _COLUMNS.fullmatch(name) else None

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of all tensors by name, joined."""
        return {name: _joined(parts, self._axes[name]) for name, parts in self._parts.items()}

    def dtype(self, name: str) -> np.dtype:
        """How the numbers of a tensor are stored."""
        return self._parts[name][0].dtype

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The rows from `start` to `stop` of a tensor, and nothing else, read from the files that hold them."""
        parts, axis = self._parts[name], self._axes[name]
        stop = _joined(parts, axis)[0] if stop is None else stop
        if axis is None or len(parts) == 1:
            return parts[0].rows(start, stop)
        if axis == 1:
            return np.concatenate([part.rows(start, stop) for part in parts], axis=1)
        found, first = [], 0
        for part in parts:
            begin, end = max(start - first, 0), min(stop - first, part.shape[0])
            if begin < end:
                found.append(part.rows(begin, end))
            first += part.shape[0]
        return found[0] if len(found) == 1 else np.concatenate(found)


def _shard_files(folder: Path) -> list[Path]:
    found = files.glob(folder, "consolidated.*.pth")
    wanted = [folder / f"consolidated.{number:02d}.pth" for number in range(max(len(found), 1))]
    for path in wanted:
        if path not in found:
            held = ", ".join(other.name for other in found[:3]) or "none"
            raise WeightsError(f"{path}: no such file; of consolidated.NN.pth the folder has {held}")
    return wanted


def _parts(name: str, shards: list[tuple[Path, dict[str, StoredTensor]]]) -> list[StoredTensor]:
    """The shares of a tensor in the files that have it. Raises WeightsError unless all have one form."""
    parts = [tensors[name] for _, tensors in shards if name in tensors]
    for part in parts:
        if (part.shape, part.dtype) != (parts[0].shape, parts[0].dtype) or not part.shape:
            forms = " and ".join(f"{list(of.shape)} {of.dtype.name}" for of in (parts[0], part))
            raise WeightsError(f"{part.path}: {name} is not as in {parts[0].path.name}: {forms}")
    return parts


def _joined(parts: list[StoredTensor], axis: int | None) -> tuple[int, ...]:
    shape = parts[0].shape
    if axis is None or axis >= len(shape):
        return shape
    return (*shape[:axis], len(parts) * shape[axis], *shape[axis + 1 :])


def _different(parts: list[StoredTensor], rows: int) -> list[StoredTensor]:
    """Of shares of keys or values those that are not the same as the one before. Raises WeightsError by the file."""
    copies, left = divmod(len(parts) * parts[0].shape[0], rows)
    if copies < 2 or left or len(parts) % copies:
        return parts
    for number, part in enumerate(parts):
        original = parts[number - number % copies]
        if part.rows(0, 1).tobytes() != original.rows(0, 1).tobytes():
            raise WeightsError(f"{part.path} and {original.path.name} should hold the same keys and values, but do not")
    return parts[::copies]


def open_meta(folder: Path) -> tuple[ModelConfig, MetaShards, dict[str, Name], dict[str, Any]]:
    """The model of a folder, its tensors, what they are called, and what it says of the model and of its texts.

    Raises:
      ConfigError: params.json says something that this code cannot do; the message names the field.
      WeightsError: files are missing or damaged, or hold other tensors than those of the model.
    """
    path = folder / "params.json"
    try:
        params = files.read_json(path)
    except ValueError as error:
        raise WeightsError(f"{path} is no JSON: {error}") from None
    if not isinstance(params, dict):
        raise WeightsError(f"{path} holds no object")
    fields = Fields(params, str(path))
    shape = _read(fields)
    tensors = MetaShards(folder, shape["d_model"], shape["n_kv_heads"] * shape["head_dim"])
    sizes, tied = _sizes(tensors, fields), _tied(tensors)
    model = ModelConfig(**shape, **sizes, **_positions(fields, shape, tensors), tie_embeddings=tied)
    fields.done()
    names, besides = names_of("meta", model), {FREQUENCIES, OUTPUT} if tied else {FREQUENCIES}
    where = f"{folder} (consolidated.00 to {len(tensors.files) - 1:02d})"
    check_shapes(tensors.shapes, list(places(model, names)), where, besides)
    return model, tensors, names, params | _text_ends(folder)


def _read(fields: Fields) -> dict[str, Any]:
    """What `params.json` alone says of the model."""
    d_model, heads = fields.take("dim", int), fields.take("n_heads", int)
    if heads < 1 or d_model % heads:
        raise fields.refused("n_heads", f"{heads} does not divide dim={d_model}")
    for name in _RUNNING:  # of running, or of widths that are read off the tensors
        fields.take(name, float if name == "ffn_dim_multiplier" else int, None)
    return {
        "n_layers": fields.take("n_layers", int),
        "d_model": d_model,
        "n_heads": heads,
        "n_kv_heads": fields.take("n_kv_heads", int, heads),
        "head_dim": d_model // heads,
        "norm_eps": fields.take("norm_eps", float),
        "position": "rope",
        "norm": "rmsnorm",
        "feed_forward": "swiglu",
        "biases": "none",
    }


def _sizes(tensors: MetaShards, fields: Fields) -> dict[str, Any]:
    """The widths that are read off the tensors."""
    shapes = tensors.shapes
    for name in (EMBEDDING, up := "layers.0.feed_forward.w1.weight"):
        if name not in shapes:
            raise WeightsError(f"{tensors.files[0]} lacks {name}: it is none of a LLaMA release")
    vocabulary = fields.take("vocab_size", int, -1)
    return {"d_ff": shapes[up][0], "vocab_size": shapes[EMBEDDING][0] if vocabulary < 0 else vocabulary}


def _positions(fields: Fields, shape: Mapping[str, Any], tensors: MetaShards) -> dict[str, Any]:
    """Rotary positions, and the context that the release with such settings was trained with."""
    newer = tensors.shapes[EMBEDDING][0] > 100_000  # LLaMA 3: a vocabulary of 128256, before it 32000
    theta = fields.take("rope_theta", float, 500000.0 if newer else 10000.0)
    if fields.take("use_scaled_rope", bool, False):
        factor = _SMALL_FACTOR if (shape["d_model"], shape["n_layers"]) in _SMALL else _FACTOR
        scaling = scaling_text("llama3", (fields.take("rope_scaling_factor", float, factor), *_SCALED))
        return {"rope_theta": theta, "rope_scaling": scaling, "max_position": 131072}
    by_theta = {500000.0: 8192, 1e6: 16384, 10000.0: 4096 if shape["norm_eps"] > 1e-6 else 2048}
    return {"rope_theta": theta, "max_position": by_theta.get(theta, 4096)}


def _tied(tensors: MetaShards) -> bool:
    """Whether the output is the embedding: it is left out, or is the same to the bit."""
    return OUTPUT not in tensors.shapes or same_tensor(tensors, OUTPUT, EMBEDDING)


def _text_ends(folder: Path) -> dict[str, Any]:
    """The tokens that begin and end a text, as fields of a Hugging Face config; none if there is no tokenizer."""
    path = folder / "tokenizer.model"
    if not files.is_file(path):
        return {}
    content = files.read_bytes(path)
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\n", content):  # LLaMA 3: a line a token; the others follow in a fixed order
        ranks = content.count(b" ")
        return {"bos_token_id": ranks, "eos_token_id": [ranks + 1, ranks + 8, ranks + 9]}
    from chinchilla_jax.data import open_tokenizer

    words = open_tokenizer(path)
    return ({} if words.bos is None else {"bos_token_id": words.bos}) | {"eos_token_id": words.separator}
