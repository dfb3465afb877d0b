"""What tensors are in a folder of safetensors files? They are read and written by rows, never a whole file at once.

A file is 8 bytes, the length of a header in JSON, `{name: {dtype, shape, data_offsets}}`, and the tensors' numbers, in
C order and without holes (https://github.com/huggingface/safetensors). One file is called `model.safetensors`; of
several an index says which tensor is where. The public library maps a file into memory, where it counts as used, and
writes only what is in memory as a whole, and that of transposed arrays in the wrong order.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.interop.layout import WeightsError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LIMIT = 5 * 10**9  # bytes of a file's tensors, as huggingface_hub cuts them
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_WORDS = {dtype: word for word, dtype in DTYPES.items()}
_MOST_HEADER = 100_000_000  # the public library's own bound


class Tensors(Protocol):
    """Tensors by name, whose rows can be read one after the other."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """All of them."""

    def dtype(self, name: str) -> np.dtype:
        """How the numbers are stored."""

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows of a tensor, its first axis; they may be changed."""


def same_tensor(tensors: Tensors, one: str, other: str, rows: int = 1024) -> bool:
    """Whether two tensors are the same to the bit, compared some rows at a time."""
    shape = tensors.shapes[one]
    if shape != tensors.shapes[other] or tensors.dtype(one) != tensors.dtype(other):
        return False
    return all(
        tensors.rows(one, start, min(start + rows, shape[0])).tobytes()
        == tensors.rows(other, start, min(start + rows, shape[0])).tobytes()
        for start in range(0, shape[0], rows)
    )


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in its file: from byte `begin` on."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int


class SafetensorsFolder:
    """The tensors of `model.safetensors`, or of the files that `model.safetensors.index.json` names.

    Raises:
      WeightsError: there are none, or a file is damaged.
    """

    def __init__(self, folder: Path):
        self.files = _weight_files(folder)
        self._tensors: dict[str, Tensor] = {}
        for path in self.files:
            for name, tensor in read_header(path).items():
                if name in self._tensors:
                    raise WeightsError(f"{path}: {name} is in {self._tensors[name].path.name} too")
                self._tensors[name] = tensor
        self._check_index(folder)

    def _check_index(self, folder: Path) -> None:
        if len(self.files) == 1 and self.files[0].name == SINGLE:
            return
        for name, file in _weight_map(folder / INDEX).items():
            if name not in self._tensors or self._tensors[name].path.name != file:
                raise WeightsError(f"{folder / INDEX}: {name} is not in {file}")

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of all tensors by name."""
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def dtype(self, name: str) -> np.dtype:
        """How the numbers of a tensor are stored. Raises WeightsError for other than floating-point numbers."""
        tensor = self._tensors[name]
        if tensor.dtype not in DTYPES:
            raise WeightsError(f"{tensor.path}: {name} holds {tensor.dtype}; weights are {', '.join(DTYPES)}")
        return DTYPES[tensor.dtype]

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The rows from `start` to `stop` of a tensor, and nothing else, read from its file."""
        tensor, dtype = self._tensors[name], self.dtype(name)
        stop = tensor.shape[0] if stop is None else stop
        row = math.prod(tensor.shape[1:]) * dtype.itemsize
        found = np.fromfile(tensor.path, np.uint8, (stop - start) * row, offset=tensor.begin + start * row)
        return found.view(dtype).reshape(stop - start, *tensor.shape[1:])


def _weight_files(folder: Path) -> list[Path]:
    if files.is_file(folder / SINGLE):
        return [folder / SINGLE]
    if files.is_file(folder / INDEX):
        return [folder / name for name in sorted(set(_weight_map(folder / INDEX).values()))]
    other = [path.name for pattern in ("*.bin", "*.pt", "*.gguf") for path in files.glob(folder, pattern)]
    instead = f"; it has {other[0]}, which is not read: convert it to safetensors" if other else ""
    raise WeightsError(f"{folder} has neither {SINGLE} nor {INDEX}{instead}")


def _weight_map(path: Path) -> dict[str, str]:
    try:
        found = files.read_json(path)["weight_map"]
        plain = all(isinstance(file, str) and Path(file).name == file for file in found.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    if not plain or not found:
        raise WeightsError(f"{path} is damaged: its weight_map must name files of the same folder")
    return found


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of one file. Raises WeightsError if it is missing or damaged."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name is there twice")
        return dict(pairs)

    if not files.is_file(path):
        raise WeightsError(f"{path}: no such file")
    size = files.stamp(path)[0]
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_MOST_HEADER, size - 8):
                raise ValueError(f"its header would have {length} bytes, the file has {size}")
            header = json.loads(file.read(length), object_pairs_hook=once)
        header.pop("__metadata__", None)
        return _located(path, header, 8 + length, size)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is damaged or no safetensors file: {error}") from None


def _located(path: Path, header: dict[str, dict], base: int, size: int) -> dict[str, Tensor]:
    """The tensors of a header; a ValueError unless their numbers fill the file, without holes and each as its shape."""
    tensors, end = {}, 0
    for name, facts in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        (begin, stop), shape = facts["data_offsets"], tuple(facts["shape"])
        known = DTYPES.get(facts["dtype"])
        if begin != end or stop < begin or (known and stop - begin != math.prod(shape) * known.itemsize):
            raise ValueError(f"{name} does not lie where the header says")
        tensors[name], end = Tensor(path, facts["dtype"], shape, base + begin), stop
    if base + end != size:
        raise ValueError(f"it has {size} bytes, its header says {base + end}")
    return tensors


@dataclasses.dataclass(frozen=True)
class Planned:
    """A tensor that is to be written; `make` gives its numbers, in any order in memory."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def bytes(self) -> int:
        """Of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(
    folder: Path, tensors: Iterable[Planned], echo: Callable[[str], None], limit: int | None = None
) -> None:
    """Writes them, in their order, one in memory at a time, into as many files as `limit` bytes ask for.

    The folder is new: whoever calls this gives it its name when all is written.
    """
    shards = _shards(tensors, limit or LIMIT)
    names = [SINGLE] if len(shards) == 1 else [
        f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)
    ]  # fmt: skip
    files.make_folder(folder)
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, shard)
        echo(f"{name}: {len(shard)} tensors, {sum(tensor.bytes for tensor in shard) / 1e9:.2f} GB")
    if len(shards) > 1:
        where = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        size = sum(tensor.bytes for shard in shards for tensor in shard)
        files.write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": where})


def _shards(tensors: Iterable[Planned], limit: int) -> list[list[Planned]]:
    """Wide numbers come first, so that in each file all lie at multiples of their size."""
    shards, size = list[list[Planned]](), 0
    for tensor in sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize):
        if not shards or size + tensor.bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.bytes
    return shards


def _write_file(path: Path, tensors: Sequence[Planned]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # without it older readers refuse the file
    end = 0
    for tensor in tensors:
        offsets = [end, end := end + tensor.bytes]
        header[tensor.name] = {"dtype": _WORDS[tensor.dtype], "shape": tensor.shape, "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            array = np.ascontiguousarray(tensor.make(), tensor.dtype)  # an array's own memory may be in another order
            if array.shape != tensor.shape:
                raise ValueError(f"{tensor.name}: {array.shape} was made, {tensor.shape} planned")
            file.write(array.reshape(-1).view(np.uint8).data)
            del array  # before the next one is made
        file.flush()
        os.fsync(file.fileno())
