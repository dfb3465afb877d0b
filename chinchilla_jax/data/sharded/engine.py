"""Who runs the tasks of a stage. A task writes a file when it is done, and that file says so to whoever asks later.

Another engine is a function of tasks: all it must do is call each of them somewhere that sees the same folder, and
return when all are done.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from chinchilla_jax.base import files


class Task(NamedTuple):
    """A call of a function of a module, with arguments that can go to another process; `output` is written last."""

    function: Callable[..., None]
    arguments: tuple[Any, ...]
    output: pathlib.Path


Engine = Callable[[Sequence[Task]], None]


def call(task: Task) -> None:
    """Does the task."""
    task.function(*task.arguments)


def run(engine: Engine, tasks: Iterable[Task]) -> None:
    """Has those tasks done that are not done yet."""
    if todo := [task for task in tasks if not files.exists(task.output)]:
        engine(todo)


def _all(mapped: Callable[..., Iterable[None]], tasks: Sequence[Task]) -> None:
    for _ in mapped(call, tasks):
        pass


@contextlib.contextmanager
def local(workers: int | None = None) -> Iterator[Engine]:
    """An engine of so many processes of this machine; None: one for each core that this process may use."""
    workers = workers or len(os.sched_getaffinity(0))
    if workers == 1:
        yield functools.partial(_all, map)
        return
    # A forked process would inherit threads of JAX that are not there any more.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            yield functools.partial(_all, pool.map)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
