"""What does one worker process do? Claim the longest run nobody has, train it, and the next, until all are finished.

Trunks come before the branches that leave them; a branch waits until its trunk is finished.

A worker may be started before there is work, to import JAX and compile while text is prepared or a fit is made. On its
standard input it gets a line of JSON, what to get ready for; then, when there is work, an empty line. The end of the
input means that there will be none.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import PREEMPTED, ExplainedError
from chinchilla_jax.base.words import Echo
from chinchilla_jax.config import RunConfig
from chinchilla_jax.parallel.job import cores, distributed
from chinchilla_jax.study import folder
from chinchilla_jax.study.execute import lease
from chinchilla_jax.study.execute.status import pace, training_order
from chinchilla_jax.study.folder import PlannedRun, StudyError

# Shorter compilations are not worth a file in the cache.
CACHE_MIN_SECONDS = 0.5
POLL_SECONDS = 1.0
GO = b"\n"  # to a worker that stands by

Train = Callable[..., dict]


class Stopped(ExplainedError):
    """The worker was asked to stop; whatever it was training is saved."""

    exit_code = PREEMPTED


def even_share(worker: int, workers: int, among: list[int]) -> list[int]:
    """The cores of worker `worker` out of `workers`: an even share; with more workers than cores they take turns."""
    if workers >= len(among):
        return [among[worker % len(among)]]
    return among[worker * len(among) // workers : (worker + 1) * len(among) // workers]


def pin(config: RunConfig, worker: int, workers: int) -> None:
    """Binds this process to the cores that the study `config` gives each run. Call it before JAX looks for devices.

    Two workers that share all cores would wait for each other's threads in every operation. Beside accelerators, which
    the cores only feed, each has an even share; StudyError if JAX computes on the CPU after all, with all its threads.
    """
    if cores.on_cpu():
        cores.use(cores.of_study(config), worker)
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, even_share(worker, workers, cores.available()))
    import jax

    if jax.default_backend() == "cpu":
        told = "JAX finds no accelerator that it can use on this machine; to train on the CPU say so"
        raise StudyError(f"{told}: export JAX_PLATFORMS=cpu")


def use_compilation_cache(study: pathlib.Path) -> None:
    """Lets JAX keep compiled programs in the study, so that a shape is compiled once for all runs and restarts."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(files.absolute(files.on_disk(study / "compilation_cache"))))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", CACHE_MIN_SECONDS)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def preparation(template: RunConfig, first: PlannedRun | None) -> bytes:
    """The line for a worker of the study `template`, whose first run will be `first`; None if nobody knows yet."""
    run = first and {"name": first.name, "config": first.config}
    return json.dumps({"template": template.to_dict(), "first": run}).encode() + b"\n"


def stand_by(study: pathlib.Path, worker: int, workers: int) -> str | None:
    """Gets this process ready and waits until it is needed, else raises Stopped. Names the run that it is ready for."""
    if not (line := sys.stdin.buffer.readline()):
        raise Stopped("not needed")
    message = json.loads(line)
    pin(RunConfig.from_dict(message["template"]), worker, workers)
    use_compilation_cache(study)
    from chinchilla_jax.training import loop  # noqa: F401  a second or two, which the first run need not wait for
    from chinchilla_jax.training.machine.ahead import warm

    first = message["first"]
    if first and not select.select([sys.stdin.buffer], [], [], 0.0)[0]:  # it is not needed yet
        warm(RunConfig.from_dict(first["config"]))
    if sys.stdin.buffer.readline() != GO:
        raise Stopped("not needed")
    return first["name"] if first else None


