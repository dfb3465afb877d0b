"""Whole files: the one door to storage. A reader, or a restart, never sees half of a file.

A path is text or a `Path`. All of them are on the local disk today; another kind of storage (`gs://...`) goes behind
these functions, and is refused until then. Files that are mapped into memory, appended to or locked are opened where
they are used, by a path that `path` gave.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from chinchilla_jax.base.errors import ExplainedError

# `gs:/` is what is left of `gs://` after `pathlib` had it. One letter is the drive of a Windows path.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


class StorageError(ExplainedError):
    """A path that leads to no storage known here; the message names it."""


def path(text: str | os.PathLike) -> Path:
    """The path that is written so. Raises `StorageError` for `s3://...` and the like, which would become folders."""
    if scheme := _SCHEME.match(os.fspath(text)):
        raise StorageError(f"{text}: storage {scheme[1]}:// is not known; name a folder or file of this machine")
    return Path(text)


_at = path  # where an argument is called `path`


def exists(path: str | os.PathLike) -> bool:
    """Whether there is a file or a folder."""
    return _at(path).exists()


def is_file(path: str | os.PathLike) -> bool:
    """Whether there is a file."""
    return _at(path).is_file()


def is_folder(path: str | os.PathLike) -> bool:
    """Whether there is a folder."""
    return _at(path).is_dir()


def glob(folder: str | os.PathLike, pattern: str = "*") -> list[Path]:
    """What matches in a folder, sorted; `**/*` is everything below it. Nothing where there is no such folder."""
    return sorted(_at(folder).glob(pattern))


def stamp(path: str | os.PathLike) -> tuple[int, int]:
    """Bytes of a file, and when it was last written, in nanoseconds."""
    status = _at(path).stat()
    return status.st_size, status.st_mtime_ns


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of a file."""
    return _at(path).read_bytes()


def read_text(path: str | os.PathLike) -> str:
    """The content of a file in UTF-8."""
    return read_bytes(path).decode()


def read_json(path: str | os.PathLike) -> Any:
    """The value in a JSON file; raises `ValueError` if it is not JSON."""
    return json.loads(read_bytes(path))


def read_end(path: str | os.PathLike, size: int) -> bytes:
    """The last `size` bytes of a file that may still grow; all of it if it is shorter."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, 2) - size))
        return file.read()


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes to a temporary name in the same folder, then renames."""
    path = _at(path)
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """`write_bytes` of text in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, value: Any, sort_keys: bool = False) -> None:
    """`write_text` of indented JSON. NaN and infinities are refused: JSON has none."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, sort_keys=sort_keys) + "\n")


def make_folder(path: str | os.PathLike) -> None:
    """Makes a folder and those above it; nothing happens where it is there already."""
    _at(path).mkdir(parents=True, exist_ok=True)


def touch(path: str | os.PathLike) -> None:
    """Notes the present time as that of a file's last write; an OSError where there is none, and none is made."""
    os.utime(path)


def create(path: str | os.PathLike, text: str) -> bool:
    """Makes a new file; False if it is there already. Of several processes that try, one succeeds."""
    path = _at(path)
    make_folder(path.parent)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def rename(path: str | os.PathLike, target: str | os.PathLike) -> None:
    """Gives a file another name in the same storage; what has that name already is replaced."""
    os.replace(path, target)


def remove(path: str | os.PathLike) -> None:
    """Removes a file, or a folder with all that is in it; nothing where there is none."""
    if is_folder(path):
        shutil.rmtree(path)
    else:
        _at(path).unlink(missing_ok=True)
