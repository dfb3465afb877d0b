"""Does a finished run answer for another one? Two runs of one config are the same run, so it is trained once."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from chinchilla_jax.base import files
from chinchilla_jax.base.words import Echo
from chinchilla_jax.study import folder
from chinchilla_jax.study.execute import lease
from chinchilla_jax.study.folder import PlannedRun

# What describes the training; checkpoints stay with the run that made them.
_COPIED = ("config.json", "ledger.json", "metrics.jsonl")
# A second's work is booked once, with the run that did it.
_BOOKED = ("time", "goodput", "utilisation", "seconds", "device_hours", "tokens_per_second", "flops_per_second")


def finished_twin(study: pathlib.Path, run: PlannedRun, others: Sequence[PlannedRun]) -> PlannedRun | None:
    """One of `others` that has a result and the config of `run`; None if there is none. Raises StudyError if a result
    is damaged.
    """
    config = run.run_config()
    for other in others:
        # The config itself and not its hash: a hash of an older version may be another.
        if other.params == run.params and other.tokens == run.tokens and other.run_config() == config:
            if folder.read_result(study, other.name) is not None:
                return other
    return None


def reuse(study: pathlib.Path, runs: Sequence[PlannedRun], others: Sequence[PlannedRun], echo: Echo = print) -> None:
    """Gives unfinished `runs` the results of finished `others` of the same config.

    The result says under `reused` whose it is and, under `reused_seconds`, how long that took; a branch's seconds are
    those of its tail, so they are left out. Raises StudyError if a result is damaged.
    """
    for run in folder.unfinished(study, runs):
        twin = finished_twin(study, run, others)
        held = lease.claim(folder.run_folder(study, run.name), study, "reuse") if twin else None
        if held is None:  # no twin, or somebody trains it just now
            continue
        try:
            _copy(study, twin, run)
            echo(f"{run.name}: the result of {twin.name}, which has the same config")
        finally:
            held.release()


def _copy(study: pathlib.Path, twin: PlannedRun, run: PlannedRun) -> None:
    source, target = folder.run_folder(study, twin.name), folder.run_folder(study, run.name)
    for name in _COPIED:
        if files.exists(source / name):
            files.write_text(target / name, files.read_text(source / name))
    result = folder.read_result(study, twin.name)
    kept = {key: value for key, value in result.items() if key not in (*twin.facts(), *_BOOKED)}
    seconds = None if twin.trunk else result.get("seconds")
    files.write_json(target / folder.RESULT, kept | run.facts() | {"reused": twin.name, "reused_seconds": seconds})