def work_alone(
    study: pathlib.Path,
    manifest: str,
    worker: int,
    echo: Echo = print,
    train: Train | None = None,
    parent: int | None = None,
    first: str | None = None,
) -> None:
    """Trains runs of a manifest, a file name in the study, until every one is finished, by whomever. It begins with the
    run `first`, if nobody has it. `train` is `training.loop.train` unless given.

    Raises Stopped if SIGTERM or SIGINT came or the process `parent` died, and the errors of `train` except divergence,
    which is recorded in the run's `result.json`.
    """
    runs = folder.read_manifest(study / manifest).runs
    stop = threading.Event()
    with on_signal(lambda _: stop.set()):
        if parent is not None:
            threading.Thread(target=_watch, args=(parent,), daemon=True).start()
        # All processes of this worker stop where one of them is asked to.
        while "stop" not in distributed.exchange("stop", "stop" if stop.is_set() else ""):
            run, held, all_finished = _next_together(study, runs, str(worker), first)
            if run is not None:
                _train_one(study, run, held, echo, train)
            elif all_finished:
                return
            else:
                # Others train the rest. Stay: one of them may die, and its run is then for us.
                stop.wait(POLL_SECONDS)
        raise Stopped("asked to stop")


@contextlib.contextmanager
def on_signal(handle: Callable[[int], None]) -> Iterator[None]:
    """Has `handle` called with the number of a SIGINT or SIGTERM that comes in the block."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: handle(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _next_together(
    study: pathlib.Path, runs: Sequence[PlannedRun], worker: str, first: str | None
) -> tuple[PlannedRun | None, lease.Lease | None, bool]:
    """The next run, its lease, and whether all are finished. Of a worker's several processes the first one claims."""
    claimed = _claim_next(study, runs, worker, first) if distributed.first() else None
    all_finished = distributed.first() and claimed is None and not folder.unfinished(study, runs)
    told = json.dumps({"run": claimed and claimed[0].name, "finished": all_finished})
    message = json.loads(distributed.exchange("next", told)[0])
    run = next((run for run in runs if run.name == message["run"]), None)
    return run, claimed and claimed[1], message["finished"]


def _claim_next(
    study: pathlib.Path, runs: Sequence[PlannedRun], worker: str, first: str | None = None
) -> tuple[PlannedRun, lease.Lease] | None:
    def waits(name: str) -> bool:
        return folder.read_result(study, name) is None

    for run in sorted(training_order(runs, pace(study)), key=lambda run: run.name != first):
        if not waits(run.name) or run.trunk and waits(run.trunk):
            continue
        held = lease.claim(folder.run_folder(study, run.name), study, worker)
        # It may have been finished, and its lease released, since we looked.
        if held and waits(run.name):
            return run, held
        if held:
            held.release()
    return None


def _train_one(study: pathlib.Path, run: PlannedRun, held: lease.Lease | None, echo: Echo, train: Train | None) -> None:
    from chinchilla_jax.training import loop

    def report(text: str) -> None:
        echo(f"{time.strftime('%H:%M:%S')} {run.name}: {text}")

    report("start")
    if held is not None:
        # Without its lease the run is another worker's, which writes the same files: end at once, save nothing.
        held.keep(lost=lambda: os._exit(1))
    workdir = folder.run_folder(study, run.name)
    branching: dict[str, Any] = {"keep": run.keep_steps} if run.keep_steps else {}
    branching |= {"predicted": run.preflight} if run.preflight else {}
    try:
        if run.trunk:
            trunk = folder.run_folder(study, run.trunk)
            branching["fork"] = loop.Fork(trunk, run.fork_step)
            # A trunk that diverged has branches only where it left checkpoints; the others would diverge like it.
            reached = files.exists(trunk / "checkpoints" / f"step_{run.fork_step}")
            diverged = (folder.read_result(study, run.trunk) or {}).get("diverged")
            if "lost" in distributed.exchange("trunk", "lost" if diverged and not reached else "")[:1]:
                raise loop.Diverged(f"its trunk {run.trunk} did, before step {run.fork_step}")
        (train or loop.train)(run.run_config(), workdir, facts=run.facts(), echo=echo, **branching)
        report("finished")
    except loop.Diverged as error:
        report(f"diverged: {error}")
        if distributed.first() and folder.read_result(study, run.name) is None:
            result = {"diverged": True, "loss": None, "error": str(error)}
            files.write_json(workdir / folder.RESULT, run.facts() | result)
    except loop.Preempted as error:
        raise Stopped(str(error)) from None
    finally:
        if held is not None:
            held.release()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
