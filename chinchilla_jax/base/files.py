"""The door to storage: whole files are read and written here, so that a reader never sees half of one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def exists(path: Path) -> bool:
    """Whether there is such a file or folder."""
    return Path(path).exists()


def read_text(path: Path) -> str:
    """The whole file.

    Raises:
      FileNotFoundError: there is none.
      UnicodeDecodeError: it is no text; a ValueError.
    """
    return Path(path).read_text(encoding="utf-8")


def read_json(path: Path) -> Any:
    """The JSON value in the file.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is no JSON.
    """
    return json.loads(read_text(path))


def read_end(path: Path, size: int) -> bytes:
    """The last `size` bytes of a file that may still grow; all of it if it is shorter.

    Raises:
      FileNotFoundError: there is none.
    """
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, 2) - size))
        return file.read()


def write_text(path: Path, text: str) -> None:
    """Writes to a temporary name in the same folder, then renames."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON. NaN and infinities are refused: JSON has none."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def create(path: Path, text: str) -> bool:
    """Makes a new file; False if it is there already. Of several processes that try, one succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return True


def remove(path: Path) -> None:
    """Removes the file, if it is there."""
    Path(path).unlink(missing_ok=True)
