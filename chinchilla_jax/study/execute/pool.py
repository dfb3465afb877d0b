"""How does a machine work through a manifest? Worker processes, each on its own cores, watched and reported on."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from chinchilla_jax.base import files
from chinchilla_jax.base.errors import FAILED, PREEMPTED, USAGE
from chinchilla_jax.base.words import Echo, duration
from chinchilla_jax.config import RunConfig
from chinchilla_jax.parallel.job import cores
from chinchilla_jax.study import folder
from chinchilla_jax.study.execute.worker import GO, Stopped, on_signal, preparation
from chinchilla_jax.study.folder import MANIFEST, Manifest, PlannedRun, StudyError

# A worker killed from outside is started again; one that dies this often has a reason, such as too little memory.
MAX_RESTARTS = 3
TAIL_LINES = 15


def work(
    study: str | pathlib.Path,
    manifest: str = MANIFEST,
    workers: int | None = None,
    echo: Echo = print,
    ready: Pool | None = None,
    command: Callable[[int], list[str]] | None = None,
) -> None:
    """Trains every unfinished run of a manifest with `workers` processes on this machine. What is finished stays.

    Raises StudyError if there is no such manifest or a worker failed, and Stopped if SIGINT or SIGTERM came; the runs
    in progress are saved.

    Args:
      workers: `cores.default_workers` unless given. It changes no run: each has the cores that were planned for it.
      ready: workers that stand by for this manifest.
      command: argument list that starts worker i, if not `python -m chinchilla_jax work --worker=i`.
    """
    study = files.path(study)
    plan = folder.read_manifest(study / manifest)
    waiting = folder.unfinished(study, plan.runs)
    if not waiting:
        echo(f"{manifest}: all {len(plan.runs)} runs are finished")
        return
    template = plan.template()
    count = min(workers or cores.default_workers(template), len(waiting))
    if cores.on_cpu() and count * cores.of_study(template) > len(cores.available()):
        echo(f"{count} workers of {cores.of_study(template)} cores each take turns on {len(cores.available())}")
    pool = ready or Pool(study, count, command or (lambda i: _command(study, manifest, i, count)), echo)
    received: list[str] = []

    def note(number: int) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)

    with on_signal(note):
        try:
            pool.start(count)
            _watch(pool, study, plan, received, echo)
        finally:
            pool.stop()


@contextlib.contextmanager
def standing_by(
    study: pathlib.Path, manifest: str, template: RunConfig, waiting: Sequence[PlannedRun], workers: int, echo: Echo
) -> Iterator[Pool | None]:
    """Workers that get ready while the block finds out what they shall do; each compiles one of the `waiting` runs."""
    if not cores.on_cpu():  # a worker would take the accelerator from who has it now
        yield None
        return
    pool = Pool(study, workers, lambda i: _command(study, manifest, i, workers), echo)
    try:
        for worker in range(workers):
            first = waiting[worker] if worker < len(waiting) else None
            _tell(pool.launch(worker, "--standby"), preparation(template, first))
        yield pool
    finally:
        pool.stop()


def _command(study: pathlib.Path, manifest: str, worker: int, workers: int) -> list[str]:
    what = [f"--study={study}", f"--manifest={manifest}"]
    who = [f"--worker={worker}", f"--workers={workers}", f"--parent={os.getpid()}"]
    return [sys.executable, "-m", "chinchilla_jax", "work", *what, *who]


class Pool:
    """The worker processes; None stands for one that has not been started, or is through."""

    def __init__(self, study: pathlib.Path, workers: int, command: Callable[[int], list[str]], echo: Echo):
        self.study, self.command, self.echo = study, command, echo
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * workers
        self._logs: list[TextIO] = []
        self._at_work = False

    def start(self, workers: int) -> None:
        """Has so many workers begin: ends those that stand by beyond them, and starts those that are missing."""
        for unneeded in filter(None, self.processes[workers:]):
            unneeded.kill()
        self.processes = (self.processes + [None] * workers)[:workers]
        self.restarts, self._at_work = [0] * workers, True
        for worker, process in enumerate(self.processes):
            if process is None:
                self.launch(worker)
            else:
                _tell(process, GO)

    def _log(self, worker: int) -> pathlib.Path:
        return files.on_disk(self.study / "logs") / f"worker-{worker}.log"

    def launch(self, worker: int, *standby: str) -> subprocess.Popen[bytes]:
        """Starts a worker's process, with `--standby` ahead of its work."""
        files.make_folder(self._log(worker).parent)
        self._logs.append(self._log(worker).open("a", encoding="utf-8"))
        # In its own session, so that Ctrl-C reaches only this process, which then asks the workers to save and stop.
        process = self.processes[worker] = subprocess.Popen(
            [*self.command(worker), *standby],
            stdin=subprocess.PIPE if standby else subprocess.DEVNULL,
            stdout=self._logs[-1],
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        return process

    def running(self) -> bool:
        """Whether any is at work. Raises StudyError if one failed or keeps dying, Stopped if one was told to stop."""
        for worker, process in enumerate(self.processes):
            code = process.poll() if process else None
            if code is None:
                continue
            if code == 0:
                self.processes[worker] = None
            elif code in (PREEMPTED, -signal.SIGTERM):
                raise Stopped(f"worker {worker} stopped: {self._last_line(worker)}")
            elif code < 0 and self.restarts[worker] < MAX_RESTARTS:
                self.restarts[worker] += 1
                again = f"starting it again ({self.restarts[worker]} of {MAX_RESTARTS})"
                self.echo(f"worker {worker} was killed by {signal.Signals(-code).name}; {again}")
                self.launch(worker)
            else:
                self._fail(worker, code)
        return any(self.processes)

    def _last_line(self, worker: int) -> str:
        lines = self._log(worker).read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")

    def _fail(self, worker: int, code: int) -> None:
        lines = self._log(worker).read_text(encoding="utf-8", errors="replace").splitlines()
        self.echo(f"--- the end of {self._log(worker)} ---")
        for line in lines[-TAIL_LINES:]:
            self.echo(f"    {line}")
        how = f"killed by signal {-code} {MAX_RESTARTS + 1} times" if code < 0 else f"failed with exit code {code}"
        raise StudyError(
            f"worker {worker} {how}: {self._last_line(worker)}", code if code in (FAILED, USAGE) else FAILED
        )

    def stop(self) -> None:
        """Asks the workers to save and stop, and waits until they have. A second signal ends them at once."""
        left = [process for process in self.processes if process and process.poll() is None]
        if left and self._at_work:
            self.echo(f"stopping {len(left)} workers: they save what they are training first")
        try:
            asked = 0.0
            while left := [process for process in left if process.poll() is None]:
                # Again and again: a signal that comes between two runs, or while one starts, may be missed.
                if time.monotonic() - asked > 2.0:
                    asked = time.monotonic()
                    for process in left:
                        process.terminate()
                time.sleep(0.05)
        except KeyboardInterrupt:
            for process in left:
                process.kill()
            raise
        finally:
            for log in self._logs:
                log.close()


def _tell(process: subprocess.Popen[bytes], line: bytes) -> None:
    """Writes to a worker that stands by. One that has died already is noticed when it is needed."""
    with contextlib.suppress(BrokenPipeError):
        if process.stdin:
            process.stdin.write(line)
            if line == GO:  # there is no more to say
                process.stdin.close()
            else:
                process.stdin.flush()


def _watch(pool: Pool, study: pathlib.Path, plan: Manifest, received: Sequence[str], echo: Echo) -> None:
    """Reports how far the runs are, until all workers are through. `received` gets the name of a signal that comes."""

    def flops() -> float:
        return sum(run.spent() * folder.progress(study, run) for run in plan.runs)

    total, before, waiting = sum(run.spent() for run in plan.runs), flops(), folder.unfinished(study, plan.runs)
    planned = plan.template().study_section.flops_per_second * len(pool.processes)
    every = 5.0 if sys.stdout.isatty() else 15.0
    started = reported = time.monotonic()
    running = True
    while running:
        running = pool.running()
        if running and received:
            raise Stopped(f"{received[0]} received; what was in progress is saved, the same command goes on")
        if running and time.monotonic() - reported < every:
            time.sleep(0.2)
            continue
        for run, result in folder.finished(study, waiting):
            echo(_finished_line(run, result))
            waiting = [other for other in waiting if other is not run]
        reported, done = time.monotonic(), flops()
        speed = (done - before) / max(reported - started, 1e-9)
        left = duration((total - done) / (speed if speed > 0 else planned)) + ("" if speed > 0 else " (guess)")
        count = f"{len(plan.runs) - len(waiting)}/{len(plan.runs)} runs"
        share = f"{done / total:.1%} of {total:.3g} FLOPs, {speed / 1e9:.1f} GFLOP/s"
        echo(f"{count}, {share}, {duration(reported - started)} elapsed, {left} left")
    if waiting:
        names = ", ".join(run.name for run in waiting)
        raise StudyError(f"the workers ended without finishing {names}; see {files.on_disk(study / 'logs')}", FAILED)


def _finished_line(run: PlannedRun, result: dict[str, Any]) -> str:
    if result.get("diverged"):
        return f"{run.name}: diverged; it takes no part in the fits"
    loss, seconds = result.get("loss"), result.get("seconds")
    return f"{run.name}: loss {loss:.4f} nats/token" + (f" in {duration(seconds)}" if seconds is not None else "")
