"""Is there room on the disk for what a run writes? Asked before it starts and before each checkpoint.

What does not fit is not begun: half a checkpoint is of no use, and the last whole one stays what it is.
"""

from __future__ import annotations

import contextlib
import errno
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import PREEMPTED, ExplainedError
from chinchilla_jax.parallel.job import distributed

LOGS = 2**18  # bytes, for what is written beside checkpoints until somebody looks
_FAULTS = {
    errno.ENOSPC: ("No space left on device", "is full"),
    errno.EDQUOT: ("Disk quota exceeded", "has no quota left for you"),
    errno.EROFS: ("Read-only file system", "cannot be written to"),
}


class NoRoom(ExplainedError):
    """What a run writes finds no room: with some it goes on where it was, so it may be started again."""

    exit_code = PREEMPTED


def check_room(workdir: Path, state: Any, checkpoints: int) -> None:
    """Raises NoRoom if so many more checkpoints of a state, or of its shapes, do not fit on the disk of a run.

    Of several processes all have to call it; what process 0 finds counts. Buckets are not asked.
    """
    if files.in_bucket(workdir):
        return
    needed, folder = checkpoints * _bytes_of(state) + LOGS, Path(workdir).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    lacking = f"{_megabytes(needed)} are needed and {_megabytes(free)} are free" if free < needed else ""
    if lacking := distributed.exchange("room", lacking)[0]:
        raise NoRoom(f"{workdir}: its disk has no room for a checkpoint ({lacking}); make some, and start again")


def _bytes_of(state: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"


@contextlib.contextmanager
def faults_told(workdir: Path) -> Iterator[None]:
    """Errors of a disk that is full, or the like, as NoRoom, whoever raised them."""
    try:
        yield
    except ExplainedError:
        raise
    except Exception as error:
        if what := _fault(error):
            raise NoRoom(f"{workdir}: its disk {what}; see to that, and start again") from error
        raise


def _fault(error: BaseException | None) -> str:
    while error is not None:
        for number, (text, what) in _FAULTS.items():
            if getattr(error, "errno", None) == number or text in str(error):
                return what
        error = error.__cause__ or error.__context__
    return ""
