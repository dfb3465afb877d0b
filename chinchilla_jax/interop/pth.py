"""What tensors are in a file that `torch.save` wrote? Described without torch, and without running what is in the file.

Such a file is a zip archive whose entries are not compressed: `NAME/data.pkl`, a pickle of a dictionary of tensors, and
`NAME/data/KEY`, the numbers of one storage, of which a tensor is a view with an offset and strides. A pickle is a
program that may call anything. Here it is followed, not run: of its instructions those that such a dictionary needs are
known, and of the names that it may ask for these:

    collections.OrderedDict, torch._utils._rebuild_tensor_v2, torch.{Float,Half,BFloat16}Storage

None of them is called either: what is made of them are descriptions. Anything else is refused by its name. The numbers
stay in the file until rows of a tensor are asked for.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from chinchilla_jax.base import files
from chinchilla_jax.interop.layout import WeightsError

DICT, TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
STORAGES = {
    "torch FloatStorage": np.dtype(np.float32),
    "torch HalfStorage": np.dtype(np.float16),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
}
_MOST_PICKLE = 100_000_000  # bytes; that of a thousand tensors has 100 thousand
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_GIVEN = {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE"}
_PUTS, _GETS = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_LOCAL_HEADER = 30  # bytes before an entry's name


class _Global(NamedTuple):
    """A name that a pickle asked for."""

    name: str


class _Storage(NamedTuple):
    """The numbers of an entry `data/KEY`."""

    key: str
    dtype: np.dtype
    numbers: int


class _View(NamedTuple):
    """A tensor: of a storage from a number on, with its shape and how far apart its numbers are along each axis."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in its file: its first number from byte `begin` on, strides in numbers."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    begin: int

    def rows(self, start: int, stop: int) -> np.ndarray:
        """The rows from `start` to `stop`, and nothing else, read from the file."""
        shape, size = (stop - start, *self.shape[1:]), self.dtype.itemsize
        begin, reach = self.begin + start * self.strides[0] * size, _reach(shape, self.strides) * size
        if self.strides == _packed(self.shape):
            return np.fromfile(self.path, np.uint8, reach, offset=begin).view(self.dtype).reshape(shape)
        mapped = np.memmap(self.path, np.uint8, "r", begin, reach).view(self.dtype)
        strides = [step * size for step in self.strides]
        return np.array(np.lib.stride_tricks.as_strided(mapped, shape, strides, writeable=False))


def _packed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a tensor without gaps, in C order."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _reach(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """From its first number to behind its last."""
    return 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True)) if math.prod(shape) else 0


def read_pth(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name.

    Raises WeightsError if it is missing or damaged, or asks for anything but tensors; the message says for what.
    """
    if not files.is_file(path):
        raise WeightsError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            if any(entry.header_offset < 0 for entry in entries.values()):
                raise ValueError("its directory of entries is wrong")
            folder = _folder(entries)
            pickled = _whole(archive, entries[f"{folder}/data.pkl"])
            order = entries.get(f"{folder}/byteorder")
            if order is not None and _whole(archive, order) != b"little":
                raise ValueError("its numbers are big-endian")
        views = _views(pickled)
        begins = {key: _begin(path, entries, f"{folder}/data/{key}") for key in {v.storage.key for v in views.values()}}
        return {name: _stored(path, name, view, *begins[view.storage.key]) for name, view in views.items()}
    except zipfile.BadZipFile:
        told = "is cut off, or was written by a torch before 1.6: fetch it again, or save it anew with a newer one"
        raise WeightsError(f"{path} is no zip archive: it {told}") from None
    except (ValueError, TypeError, KeyError, IndexError, EOFError, NotImplementedError, RuntimeError) as error:
        raise WeightsError(f"{path} is damaged or holds more than tensors: {error}") from None


def _folder(entries: dict[str, zipfile.ZipInfo]) -> str:
    found = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(found) != 1:
        raise ValueError("torch.save writes one NAME/data.pkl, here there is " + ("none" if not found else "another"))
    return found[0].partition("/")[0]


