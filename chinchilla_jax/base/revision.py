"""By which code was this written?"""

from __future__ import annotations

import functools
import hashlib
import subprocess
from pathlib import Path

import chinchilla_jax
from chinchilla_jax.base import files


@functools.cache
def git_revision() -> str | None:
    """The checkout's revision, with `+` for local changes; None where the package does not run from a checkout."""
    folder = Path(chinchilla_jax.__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


@functools.cache
def code_digest() -> str:
    """SHA-256 of the package's Python files, with their paths: which code this is, checkout or not."""
    folder = Path(chinchilla_jax.__file__).resolve().parent
    content = hashlib.sha256()
    for path in files.glob(folder, "**/*.py"):
        content.update(f"{path.relative_to(folder).as_posix()}\0".encode() + files.read_bytes(path) + b"\0")
    return content.hexdigest()


def code_revision() -> str:
    """Package version and git revision in one line."""
    return f"{chinchilla_jax.__version__} ({git_revision() or 'no revision'})"
