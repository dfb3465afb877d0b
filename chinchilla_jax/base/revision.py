"""By which code was this written?"""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import chinchilla_jax


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


def code_revision() -> str:
    """Package version and git revision in one line."""
    return f"{chinchilla_jax.__version__} ({git_revision() or 'no revision'})"
