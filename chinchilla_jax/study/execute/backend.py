"""Who brings the runs of a manifest to an end? A back-end. The first is the pool of worker processes on this machine.

A new one is a module of its own with a function `run`, and an entry in `BACKENDS` or a call of `register`. Before it is
asked, runs that are finished under another name are looked for: two runs of one config are the same run, so it is
trained once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import FAILED
from chinchilla_jax.base.words import Echo
from chinchilla_jax.config import did_you_mean
from chinchilla_jax.study import folder
from chinchilla_jax.study.execute import lease, pool
from chinchilla_jax.study.folder import PlannedRun, StudyError

LOCAL = "local"
# What describes the training; checkpoints stay with the run that made them.
_COPIED = ("config.json", "ledger.json", "metrics.jsonl")
# A second's work is booked once, with the run that did it.
_BOOKED = ("time", "goodput", "utilisation", "seconds", "device_hours", "tokens_per_second", "flops_per_second")


@dataclasses.dataclass(frozen=True)
class Backend:
    """How the runs of a manifest are trained.

    `run(study, manifest, workers, echo, ready=None)` trains every unfinished run of the manifest, a file name in the
    folder `study`, `workers` at a time, and returns when each has its `result.json`. It raises StudyError if that
    cannot be done, and `worker.Stopped` if it is not done yet: a signal came, or it only starts the runs elsewhere, or
    prints what it would start. The same command goes on later.

    `stand_by(study, manifest, template, waiting, workers, echo)` is a context in which workers get ready for a study of
    the config `template`, whose unfinished runs, as far as they are known, are `waiting`. What it gives goes to `run`
    as `ready`; at its end workers that were not needed stop. By default nobody stands by.
    """

    run: Callable[..., None]
    stand_by: Callable[..., contextlib.AbstractContextManager[Any]] = lambda *_: contextlib.nullcontext()


BACKENDS = {LOCAL: Backend(pool.work, pool.standing_by)}


def register(name: str, backend: Backend) -> None:
    """Makes `backend` known as `name`."""
    BACKENDS[name] = backend


def get_backend(name: str) -> Backend:
    """The back-end of that name. Raises StudyError if there is none."""
    if name not in BACKENDS:
        raise StudyError(f"unknown back-end {name!r}{did_you_mean(name, BACKENDS)}; one of {', '.join(BACKENDS)}")
    return BACKENDS[name]


def run_manifest(
    name: str, study: pathlib.Path, manifest: str, workers: int | None, echo: Echo, ready: Any = None
) -> None:
    """Has the back-end `name` bring all runs of a manifest to an end. Raises StudyError if any has no result then."""
    get_backend(name).run(study, manifest, workers, echo, ready=ready)
    if missing := folder.unfinished(study, folder.read_manifest(study / manifest).runs):
        runs = ", ".join(run.name for run in missing)
        raise StudyError(f"the back-end {name!r} ended without finishing {runs}", FAILED)


def finished_twin(study: pathlib.Path, run: PlannedRun, others: Sequence[PlannedRun]) -> PlannedRun | None:
    """One of `others` that has a result and the config of `run`. Raises StudyError if a result is damaged."""
    config = run.run_config()
    for other in others:
        # The config itself and not its hash: a hash of an older version may be another.
        if other.params == run.params and other.tokens == run.tokens and other.run_config() == config:
            if folder.read_result(study, other.name) is not None:
                return other
    return None


def reuse(study: pathlib.Path, runs: Sequence[PlannedRun], others: Sequence[PlannedRun], echo: Echo = print) -> None:
    """Gives unfinished `runs` the results of finished `others` of the same config. Raises StudyError if one is damaged.

    A result says under `reused` whose it is and, under `reused_seconds`, how long that took. A branch's seconds are
    those of its tail, so they are left out.
    """
    for run in folder.unfinished(study, runs):
        twin, target = finished_twin(study, run, others), folder.run_folder(study, run.name)
        held = lease.claim(target, study, "reuse") if twin else None
        if twin is None or held is None:  # if somebody trains it just now
            continue
        try:
            for name in _COPIED:
                if files.exists(source := folder.run_folder(study, twin.name) / name):
                    files.write_text(target / name, files.read_text(source))
            result = folder.read_result(study, twin.name) or {}
            kept = {key: value for key, value in result.items() if key not in (*twin.facts(), *_BOOKED)}
            source_of = {"reused": twin.name, "reused_seconds": None if twin.trunk else result.get("seconds")}
            files.write_json(target / folder.RESULT, kept | run.facts() | source_of)
            echo(f"{run.name}: the result of {twin.name}, which has the same config")
        finally:
            held.release()
