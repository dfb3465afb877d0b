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
from typing import TextIO

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

    Args:
      workers: `cores.default_workers` of them unless given. How many there are changes no run: each has the cores that
        were planned for it.
      ready: workers that stand by for this manifest.
      command: argument list that starts worker i; by default `python -m chinchilla_jax work --worker=i`.

    Raises:
      StudyError: no such manifest, or a worker failed; has the end of its log.
      Stopped: SIGINT or SIGTERM came; the runs in progress are saved.
    """
    study = pathlib.Path(study)
    plan = folder.read_manifest(study / manifest)
    waiting = folder.unfinished(study, plan.runs)
    if not waiting:
        echo(f"{manifest}: all {len(plan.runs)} runs are finished")
        return
    template = plan.template()
    workers = min(workers or cores.default_workers(template), len(waiting))
    if cores.on_cpu() and workers * cores.of_study(template) > len(cores.available()):
        echo(f"{workers} workers of {cores.of_study(template)} cores each take turns on {len(cores.available())}")
    if ready:
        ready.resize(workers)
    pool = ready or Pool(study, workers, command or (lambda i: _command(study, manifest, i, workers)), echo)
    received = []

    def note(number: int) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)

    with on_signal(note):
        try:
            pool.start()
            _Monitor(study, plan, workers, echo).watch(pool, received)
        finally:
            pool.stop()


@contextlib.contextmanager
def standing_by(
    study: pathlib.Path, manifest: str, template: RunConfig, waiting: Sequence[PlannedRun], workers: int, echo: Echo
) -> Iterator[Pool | None]:
    """Workers that get ready while the block finds out what they shall do, see `backend.Backend`.

    Each compiles one of the first runs that are waiting. None where accelerators compute: a worker would take them from
    whoever has them now.
    """
    if not cores.on_cpu():
        yield None
        return
    pool = Pool(study, workers, lambda i: _command(study, manifest, i, workers), echo)
    try:
        pool.stand_by([preparation(template, waiting[i] if i < len(waiting) else None) for i in range(workers)])
        yield pool
    finally:
        pool.stop()


def _command(study: pathlib.Path, manifest: str, worker: int, workers: int) -> list[str]:
    what = [f"--study={study}", f"--manifest={manifest}"]
    who = [f"--worker={worker}", f"--workers={workers}", f"--parent={os.getpid()}"]
    return [sys.executable, "-m", "chinchilla_jax", "work", *what, *who]


class Pool:
    """The worker processes."""

    def __init__(self, study: pathlib.Path, workers: int, command: Callable[[int], list[str]], echo: Echo):
        self.study, self.command, self.echo = study, command, echo
        self.processes: list[subprocess.Popen | None] = [None] * workers
        self.restarts = [0] * workers
        self._logs: list[TextIO] = []
        self._at_work = False

    def log(self, worker: int) -> pathlib.Path:
        return self.study / "logs" / f"worker-{worker}.log"

    def stand_by(self, preparations: list[bytes]) -> None:
        """Starts the workers ahead of their work, with a line for each that says what to get ready for."""
        for worker, line in enumerate(preparations):
            self._start(worker, standby=True)
            with contextlib.suppress(BrokenPipeError):  # one that has died already is noticed when it is needed
                self.processes[worker].stdin.write(line)
                self.processes[worker].stdin.flush()

    def resize(self, workers: int) -> None:
        """Before they begin: ends those that are too many; any that are missing are started when the others begin."""
        for process in filter(None, self.processes[workers:]):
            process.kill()
        self.processes = (self.processes + [None] * workers)[:workers]
        self.restarts = [0] * workers

    def start(self) -> None:
        """Has the workers begin."""
        self._at_work = True
        for worker, process in enumerate(self.processes):
            if process is None:
                self._start(worker)
                continue
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(GO)
                process.stdin.close()

    def _start(self, worker: int, standby: bool = False) -> None:
        self.log(worker).parent.mkdir(parents=True, exist_ok=True)
        log = self.log(worker).open("a", encoding="utf-8")
        self._logs.append(log)
        # In its own session, so that Ctrl-C reaches only this process, which then asks the workers to save and stop.
        self.processes[worker] = subprocess.Popen(
            self.command(worker) + ["--standby"] * standby,
            stdin=subprocess.PIPE if standby else subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )

    def running(self) -> bool:
        """Looks after the workers: whether any is still at work.

        Raises:
          StudyError: one failed, or keeps dying.
          Stopped: one was told to stop by somebody else.
        """
        for worker, process in enumerate(self.processes):
            code = process.poll() if process else None
            if code is None:
                continue
            if code == 0:
                self.processes[worker] = None
            elif code in (PREEMPTED, -signal.SIGTERM):
                raise Stopped(f"worker {worker} was asked to stop")
            elif code < 0 and self.restarts[worker] < MAX_RESTARTS:
                self.restarts[worker] += 1
                again = f"starting it again ({self.restarts[worker]} of {MAX_RESTARTS})"
                self.echo(f"worker {worker} was killed by {signal.Signals(-code).name}; {again}")
                self._start(worker)
            else:
                self._fail(worker, code)
        return any(self.processes)

    def _fail(self, worker: int, code: int) -> None:
        lines = self.log(worker).read_text(encoding="utf-8", errors="replace").splitlines()
        self.echo(f"--- the end of {self.log(worker)} ---")
        for line in lines[-TAIL_LINES:]:
            self.echo(f"    {line}")
        last = next((line for line in reversed(lines) if line.strip()), "no output")
        how = f"killed by signal {-code} {MAX_RESTARTS + 1} times" if code < 0 else f"failed with exit code {code}"
        raise StudyError(f"worker {worker} {how}: {last.strip()}", code if code in (FAILED, USAGE) else FAILED)

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


class _Monitor:
    """Reports how far the runs are, from what they write."""

    def __init__(self, study: pathlib.Path, plan: Manifest, workers: int, echo: Echo):
        self.study, self.plan, self.workers, self.echo = study, plan, workers, echo
        self.every = 5.0 if sys.stdout.isatty() else 15.0
        self.waiting = folder.unfinished(study, plan.runs)
        self.started, self.flops_before = time.monotonic(), self._flops()

    def _flops(self) -> float:
        return sum(run.spent() * folder.progress(self.study, run) for run in self.plan.runs)

    def watch(self, pool: Pool, received: Sequence[str]) -> None:
        """Returns when all workers are through; `received` gets the name of a signal that comes meanwhile."""
        reported = time.monotonic()
        while pool.running():
            if received:
                raise Stopped(f"{received[0]} received; what was in progress is saved, the same command goes on")
            time.sleep(0.2)
            if time.monotonic() - reported >= self.every:
                reported = time.monotonic()
                self._report()
        self._report()
        if self.waiting:
            names = ", ".join(run.name for run in self.waiting)
            raise StudyError(f"the workers ended without finishing {names}; see {self.study / 'logs'}", FAILED)

    def _report(self) -> None:
        for run, result in folder.finished(self.study, self.waiting):
            self.echo(finished_line(run, result))
            self.waiting = [other for other in self.waiting if other is not run]
        total, done = sum(run.spent() for run in self.plan.runs), self._flops()
        elapsed = time.monotonic() - self.started
        speed = (done - self.flops_before) / elapsed if elapsed else 0.0
        if speed > 0:
            left = duration((total - done) / speed)
        else:
            planned = self.plan.template().study.flops_per_second * self.workers
            left = f"{duration((total - done) / planned)} (guess)"
        count = f"{len(self.plan.runs) - len(self.waiting)}/{len(self.plan.runs)} runs"
        share = f"{done / total:.1%} of {total:.3g} FLOPs, {speed / 1e9:.1f} GFLOP/s"
        self.echo(f"{count}, {share}, {duration(elapsed)} elapsed, {left} left")


def finished_line(run: PlannedRun, result: dict) -> str:
    """What there is to say about a finished run."""
    if result.get("diverged"):
        return f"{run.name}: diverged; it takes no part in the fits"
    loss, seconds = result.get("loss"), result.get("seconds")
    return f"{run.name}: loss {loss:.4f} nats/token" + (f" in {duration(seconds)}" if seconds is not None else "")
