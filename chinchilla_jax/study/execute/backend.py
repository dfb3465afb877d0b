"""Who brings the runs of a manifest to an end? A back-end. The first is the pool of worker processes on this machine.

A new one is a module of its own with a function `run`, and an entry in `BACKENDS` or a call of `register`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from chinchilla_jax.base.words import Echo
from chinchilla_jax.config import did_you_mean
from chinchilla_jax.study.execute import pool
from chinchilla_jax.study.folder import StudyError, read_manifest, unfinished

LOCAL = "local"


def _nobody(*_: Any) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


@dataclasses.dataclass(frozen=True)
class Backend:
    """How the runs of a manifest are trained.

    `run(study, manifest, workers, echo, ready=None)` trains every unfinished run of the manifest, a file name in the
    folder `study`, `workers` of them at a time, and returns when each has its `result.json`. It raises StudyError if
    that cannot be done, and `worker.Stopped` if it is not done yet: because a signal came, or because it only starts
    the runs elsewhere, or prints what it would start. The same command goes on later.

    `stand_by(study, manifest, template, waiting, workers, echo)` gives a context: in it workers get ready in the
    background, while it is found out what they shall do; at its end those that were not needed stop. `template` is the
    study's config, `waiting` the unfinished runs in `training_order`, as far as they are known. What the context gives
    goes to `run` as `ready`. By default nobody stands by.
    """

    run: Callable[..., None]
    stand_by: Callable[..., contextlib.AbstractContextManager[Any]] = _nobody


BACKENDS = {LOCAL: Backend(pool.work, pool.standing_by)}


def register(name: str, backend: Backend) -> None:
    """Makes `backend` known as `name`."""
    BACKENDS[name] = backend


def get_backend(name: str) -> Backend:
    """The back-end of that name. Raises StudyError if there is none."""
    if name not in BACKENDS:
        raise StudyError(f"unknown back-end {name!r}{did_you_mean(name, BACKENDS)}; one of {', '.join(BACKENDS)}")
    return BACKENDS[name]


def run_manifest(name: str, study: pathlib.Path, manifest: str, workers: int, echo: Echo, ready: Any = None) -> None:
    """Has the back-end `name` bring the runs of a manifest to an end, see `Backend.run`. Raises StudyError if runs have
    no result afterwards.
    """
    get_backend(name).run(study, manifest, workers, echo, ready=ready)
    missing = unfinished(study, read_manifest(study / manifest).runs)
    if missing:
        runs = ", ".join(run.name for run in missing)
        raise StudyError(f"the back-end {name!r} ended without finishing {runs}", 1)
