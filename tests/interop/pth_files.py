"""Files as `torch.save` writes them, made without torch: a zip archive with a pickle and the numbers of each tensor."""

import struct
import zipfile

import numpy as np

_STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage"}


def _text(value):
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _number(value):
    return b"J" + struct.pack("<i", value)


def _numbers(values):
    return b"(" + b"".join(map(_number, values)) + b"t"


def tensor(key, storage, numbers, shape, strides, offset=0):
    """The instructions that make a tensor of a storage."""
    reference = b"(" + _text("storage") + b"c" + storage.encode() + b"\n" + _text(key) + _text("cpu")
    reference += _number(numbers) + b"tQ"
    made = b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + _number(offset) + _numbers(shape) + _numbers(strides)
    return made + b"\x89ccollections\nOrderedDict\n)RtR"


def write_zip(path, entries, compression=zipfile.ZIP_STORED, name="archive"):
    """The archive of a pickle, and of what else is given by name."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for entry, content in entries.items():
            archive.writestr(f"{name}/{entry}", content)


def write_pth(path, arrays, **more):
    """Arrays by name, each a storage of its own; `more` is instructions of further items by name."""
    items, entries = b"", {}
    for number, (name, array) in enumerate(arrays.items()):
        strides = [step // array.itemsize for step in np.ascontiguousarray(array).strides]
        storage = f"torch\n{_STORAGES[array.dtype.name]}"
        items += _text(name) + tensor(str(number), storage, array.size, array.shape, strides)
        entries[f"data/{number}"] = np.ascontiguousarray(array).tobytes()
    for name, instructions in more.items():
        items += _text(name) + instructions
    write_zip(path, {"data.pkl": b"\x80\x02}(" + items + b"u."} | entries)
