"""Objects of Google Cloud Storage: what the functions of `files.py` mean where there is neither folder nor rename.

An object is seen whole or not at all, and a folder is what names have in common. Of several who try, one makes or
replaces an object, by a precondition on its generation: a number that every write changes, heartbeats among them.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fnmatch
import functools
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from chinchilla_jax.base.errors import FAILED, ExplainedError

SCHEME = "gs"
_THREADS = 8  # that fetch objects of a folder


class StorageError(ExplainedError):
    """A path that leads to no storage known here; the message names it."""


class BucketError(StorageError, OSError):
    """What the storage service answered, after its own retries."""

    exit_code = FAILED


def parse(text: str) -> Any:
    """`gs://BUCKET/...` as a path that keeps its scheme. `StorageError` without a bucket, or without packages."""
    if not re.match(r"gs://[a-z0-9][^/]", text):
        raise StorageError(f"{text}: names no bucket; write gs://BUCKET/FOLDER")
    try:
        import gcsfs  # noqa: F401  etils, and with it Orbax, reads buckets through it
        from etils import epath
        from google.cloud import storage  # noqa: F401
    except ImportError as error:
        raise StorageError(f"{text}: {error.name} is not installed: pip install 'chinchilla_jax[gcs]'") from None
    return epath.Path(text)


def exists(path: PurePath) -> bool:
    """Whether there is an object, or one below it."""
    return is_file(path) or is_folder(path)


def is_file(path: PurePath) -> bool:
    """Whether there is an object of this name."""
    with _explained(path):
        return bool(_name(path)) and _blob(path).exists()


def is_folder(path: PurePath) -> bool:
    """Whether there is an object below this name."""
    return next(_below(path, max_results=1), None) is not None


def glob(folder: Any, pattern: str) -> list:
    """As `Path.glob`, sorted."""
    head, _, rest = pattern.partition("/")
    if head == "**":
        return sorted(_deep(folder, pattern))
    with _explained(folder):
        listed = _client().list_blobs(_bucket(folder), prefix=_prefix(folder), delimiter="/")
        names = {blob.name for blob in listed} | {prefix.rstrip("/") for prefix in listed.prefixes}
    found = {folder / PurePath(name).name for name in names if name != _prefix(folder)}
    found = {path for path in found if fnmatch.fnmatchcase(path.name, head)}
    return sorted(path for one in found for path in glob(one, rest)) if rest else sorted(found)


def _deep(folder: Any, pattern: str) -> Iterator[Any]:
    parts = ["(?:[^/]+/)*" if part == "**" else fnmatch.translate(part)[4:-3] + "/" for part in pattern.split("/")]
    matches = re.compile("".join(parts).replace(".*", "[^/]*"), re.DOTALL)
    names = [blob.name[len(_prefix(folder)) :] for blob in _below(folder)]
    inner = {str(parent) for name in names for parent in PurePath(name).parents} - {"."}
    return (folder / name for name in {*names, *inner} if name and matches.fullmatch(f"{name}/"))


def stamp(path: PurePath) -> tuple[int, int]:
    """Bytes, and nanoseconds of the last write or heartbeat by the clock of the service."""
    blob = _blob(path)
    with _explained(path):
        blob.reload()
    return blob.size, int(blob.updated.timestamp() * 1e9)


def generation(path: PurePath) -> int | None:
    """Which write of it this is; None if there is no object."""
    with _explained(path):
        blob = _client().bucket(_bucket(path)).get_blob(_name(path))
        return blob and blob.generation


def read(path: PurePath) -> bytes:
    """The content."""
    with _explained(path):
        return _blob(path).download_as_bytes()


def read_end(path: PurePath, size: int) -> bytes:
    """The last bytes; what is written meanwhile may be missing."""
    first = max(0, stamp(path)[0] - size)
    from google.api_core.exceptions import RequestRangeNotSatisfiable

    with _explained(path):
        try:
            return _blob(path).download_as_bytes(start=first)
        except RequestRangeNotSatisfiable:  # it is empty, or shorter by now
            return b""


def write(path: PurePath, content: bytes, generation: int | None = None) -> int | None:
    """Writes an object; returns its generation.

    Where the `generation` to replace is given (0: none may be there), None if another write came before. An answer may
    be lost and the request repeated: a mark in the object tells our own write from another's.
    """
    from google.api_core.exceptions import PreconditionFailed
    from google.cloud.storage.retry import DEFAULT_RETRY

    blob, mark = _blob(path), uuid.uuid4().hex
    blob.metadata = {"writer": mark}
    with _explained(path):
        try:
            blob.upload_from_string(
                content, "application/octet-stream", if_generation_match=generation, retry=DEFAULT_RETRY
            )
        except PreconditionFailed:
            there = _client().bucket(_bucket(path)).get_blob(_name(path))
            return there.generation if there and (there.metadata or {}).get("writer") == mark else None
    return blob.generation


def append(path: PurePath, content: bytes) -> None:
    """Adds to an object, of which this process is the only writer: an object of its own, then both as one."""
    from google.api_core.exceptions import PreconditionFailed

    generation_, blob = generation(path) or 0, _blob(path)
    if not generation_:
        write(path, content)
        return
    piece = _blob(path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp")
    with _explained(path):
        piece.upload_from_string(content, "application/octet-stream")
        try:
            blob.compose([_blob(path), piece], if_generation_match=generation_)
        except PreconditionFailed:
            if read_end(path, len(content)) != content:  # else it was done, and the answer was lost
                raise
        finally:
            piece.delete()


def touch(path: PurePath) -> None:
    """Writes the same content again, unless another write comes between."""
    if (before := generation(path)) is None:
        raise FileNotFoundError(2, "no such object", str(path))
    write(path, read(path), before)


def remove(path: PurePath, generation: int | None = None) -> None:
    """Removes an object (only this write of it, if that is given), or else all below it."""
    from google.api_core.exceptions import NotFound, PreconditionFailed

    with _explained(path), contextlib.suppress(NotFound, PreconditionFailed):
        _blob(path).delete(if_generation_match=generation)
    if generation is None:
        for blob in _below(path):
            with _explained(path), contextlib.suppress(NotFound):
                blob.delete()


def rename(path: PurePath, target: PurePath) -> None:
    """Copies, then deletes: a reader between the two sees both, one who is killed leaves both."""
    sources = [_blob(path)] if is_file(path) else list(_below(path))
    if not sources:
        raise FileNotFoundError(2, "no such object", str(path))
    bucket = _client().bucket(_bucket(target))
    with _explained(path):
        for blob in sources:
            blob.bucket.copy_blob(blob, bucket, _name(target) + blob.name[len(_name(path)) :])
        for blob in sources:
            blob.delete()


def fetch(folder: PurePath, cache: Path) -> Path:
    """A copy of all below a name in a folder of `cache`, made once for each state of the objects."""
    blobs = sorted(_below(folder), key=lambda blob: blob.name)
    if not blobs:
        raise FileNotFoundError(2, "no such object", str(folder))
    key = hashlib.sha256(repr([(blob.name, blob.generation) for blob in blobs]).encode()).hexdigest()[:16]
    copy = cache / _bucket(folder) / _name(folder) / key
    if copy.exists():
        return copy
    partial = copy.with_name(f".{key}.{os.getpid()}.tmp")

    def get(blob: Any) -> None:
        target = partial / blob.name[len(_prefix(folder)) :]
        target.parent.mkdir(parents=True, exist_ok=True)
        with _explained(folder):
            blob.download_to_filename(str(target))

    try:
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(get, blobs))
        with contextlib.suppress(OSError):  # another process was faster
            os.replace(partial, copy)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return copy


@contextlib.contextmanager
def _explained(path: PurePath) -> Iterator[None]:
    """Errors of the client as those of files."""
    from google.api_core.exceptions import GoogleAPIError, NotFound
    from google.auth.exceptions import GoogleAuthError
    from requests.exceptions import RequestException

    try:
        yield
    except NotFound:
        if not _there(_bucket(path)):
            raise BucketError(f"{path}: there is no such bucket") from None
        raise FileNotFoundError(2, "no such object", str(path)) from None
    except (GoogleAPIError, GoogleAuthError, RequestException) as error:
        reason = " ".join(str(error).split())[:300]
        raise BucketError(f"{path}: {type(error).__name__}: {reason}") from error


def _there(bucket: str) -> bool:
    """Whether there is such a bucket; so it is said also where only objects may be seen, and not the bucket."""
    from google.api_core.exceptions import GoogleAPIError

    try:
        return _client().bucket(bucket).exists()
    except GoogleAPIError:
        return True


@functools.cache
def _client() -> Any:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return storage.Client(project="emulated", credentials=AnonymousCredentials())
    return storage.Client()


def _bucket(path: PurePath) -> str:
    return str(path).removeprefix(f"{SCHEME}://").partition("/")[0]


def _name(path: PurePath) -> str:
    return str(path).removeprefix(f"{SCHEME}://").partition("/")[2]


def _prefix(path: PurePath) -> str:
    return f"{_name(path)}/" if _name(path) else ""


def _blob(path: PurePath) -> Any:
    return _client().bucket(_bucket(path)).blob(_name(path))


def _below(path: PurePath, **options: Any) -> Iterator[Any]:
    with _explained(path):
        yield from _client().list_blobs(_bucket(path), prefix=_prefix(path), **options)
