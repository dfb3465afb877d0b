"""Whole files: the one door to storage. A reader, or a restart, never sees half of a file.

A path is text or what `path` made of it: of the local disk, or `gs://BUCKET/...` (`bucket.py`). Files that are mapped
into memory, streamed or locked are opened where they are used, on the local disk.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from chinchilla_jax.base import bucket
from chinchilla_jax.base.bucket import StorageError as StorageError

APPEND_SECONDS = 5.0  # between two additions to an object; a bucket takes one change of an object a second
CACHE = "CHINCHILLA_JAX_CACHE"
# `gs:/` is what is left of `gs://` after `pathlib` had it. One letter is the drive of a Windows path.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def path(text: str | os.PathLike) -> Path:
    """The path that is written so; one of a bucket has what a `Path` has, as far as it is no matter of storage.

    Raises `StorageError` for `s3://...` and the like, which would become folders.
    """
    text = os.fspath(text)
    if not (scheme := _SCHEME.match(text)):
        return Path(text)
    if text.startswith(f"{bucket.SCHEME}://"):
        return bucket.parse(text)
    known = "name a folder or file of this machine, or gs://BUCKET/..."
    raise StorageError(f"{text}: storage {scheme[1]}:// is not known; {known}")


_at = path  # where an argument is called `path`


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether the path leads to a bucket and not to a disk."""
    return not isinstance(_at(path), Path)


def here(path: str | os.PathLike) -> Path:
    """The path, of the disk. Raises `StorageError` for one of a bucket."""
    if in_bucket(path):
        raise StorageError(f"{path}: is used on disk only; copy it to a folder of this machine, and name that")
    return Path(path)


def absolute(path: str | os.PathLike) -> Path:
    """The path that does not depend on the current folder."""
    return _at(path) if in_bucket(path) else Path(path).absolute()


def resolved(path: str | os.PathLike) -> Path:
    """The same without symbolic links, which buckets do not have."""
    return _at(path) if in_bucket(path) else Path(path).resolve()


def on_disk(path: str | os.PathLike) -> Path:
    """The path itself, if it is of the disk; of a bucket a path of the cache of this machine, for what has to be there.

    The cache is the folder that `CHINCHILLA_JAX_CACHE` names, else `~/.cache/chinchilla_jax`.
    """
    return _cache() / str(path).removeprefix(f"{bucket.SCHEME}://") if in_bucket(path) else Path(path)


def fetched(folder: str | os.PathLike) -> Path:
    """The folder itself, if it is on disk; of one in a bucket a copy in the cache, made once for each state of it."""
    return bucket.fetch(_at(folder), _cache()) if in_bucket(folder) else Path(folder)


def _cache() -> Path:
    return Path(os.environ.get(CACHE) or "~/.cache/chinchilla_jax").expanduser() / "buckets"


def exists(path: str | os.PathLike) -> bool:
    """Whether there is a file or a folder."""
    return bucket.exists(_at(path)) if in_bucket(path) else Path(path).exists()


def is_file(path: str | os.PathLike) -> bool:
    """Whether there is a file."""
    return bucket.is_file(_at(path)) if in_bucket(path) else Path(path).is_file()


def is_folder(path: str | os.PathLike) -> bool:
    """Whether there is a folder; in a bucket, whether there is anything in it."""
    return bucket.is_folder(_at(path)) if in_bucket(path) else Path(path).is_dir()


def glob(folder: str | os.PathLike, pattern: str = "*") -> list[Path]:
    """What matches in a folder, sorted; `**/*` is everything below it. Nothing where there is no such folder."""
    return bucket.glob(_at(folder), pattern) if in_bucket(folder) else sorted(Path(folder).glob(pattern))


def stamp(path: str | os.PathLike) -> tuple[int, int]:
    """Bytes of a file, and when it was last written, in nanoseconds."""
    if in_bucket(path):
        return bucket.stamp(_at(path))
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of a file."""
    return bucket.read(_at(path)) if in_bucket(path) else Path(path).read_bytes()


def read_text(path: str | os.PathLike) -> str:
    """The content of a file in UTF-8."""
    return read_bytes(path).decode()


def read_json(path: str | os.PathLike) -> Any:
    """The value in a JSON file; raises `ValueError` if it is not JSON."""
    return json.loads(read_bytes(path))


def read_end(path: str | os.PathLike, size: int) -> bytes:
    """The last `size` bytes of a file that may still grow; all of it if it is shorter."""
    if in_bucket(path):
        return bucket.read_end(_at(path), size)
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, 2) - size))
        return file.read()


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes to a temporary name in the same folder, then renames."""
    if in_bucket(path):
        bucket.write(_at(path), content)
        return
    path = Path(path)
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


class Appender:
    """A file that this process alone adds text to. On disk that is there at once; in a bucket every few seconds."""

    def __init__(self, path: str | os.PathLike):
        self._object = _at(path) if in_bucket(path) else None
        self._file = None if self._object else open(path, "a", encoding="utf-8")
        self._waiting, self._added = "", time.monotonic()

    def write(self, text: str) -> None:
        """Adds text."""
        if self._file:
            self._file.write(text)
            self._file.flush()
            return
        self._waiting += text
        if time.monotonic() - self._added > APPEND_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Returns when all that was written can be read."""
        if self._object and self._waiting:
            bucket.append(self._object, self._waiting.encode())
            self._waiting, self._added = "", time.monotonic()

    def close(self) -> None:
        """Flushes; nothing comes after it."""
        self.flush()
        if self._file:
            self._file.close()


def make_folder(path: str | os.PathLike) -> None:
    """Makes a folder and those above it; nothing happens where it is there already, or in a bucket, which has none."""
    if not in_bucket(path):
        Path(path).mkdir(parents=True, exist_ok=True)


def touch(path: str | os.PathLike) -> None:
    """Notes the present time as that of a file's last write; an OSError where there is none, and none is made."""
    if in_bucket(path):
        bucket.touch(_at(path))
    else:
        os.utime(path)


def create(path: str | os.PathLike, text: str) -> bool:
    """Makes a new file; False if it is there already. Of several processes that try, one succeeds."""
    if in_bucket(path):
        return bucket.write(_at(path), text.encode(), generation=0) is not None
    path = Path(path)
    make_folder(path.parent)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def version(path: str | os.PathLike) -> int:
    """Which write of an object of a bucket this is: a number that no other write has; 0 where there is none."""
    return bucket.generation(_at(path)) or 0


def replace_version(path: str | os.PathLike, text: str, version: int) -> int | None:
    """Writes an object of a bucket if it is this version, and returns the new one; None if it is another by now."""
    return bucket.write(_at(path), text.encode(), version)


def remove_version(path: str | os.PathLike, version: int) -> None:
    """Removes an object of a bucket if it is still this version."""
    bucket.remove(_at(path), version)


def rename(path: str | os.PathLike, target: str | os.PathLike) -> None:
    """Gives a file another name in the same storage; what has that name already is replaced.

    In a bucket that is a copy and a removal: not at once, so nothing may rest on it that several processes do.
    """
    if in_bucket(path):
        bucket.rename(_at(path), _at(target))
    else:
        os.replace(path, target)


def remove(path: str | os.PathLike) -> None:
    """Removes a file, or a folder with all that is in it; nothing where there is none."""
    if in_bucket(path):
        bucket.remove(_at(path))
    elif is_folder(path):
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)
