"""Who brings the runs of a manifest to an end? A back-end. The first is the pool of worker processes on this machine.

A new one is a module of its own with a function `run`, and an entry in `BACKENDS` or a call of `register`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from chinchilla_jax.config import RunConfig, did_you_mean
from chinchilla_jax.study.execute import pool
from chinchilla_jax.study.folder import PlannedRun, StudyError, read_manifest, unfinished

LOCAL = "local"


class Run(Protocol):
    """Trains every unfinished run of a manifest, `workers` at a time, and returns when each has its `result.json`.

    `manifest` is a file name in the folder `study`; `ready` is what the back-end's `stand_by` gave for it, or None.
    A back-end that only starts the runs, or prints what it would start, raises `worker.Stopped` instead of returning:
    the same command goes on when the results are there.

    Raises:
      StudyError: the runs cannot be finished.
      Stopped: they are not finished yet; what is in progress is saved.
    """

    def __call__(
        self, study: pathlib.Path, manifest: str, workers: int, echo: Callable[[str], None], ready: Any = None
    ) -> None: ...


class StandBy(Protocol):
    """Gets workers ready in the background, while the block finds out what they shall do.

    `template` is the study's config, `waiting` the unfinished runs in `training_order`, as far as they are known.
    What the block receives goes to `run` as `ready`; leaving the block ends workers that were not needed.
    """

    def __call__(
        self,
        study: pathlib.Path,
        manifest: str,
        template: RunConfig,
        waiting: Sequence[PlannedRun],
        workers: int,
        echo: Callable[[str], None],
    ) -> contextlib.AbstractContextManager[Any]: ...


@contextlib.contextmanager
def _nobody(study, manifest, template, waiting, workers, echo) -> Iterator[None]:
    yield None


@dataclasses.dataclass(frozen=True)
class Backend:
    """How runs are trained, and whether workers can be started ahead of them; by default they cannot."""

    run: Run
    stand_by: StandBy = _nobody


BACKENDS = {LOCAL: Backend(pool.work, pool.standing_by)}


def register(name: str, backend: Backend) -> None:
    """Makes `backend` known as `name`."""
    BACKENDS[name] = backend


def get_backend(name: str) -> Backend:
    """The back-end of that name.

    Raises:
      StudyError: there is none.
    """
    if name not in BACKENDS:
        raise StudyError(f"unknown back-end {name!r}{did_you_mean(name, BACKENDS)}; one of {', '.join(BACKENDS)}")
    return BACKENDS[name]


def run_manifest(
    backend: str, study: pathlib.Path, manifest: str, workers: int, echo: Callable[[str], None], ready: Any = None
) -> None:
    """Has a back-end bring the runs of a manifest to an end.

    Raises:
      StudyError: no such back-end, or runs have no result afterwards; see also `Run`.
      Stopped: see `Run`.
    """
    get_backend(backend).run(study, manifest, workers, echo, ready=ready)
    missing = unfinished(study, read_manifest(study / manifest).runs)
    if missing:
        names = ", ".join(run.name for run in missing)
        raise StudyError(f"the back-end {backend!r} ended without finishing {names}", 1)
