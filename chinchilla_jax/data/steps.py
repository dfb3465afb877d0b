"""What the steps of a preparation share: their error, a key for each result, one process at a time, progress."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import ExplainedError
from chinchilla_jax.base.words import Echo


class DataError(ExplainedError, ValueError):
    """Text, a tokenizer or a token store that cannot be used. The message names the file and what to do about it."""


def content_key(*parts: Any) -> str:
    """12 hexadecimal digits that name whatever was made from `parts` (JSON values)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def read_description(path: pathlib.Path) -> Any:
    """The value in a JSON file that a preparation wrote; raises `DataError` where it is missing or is not JSON."""
    try:
        return files.read_json(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); delete its folder and prepare the data again") from None


@contextlib.contextmanager
def one_at_a_time(path: pathlib.Path, echo: Echo) -> Iterator[None]:
    """Locks `path` so that one process at a time prepares data; released by the system if the process dies."""
    files.make_folder(path.parent)
    with open(path, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            echo(f"waiting for another process that prepares data here ({path})")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class Progress:
    """Says how far a long step is and how long it will still take, every five seconds at most."""

    def __init__(self, echo: Echo, what: str, total: float = 0):
        """`total` is in bytes; 0 where it is not known."""
        self.echo, self.what, self.total, self.done = echo, what, total, 0
        self.start = self.last = time.monotonic()

    def add(self, size: int) -> None:
        """Counts `size` more bytes of `total` as done."""
        self.done += size
        now = time.monotonic()
        if now - self.last < 5.0:
            return
        self.last = now
        if self.total and self.done:
            left = (now - self.start) * max(self.total - self.done, 0) / self.done
            self.echo(f"{self.what}: {min(self.done / self.total, 1.0):.0%}, about {left:.0f} s left")
        else:
            self.echo(f"{self.what}: {self.done / 1e6:.0f} MB so far, {now - self.start:.0f} s")