def _whole(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > _MOST_PICKLE:
        raise ValueError(f"{entry.filename} is compressed, or has more than {_MOST_PICKLE} bytes")
    return archive.read(entry)


def _begin(path: Path, entries: dict[str, zipfile.ZipInfo], name: str) -> tuple[int, int]:
    """At which byte of the file an entry's content begins, and how many bytes it has."""
    entry = entries.get(name)
    if entry is None:
        raise ValueError(f"it lacks {name}")
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    with open(path, "rb") as file:
        file.seek(entry.header_offset)
        header = file.read(_LOCAL_HEADER)
    lengths = [int.from_bytes(header[at : at + 2], "little") for at in (26, 28)]  # of its name, of what is added
    begin = entry.header_offset + _LOCAL_HEADER + sum(lengths)
    if header[:4] != b"PK\x03\x04" or begin + entry.file_size > files.stamp(path)[0]:
        raise ValueError(f"{name} does not lie where the archive says")
    return begin, entry.file_size


def _stored(path: Path, name: str, view: _View, begin: int, size: int) -> StoredTensor:
    itemsize = view.storage.dtype.itemsize
    if view.storage.numbers * itemsize > size or view.offset + _reach(view.shape, view.strides) > view.storage.numbers:
        raise ValueError(f"{name} does not lie within its storage, data/{view.storage.key}")
    return StoredTensor(path, view.storage.dtype, view.shape, view.strides, begin + view.offset * itemsize)


def _views(pickled: bytes) -> dict[str, _View]:
    """The dictionary of a pickle. Raises ValueError or IndexError if it is anything but one of tensors by name."""
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(pickled):
        machine.follow(opcode.name, argument)
    (found,) = machine.stack
    if not isinstance(found, dict) or not all(isinstance(view, _View) for view in found.values()):
        raise ValueError("it is no dictionary of tensors")
    return found


class _Machine:
    """Follows the instructions of a pickle, as far as they describe tensors. Nothing is imported, nothing is called."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def follow(self, name: str, argument: Any) -> None:
        """One instruction, by its name in `pickletools`. Raises ValueError if it is none of those that are known."""
        if name in _CONSTANTS or name in _GIVEN:
            self.stack.append(_CONSTANTS.get(name, argument))
        elif name == "EMPTY_DICT":
            self.stack.append({})
        elif name in _PUTS or name == "MEMOIZE":
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in _GETS:
            self.stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(self.stack))
        elif name in _TUPLES or name == "TUPLE":
            self.stack.append(tuple(self._taken(_TUPLES.get(name))))
        elif name in ("SETITEM", "SETITEMS"):
            self._set_items(self._taken(2 if name == "SETITEM" else None))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self.stack.append(_asked_for(argument if name == "GLOBAL" else " ".join(self._taken(2))))
        elif name in ("REDUCE", "BINPERSID", "BUILD"):
            self._made(name)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"the instruction {name} is not one of those that tensors need")

    def _taken(self, count: int | None) -> list[Any]:
        """So many from the top of the stack, or all down to the last mark."""
        first = self._marks.pop() if count is None else len(self.stack) - count
        if first < 0:
            raise ValueError("its pickle is damaged")
        taken = self.stack[first:]
        del self.stack[first:]
        return taken

    def _set_items(self, items: list[Any]) -> None:
        into = self.stack[-1]
        if not isinstance(into, dict) or len(items) % 2 or not all(isinstance(key, str) for key in items[::2]):
            raise ValueError("it holds something else than tensors by name")
        into.update(zip(items[::2], items[1::2], strict=True))

    def _made(self, how: str) -> None:
        """A description in place of what torch would make."""
        if how == "BINPERSID":
            self.stack.append(_storage(self.stack.pop()))
            return
        subject, arguments = self._taken(2)
        if how == "BUILD":  # attributes of a dictionary, such as `_metadata`: not needed
            if not isinstance(subject, dict):
                raise ValueError("it sets attributes of something else than a dictionary")
            self.stack.append(subject)
        elif subject == _Global(DICT) and arguments == ():
            self.stack.append({})
        elif subject == _Global(TENSOR):
            self.stack.append(_view(arguments))
        else:
            raise ValueError("it calls something else than what makes tensors")


def _asked_for(name: str) -> _Global:
    if name not in (DICT, TENSOR, *STORAGES):
        raise ValueError(f"it asks for {name.replace(' ', '.')}, which is refused")
    return _Global(name)


def _storage(reference: Any) -> _Storage:
    match reference:
        case ("storage", _Global(name), str(key), str(), int(numbers)) if name in STORAGES and numbers >= 0:
            return _Storage(key, STORAGES[name], numbers)
    raise ValueError("it refers to something else than storages")


def _view(arguments: Any) -> _View:
    match arguments:
        case (_Storage() as storage, offset, tuple(shape), tuple(strides), *_) if len(shape) == len(strides):
            if all(isinstance(number, int) and number >= 0 for number in (offset, *shape, *strides)):
                return _View(storage, offset, shape, strides)
    raise ValueError("it describes a tensor in another way than torch does")
