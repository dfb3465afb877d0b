"""How data files are written so that none is ever seen half-written, and how two preparations keep apart."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from chinchilla_jax.data.errors import DataError


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes `content` under a temporary name, then renames: a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    partial.write_bytes(content)
    os.replace(partial, path)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: pathlib.Path) -> Any:
    """Parsed JSON of `path`.

    Raises:
      DataError: the file is missing or is not JSON; names it.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); delete its folder and prepare the data again") from None


def content_key(*parts: Any) -> str:
    """12 hexadecimal digits that name whatever was made from `parts` (JSON values)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


@contextlib.contextmanager
def lock(path: pathlib.Path, echo: Callable[[str], None]) -> Iterator[None]:
    """Holds `path` so that one process at a time prepares data; released by the system if the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            echo(f"waiting for another process that prepares data here ({path})")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class Progress:
    """Prints how far a long step is and how long it will still take, at most every `every` seconds."""

    def __init__(self, echo: Callable[[str], None], what: str, total: float, every: float = 5.0):
        self.echo, self.what, self.total, self.every = echo, what, total, every
        self.done, self.start = 0.0, time.monotonic()
        self.last = self.start

    def add(self, amount: float) -> None:
        """Counts `amount` more of `total` as done."""
        self.done += amount
        now = time.monotonic()
        if now - self.last < self.every:
            return
        self.last = now
        if self.total > 0 and self.done > 0:
            left = (now - self.start) * max(self.total - self.done, 0.0) / self.done
            self.echo(f"{self.what}: {min(self.done / self.total, 1.0):.0%}, about {left:.0f} s left")
        else:
            self.echo(f"{self.what}: {self.done / 1e6:.0f} MB so far, {now - self.start:.0f} s")
